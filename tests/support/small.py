"""A small data folder and catalogue, published in a fraction of a second."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import duckdb
from bi_query.catalogue import Catalogue, load_catalogue
from bi_query.publish import How, Published, publish
from bi_query.settings import Settings, load_settings

FRESHNESS = """
quick: {fresh_seconds: 1, stale_seconds: 60}
steady: {fresh_seconds: 3600, stale_seconds: 3600}
never: {fresh_seconds: 0, stale_seconds: 0}
ad_hoc: {fresh_seconds: 60, stale_seconds: 0}
"""
MODELS = {"sales_by_shop": "select shop, sum(amount) as amount from sales group by shop"}
QUERIES = {
    "shops": """/*---
title: Shops
freshness: steady
parameters:
  limit: {type: integer, default: 10, minimum: 1, maximum: 100, description: How many.}
  shop: {type: string, default: null, max_length: 20, examples: [north]}
---*/
select shop, amount, (select version from versions) as version from sales_by_shop
where $shop is null or shop = $shop order by amount desc, shop limit $limit
""",
    "quick": """/*---
title: Expires after a second
freshness: quick
---*/
select version, version as again from versions
""",
    "uncached": """/*---
title: Never cached
freshness: never
---*/
select version from versions
""",
    "slow": """/*---
title: Slow on purpose
freshness: steady
timeout_seconds: 20
parameters:
  size: {type: integer, default: 100, minimum: 1, maximum: 1000000, description: Thousands of rows squared.}
---*/
select count(*) as n from range($size * 1000) a(i), range($size * 1000) b(j) where (i + j) % 7 = 3
""",
}


@dataclass(frozen=True)
class Small:
    """The folders of a small deployment; `version` is a value in the data that every query can show."""

    root: Path

    @property
    def data(self) -> Path:
        """The data folder."""
        return self.root / "data"

    @property
    def catalogue(self) -> Path:
        """The catalogue folder."""
        return self.root / "catalogue"

    @property
    def snapshots(self) -> Path:
        """The snapshot folder."""
        return self.root / "snapshots"

    def write_data(self, version: int = 1) -> None:
        """Write `sales` (1,000 lines in 4 shops) and `versions` (one row)."""
        self.data.mkdir(exist_ok=True)
        draft = self.root / "draft"
        draft.mkdir(exist_ok=True)
        with duckdb.connect() as connection:
            connection.execute(
                f"copy (select ['north', 'south', 'east', 'west'][i % 4 + 1] as shop, i * {version} as amount, "
                f"date '2017-01-01' + (i % 365)::integer as day from range(1000) t(i)) to '{draft}/sales.parquet'"
            )
            connection.execute(f"copy (select {version} as version) to '{draft}/versions.parquet'")
        for name in ("sales.parquet", "versions.parquet"):  # nobody finds one of them half written
            (draft / name).replace(self.data / name)

    def write_catalogue(self) -> None:
        """Write the models, queries and freshness classes above."""
        for folder, files in (("models", MODELS), ("queries", QUERIES)):
            (self.catalogue / folder).mkdir(parents=True, exist_ok=True)
            for name, text in files.items():
                (self.catalogue / folder / f"{name}.sql").write_text(text)
        (self.catalogue / "freshness.yaml").write_text(FRESHNESS)

    def settings(self, **overrides: object) -> Settings:
        """Settings of this deployment."""
        folders = {"data_dir": self.data, "catalogue_dir": self.catalogue, "snapshot_dir": self.snapshots}
        return load_settings(**{**folders, **overrides})

    def load(self) -> Catalogue:
        """The catalogue, loaded."""
        return load_catalogue(self.catalogue)

    def publish(self, version: int | None = None, **overrides: object) -> Published:
        """Publish, writing the data anew first when a version is given."""
        if version is not None:
            self.write_data(version)
        return publish(self.settings(**overrides), self.data, self.load(), How(progress=False))


def make_small(root: Path) -> Small:
    """A small deployment below `root`, written but not published."""
    small = Small(root)
    small.write_data()
    small.write_catalogue()
    return small
