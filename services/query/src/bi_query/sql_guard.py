"""SQL of a stranger -> exactly one SELECT over the snapshot's relations, or a refusal with code and position.

**Threat.** A client sends any text: to change state (DDL, DML or COPY inside a CTE, SET, temp tables,
CHECKPOINT), to read what is not the snapshot's (files, network, environment, settings, catalogue, log), to
run SQL hidden in a string (`query('..')`), or to hurt the process while it parses. The engine's connection
is read only, without external access, its configuration locked; that alone still lets through temp tables,
CALL, PRAGMA, `duckdb_settings()`, `query()`, `write_log()` and more. Both layers stand so that one mistake
in either is not enough.

**Method.** DuckDB's own parser decides; no pattern is matched over SQL text. DuckDB's tokens bound the
nesting (the parser's time grows with its square) and show where a trailing semicolon is cut; what is left
is parsed by `json_serialize_sql` in a private, empty, locked in-memory DuckDB, and `sql_tree` walks the
tree without recursion. Deny is the default: a class, type or key of the tree that is not listed there is
refused, so what a new DuckDB version adds is refused until someone has looked at it. A table is a CTE in
scope or a relation of the snapshot, bare or qualified by `main`; a function's last name part must be listed
in `sql_functions`, whatever stands before it (`x.lower()` and `main.lower(x)` are one tree). The text
parsed is, to the byte, the text returned to be run.

**Known gaps.** (1) Cost is not judged: `range(1e12)`, cross joins and endless recursive CTEs are for the
engine's time, memory and row limits. Those have holes of their own: DuckDB does not count the strings and
lists of expressions in its memory limit (`len(generate_series(1, 400000000))` took 3.5 GB under a limit of
256 MB), and one call over a huge value hears no time-out (`levenshtein` or a regular expression, each side
50,000 characters long). `sql_arguments` takes the short ways away; the rest needs a memory limit on the
process and a restart. (2) A DuckDB InternalException or FatalException closes the database instance for
good; functions seen to raise one are not listed, others may. (3) `PIVOT .. ON x` without `IN (..)` is
several statements to DuckDB: refused, with the advice to add IN. (4) `current_user`, `current_catalog` and
the like without parentheses are column references to the parser and answer constants (`duckdb`, the
snapshot's name). (5) Views of the snapshot are trusted: what they call is not looked at. (6) Chains of more
than about 330 operators (`a || b || ..`; not AND, OR, IN lists) and sub-queries nested deeper than about 60
are refused as too deep. (7) A bug in DuckDB's parser or in a listed function is not stopped here: run the
service without privileges.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

import duckdb
import orjson

from .errors import SqlRefused
from .sql_tree import TreeError, Walk, fold

MAX_BRACKET_DEPTH: Final = 64
MAX_OPERATOR_RUN: Final = 32
_PARSER_CONFIG: Final = {
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "threads": "1",
    "memory_limit": "512MB",
}
# Over DuckDB's JSON, never over SQL: in a JSON string the quotes would be escaped, so this meets keys only.
_LOCATION: Final = re.compile(r'"query_location(?:_length)?":\d+,?')


@dataclass(frozen=True)
class GuardedSql:
    """One SELECT that may run.

    `sql` is the exact text to run, without trailing semicolon or comment; `normalised` is equal for texts
    that differ only in white space, comments and keyword case; `tables` are the snapshot's relations it
    reads, as the snapshot spells them; `parameters` are the names of its placeholders (`$name`; `?` and
    `$1` are named "1", ..).
    """

    sql: str
    normalised: str
    tables: frozenset[str]
    parameters: frozenset[str]


class SqlGuard:
    """Checks SQL against the relations (tables and views of schema main) of one snapshot. Thread safe.

    `qualified` allows `main.` in front of them: not where views shadow them (row policies).
    """

    def __init__(self, relations: Collection[str], *, qualified: bool = True, max_sql_chars: int = 100_000) -> None:
        self._relations = {fold(name): name for name in relations}
        self._qualified = qualified
        self._max_sql_chars = max_sql_chars
        self._parser = duckdb.connect(":memory:", config=dict(_PARSER_CONFIG))
        self._parser.execute("set lock_configuration = true")

    def check(self, sql: str) -> GuardedSql:
        """Returns the SELECT that may run, or raises SqlRefused, with a position in characters where known.

        Codes: sql_empty, sql_too_long, sql_too_deep, sql_syntax, sql_not_select, sql_multiple_statements,
        unknown_table, forbidden_table, forbidden_function, forbidden_construct. Typical cost: under 1 ms.
        """
        data = self._encode(sql)
        try:
            data = data[: _significant_end(data)]
            tree_json, statement = self._parse(data.decode())
            walk = Walk(self._relations, qualified=self._qualified)
            walk.run(statement)
        except TreeError as refusal:
            position = _characters(data, refusal.offset)
            raise SqlRefused(refusal.code, refusal.detail, position=position, may_quote_data=False) from None
        return GuardedSql(
            sql=data.decode(),
            normalised=_LOCATION.sub("", tree_json),
            tables=frozenset(walk.tables),
            parameters=frozenset(walk.parameters),
        )

    def _encode(self, sql: str) -> bytes:
        if len(sql) > self._max_sql_chars:
            detail = f"The SQL has {len(sql)} characters; the limit is {self._max_sql_chars}."
            raise SqlRefused("sql_too_long", detail, may_quote_data=False)
        if "\0" in sql:
            detail = "The SQL contains a NUL character."
            raise SqlRefused("sql_syntax", detail, position=sql.index("\0"), may_quote_data=False)
        try:
            return sql.encode()
        except UnicodeEncodeError as error:
            detail = "The SQL contains a lone surrogate, which is no character."
            raise SqlRefused("sql_syntax", detail, position=error.start, may_quote_data=False) from None

    def _parse(self, sql: str) -> tuple[str, dict[str, Any]]:
        """The one statement's tree, as DuckDB's JSON and read. Raises TreeError."""
        cursor = self._parser.cursor()
        try:
            tree_json: str = cursor.execute("select json_serialize_sql(?::varchar)", [sql]).fetchall()[0][0]
        except duckdb.Error as error:
            raise TreeError("sql_syntax", str(error)) from None
        finally:
            cursor.close()
        try:
            tree = orjson.loads(tree_json)
        except orjson.JSONDecodeError:
            raise TreeError("sql_too_deep", "The SQL is nested too deeply.") from None
        if tree["error"]:
            raise self._parse_refusal(sql, tree)
        statements = tree["statements"]
        if len(statements) != 1:
            raise _count_refusal(len(statements))
        return tree_json, statements[0]

    def _parse_refusal(self, sql: str, error: dict[str, Any]) -> TreeError:
        message = error["error_message"]
        if "expression depth limit" in message:
            return TreeError("sql_too_deep", "The SQL is nested too deeply.")
        position = error.get("position")
        syntax = TreeError("sql_syntax", message, None if position is None else int(position))
        if error["error_type"] == "parser":
            return syntax
        cursor = self._parser.cursor()
        try:
            statements = cursor.extract_statements(sql)
        except duckdb.Error:
            return syntax
        finally:
            cursor.close()
        if len(statements) != 1:
            return _count_refusal(len(statements))
        try:
            kind = statements[0].type
        except ValueError:  # a kind of statement that this version of the Python client has no name for
            return TreeError("sql_not_select", "Only SELECT is allowed here.")
        if kind == duckdb.StatementType.MULTI and _has_word(sql, b"pivot"):
            detail = "PIVOT needs its values here: PIVOT t ON column IN ('a', 'b') USING sum(x)."
            return TreeError("forbidden_construct", detail)
        if kind == duckdb.StatementType.SELECT:
            return syntax
        return TreeError("sql_not_select", f"Only SELECT is allowed here, not {kind.name}.")


def _count_refusal(count: int) -> TreeError:
    if count == 0:
        return TreeError("sql_empty", "There is no SQL statement.")
    return TreeError("sql_multiple_statements", f"There are {count} statements; send exactly one SELECT.")


def _has_word(sql: str, word: bytes) -> bool:
    """Whether a token of the text starts so; for the choice of a message only."""
    data = sql.encode()
    return any(data[start : start + len(word)].lower() == word for start, _ in duckdb.tokenize(sql))


def too_deep(sql: str) -> int | None:
    """Where, in characters, a text nests so deeply that DuckDB's parser would take minutes or gigabytes; None: nowhere."""
    data = sql.encode()
    try:
        _significant_end(data)
    except TreeError as refusal:
        if refusal.code == "sql_too_deep":
            return _characters(data, refusal.offset)
    return None


def _significant_end(data: bytes) -> int:
    """Where the text ends, in bytes, without trailing semicolons, comments and white space.

    Raises TreeError(sql_too_deep) for nesting that would make DuckDB's parser slow: its time grows with
    the square of the depth of brackets and of the length of a run of prefix operators.
    """
    tokens = duckdb.tokenize(data.decode())
    depth = run = last = 0
    for index, (start, kind) in enumerate(tokens):
        byte = data[start : start + 1]
        operator = kind == duckdb.token_type.operator
        if kind != duckdb.token_type.comment and not (operator and byte == b";"):
            last = index + 1
        if not operator:
            run = 0
        elif byte in b"([{":
            depth += 1
        elif byte in b")]}":
            depth -= 1
        else:
            run += 1
        if depth > MAX_BRACKET_DEPTH or run > MAX_OPERATOR_RUN:
            raise TreeError("sql_too_deep", "The SQL is nested too deeply.", start)
    if last == 0:
        raise _count_refusal(0)
    end = tokens[last][0] if last < len(tokens) else len(data)
    return len(data[:end].rstrip())


def _characters(data: bytes, offset: int | None) -> int | None:
    """A byte offset into UTF-8 as an offset in characters."""
    return None if offset is None else len(data[:offset].decode(errors="ignore"))
