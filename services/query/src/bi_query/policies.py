"""Row policies: which rows of which relations a key sees. Declared in the catalogue, bound with a key's attributes.

**Method.** For a query under a policy each relation it reads is shadowed, in the query's own connection, by a temporary
view of the same name with the policy's predicate, so the SQL that was checked is, to the byte, the SQL that runs. The
guard lets such SQL name nothing but the policy's relations, unqualified: a qualified name would pass the view by.

**Fails closed.** A relation that the policy does not list cannot be named; a key whose attributes do not fit its policy is
refused everything. A predicate that does not bind fails the query.

**Barrier.** Were the reader's own filter evaluated before the policy's, an error in a row the reader must not see (a cast,
say) would tell of that row. DuckDB 2.0 was not seen to do that; a limit that never bites makes sure, for filters are not
pushed through it (20 million rows, one store of 300: 33 ms with it and without).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field

from .errors import ConfigurationError

AttributeType = Literal["integer", "text", "integers", "texts"]
Attribute = int | str | tuple[int, ...] | tuple[str, ...]
PLACEHOLDER = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)")
_BARRIER = 2**63 - 1


class Policy(BaseModel):
    """A declared policy: `rows` maps a relation to a SQL predicate over its columns and `$attributes`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    attributes: dict[str, AttributeType] = Field(default_factory=dict)
    rows: dict[str, str] = Field(default_factory=dict)
    shared: tuple[str, ...] = ()
    """Relations whose every row may be seen."""

    def bind(self, name: str, given: Mapping[str, object]) -> RowPolicy:
        """This policy for a key with these attributes. Raises `ConfigurationError` when they do not fit."""
        if given.keys() != self.attributes.keys():
            wanted = ", ".join(self.attributes) or "none"
            raise ConfigurationError(
                f"row policy {name!r} takes the attributes {wanted}; given: {', '.join(given) or 'none'}"
            )
        literals = {key: _literal(name, key, kind, given[key]) for key, kind in self.attributes.items()}
        rows = {
            relation: PLACEHOLDER.sub(lambda found: literals[found[1]], predicate)
            for relation, predicate in self.rows.items()
        }
        return RowPolicy(name, rows, frozenset(self.shared))


@dataclass(frozen=True)
class RowPolicy:
    """A policy with a key's values in it. `predicates` maps a relation to SQL without placeholders."""

    name: str
    predicates: Mapping[str, str]
    shared: frozenset[str]

    def __post_init__(self) -> None:
        document = orjson.dumps([self.name, self.predicates, sorted(self.shared)], option=orjson.OPT_SORT_KEYS)
        object.__setattr__(self, "scope", "rows-" + blake2b(document, digest_size=16).hexdigest())

    scope: str = ""
    """Equal for keys that see the same rows by the same policy; changes with its text."""

    def visible(self, relations: Iterable[str]) -> frozenset[str]:
        """Those of a snapshot's relations that may be named."""
        return frozenset(name for name in relations if name in self.shared or name in self.predicates)

    def restricts(self, relation: str) -> bool:
        """Whether some rows of it may be hidden."""
        return relation not in self.shared

    def views(self, database: str, relations: Iterable[str]) -> tuple[str, ...]:
        """Statements that shadow `relations` in one connection to the snapshot whose catalog is called `database`."""
        return tuple(
            f"CREATE TEMP VIEW {_quoted(relation)} AS SELECT * FROM {_quoted(database)}.main.{_quoted(relation)}"
            f" WHERE ({self.predicates[relation]}\n) LIMIT {_BARRIER}"
            for relation in sorted(relations)
            if relation not in self.shared
        )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(policy: str, attribute: str, kind: AttributeType, value: object) -> str:
    """A value as SQL text. A list that is empty matches no row."""
    base = int if kind.startswith("integer") else str
    if kind.endswith("s"):
        if isinstance(value, (list, tuple)) and all(_is(base, item) for item in value):
            sql_type = "BIGINT" if base is int else "VARCHAR"
            return f"CAST([{', '.join(_scalar(item) for item in value)}] AS {sql_type}[])"
    elif _is(base, value):
        return _scalar(value)
    raise ConfigurationError(f"row policy {policy!r}: attribute {attribute!r} must be {kind}, not {value!r:.60}")


def _is(base: type, value: object) -> bool:
    if base is int:
        return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63
    return isinstance(value, str) and "\0" not in value


def _scalar(value: object) -> str:
    return str(value) if isinstance(value, int) else "'" + str(value).replace("'", "''") + "'"
