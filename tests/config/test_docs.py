"""The docs name every metric, setting and alert there is."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from bi_query.metrics import Metrics
from bi_query.settings import Settings
from pydantic import ValidationError

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def metric_rows() -> list[str]:
    """The rows of docs/metrics.md, from the registry: name as exported, type, labels, meaning."""
    metrics = Metrics(version="x", duckdb_version="x")
    rows = []
    for collector, names in metrics.registry._collector_to_names.items():
        del names
        labels = getattr(collector, "_labelnames", ())
        for family in collector.collect():
            exported = family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
            shown = ", ".join(f"`{label}`" for label in labels)
            rows.append(f"| `{exported}` | {family.type} | {shown} | {family.documentation} |")
    return rows


def test_the_metrics_page_has_a_row_for_every_metric_of_the_service() -> None:
    written = [
        line for line in (DOCS / "metrics.md").read_text(encoding="utf-8").splitlines() if line.startswith("| `")
    ]
    assert written == metric_rows()


def test_every_setting_stands_in_the_settings_page_and_in_the_example() -> None:
    page = (DOCS / "settings.md").read_text(encoding="utf-8")
    assert [name for name in Settings.model_fields if f"`BI_{name.upper()}`" not in page] == []


def test_every_setting_that_only_the_commands_read_stands_in_the_operations_page() -> None:
    """What scripts read and compose does not: nothing else would tell of it."""
    sources = [*(ROOT / "infra").glob("*.sh"), *(ROOT / "infra").glob("*.py"), *(ROOT / "infra/supply").glob("*.py")]
    read = re.compile(r"""\$\{(BI_[A-Z_]+)|(?:setting|seconds)[ (]"?(BI_[A-Z_]+)|environ\.get\("(BI_[A-Z_]+)""")
    named = {
        name for path in sources for names in read.findall(path.read_text(encoding="utf-8")) for name in names if name
    }
    assert {"BI_UP_SECONDS", "BI_OFFLINE", "BI_ENV_FILE", "BI_TRIVY"} <= named
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    page = (DOCS / "operations.md").read_text(encoding="utf-8")
    table = page.partition("## Settings of the commands")[2].partition("## ")[0]
    alone = {name for name in named if f"{name}=" not in example}
    assert alone == set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE))


def test_every_alert_has_a_heading_in_the_runbooks() -> None:
    headings = set(re.findall(r"^### (\w+)$", (DOCS / "runbooks.md").read_text(encoding="utf-8"), re.MULTILINE))
    alerts = {
        rule["alert"]
        for path in (ROOT / "alerts/rules").glob("*.yaml")
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }
    assert alerts
    assert alerts <= headings


def test_no_command_of_a_page_needs_a_program_that_only_the_environment_of_make_has() -> None:
    """`make serve` puts nothing on anybody's PATH."""
    pages = [*ROOT.glob("README*.md"), *DOCS.glob("*.md")]
    bare = re.compile(r"^(?: {4}|\$ )?(?:\w+=\S+ )*(?:bi-query|python3? -m (?!venv)\S+).*$", re.MULTILINE)
    assert {page.name: found for page in pages if (found := bare.findall(page.read_text(encoding="utf-8")))} == {}


def test_the_memory_limits_that_the_pages_name_are_those_of_compose() -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]
    always = [one for one in services.values() if one["restart"] != "no" and "profiles" not in one]
    total = sum(_gib(one["mem_limit"]) for one in always)
    more = _gib(services["query"]["mem_limit"])
    assert len(always) == 10
    assert f"add up to {total:.1f} GiB" in (ROOT / "README.md").read_text(encoding="utf-8").replace("\n", " ")
    page = (DOCS / "operations.md").read_text(encoding="utf-8")
    assert f"add up to {total:.1f} GiB" in page
    assert f"with two replicas, it is {total + more:.1f} GiB" in page


def _gib(limit: str) -> float:
    """`2g`, `128m` or `${NAME:-2g}` in GiB."""
    found = re.fullmatch(r"(?:\$\{\w+:-)?(\d+)([gm])\}?", limit)
    assert found is not None, limit
    return int(found[1]) / (1 if found[2] == "g" else 1024)


def test_the_address_that_stands_as_an_example_of_a_model_is_the_stack_s_own() -> None:
    llm = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]["llm"]
    address = f"http://llm:{llm['environment']['OLLAMA_HOST'].rpartition(':')[2]}/v1"
    for page in ("docs/settings.md", "docs/chat.md", ".env.example"):
        assert set(re.findall(r"http://llm:\d+/v1", (ROOT / page).read_text(encoding="utf-8"))) == {address}, page
    with pytest.raises(ValidationError, match=address):
        Settings(llm_base_url="llm")


def test_every_test_that_the_threat_model_names_exists_and_each_defence_names_one() -> None:
    page = (DOCS / "security.md").read_text(encoding="utf-8")
    table = page.partition("| attack | what stops it | shown by |")[2].partition("\n\n")[0]
    rows = [row.split(" | ") for row in table.strip().splitlines()[1:]]
    assert len(rows) > 15
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)\(", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row[-1])
        assert named, f"no test shows the defence against {row[0]}"
        assert [name for name in named if name not in defined] == []


def test_the_runbooks_send_nobody_to_a_port_that_production_does_not_publish() -> None:
    sections = (DOCS / "runbooks.md").read_text(encoding="utf-8").partition("\n## ")[2]
    pointed_at = re.findall(r"^.*127\.0\.0\.1:(?:9090|9093).*$", sections, re.MULTILINE)
    assert [line for line in pointed_at if "docker compose exec" not in line] == []


def test_what_opens_the_files_of_a_strict_host_to_its_containers_opens_no_secret(tmp_path: Path) -> None:
    page = (DOCS / "operations.md").read_text(encoding="utf-8").partition("### Hosts with a strict umask")[2]
    command = page.partition("```sh\n")[2].partition("```")[0]
    for folder in ("alerts", "dashboards", "data", "infra/local/tls", "infra/redis", "loadtest", "services"):
        (tmp_path / folder).mkdir(parents=True)
    files = [tmp_path / name for name in ("slo.yaml", "infra/redis/redis.conf", "infra/local/tls/key.pem")]
    for file in files:
        file.write_text("x")
        file.chmod(0o400)
    (tmp_path / "infra/local/tls").chmod(0o700)
    subprocess.run(["bash", "-ec", command], cwd=tmp_path, check=True)
    assert [file.stat().st_mode & 0o777 for file in files] == [0o444, 0o444, 0o400]
    assert (tmp_path / "infra/local/tls").stat().st_mode & 0o777 == 0o755


PERCENTILES = ("p50", "p95", "p99")


def tables(text: str) -> Iterator[list[list[str]]]:
    """The cells of every table, its heading first."""
    for block in re.findall(r"(?:^\|.*\|$\n?){3,}", text, re.MULTILINE):
        head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
        yield [head, *rows]


def numbers(cells: list[str]) -> list[float]:
    """The first number of each cell that has one."""
    found = [re.search(r"\d[\d,]*(?:\.\d+)?", cell) for cell in cells]
    return [float(number[0].replace(",", "")) for number in found if number]


def percentiles(table: list[list[str]]) -> Iterator[tuple[str, list[float]]]:
    """(where, p50, p95 and p99) wherever a table gives the three, in columns or in one cell."""
    head, *rows = table
    starts = [
        at for at in range(len(head) - 2)
        if all(re.search(rf"\b{name}\b", head[at + step]) for step, name in enumerate(PERCENTILES))
    ]  # fmt: skip
    for row in rows:
        for at in starts:
            yield f"{row[0]}, {head[at]}", numbers(row[at : at + 3])
        for name, cell in zip(head[1:], row[1:], strict=False):
            if "p50 / p95 / p99" in row[0] + name and cell.count(" / ") >= 2:
                yield f"{row[0]}, {name}", numbers(cell.split(" / ")[:3])


def unordered(text: str) -> list[str]:
    """What says that more requests are quicker than fewer."""
    found = (entry for table in tables(text) for entry in percentiles(table))
    return [f"{where}: {values}" for where, values in found if values != sorted(values)]


def test_no_table_has_a_p50_above_its_p95_or_that_above_its_p99() -> None:
    pages = [*DOCS.rglob("*.md"), *ROOT.glob("*.md"), ROOT / "loadtest/bench/RESULTS.md"]
    texts = [path.read_text(encoding="utf-8") for path in pages]
    assert sum(len(list(percentiles(table))) for text in texts for table in tables(text)) > 50
    assert [entry for text in texts for entry in unordered(text)] == []


def test_percentiles_out_of_order_are_found_in_columns_and_in_a_cell() -> None:
    columns = "| query | cold p50 | p95 | p99 |\n| --- | --- | --- | --- |\n| a | 13 | 4.3 | 7 |\n| b | 1 | 2 | 2 |\n"
    assert unordered(columns) == ["a, cold p50: [13.0, 4.3, 7.0]"]
    cell = "| | run |\n| --- | --- |\n| p50 / p95 / p99 ms | 3.1 / 24.7 / 13.6 (at 300) |\n"
    assert unordered(cell) == ["p50 / p95 / p99 ms, run: [3.1, 24.7, 13.6]"]
