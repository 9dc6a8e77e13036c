"""From a SELECT to bytes: JSON, CSV, Arrow or Parquet, without losing a value's precision.

Every value whose DuckDB type the format cannot hold exactly is sent as the text DuckDB's own CAST ... AS VARCHAR gives
(docs/api.md has the table). The casts run inside DuckDB, chosen per column from the result's types.
"""

from __future__ import annotations

import io
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

import duckdb
import orjson
from arro3.core import RecordBatch, RecordBatchReader, Table
from arro3.io import write_ipc_stream, write_parquet

from .errors import NotAcceptable, SqlRefused

Format = Literal["json", "csv", "arrow", "parquet"]
FORMATS: tuple[Format, ...] = get_args(Format)
MEDIA_TYPES: dict[Format, str] = {
    "json": "application/json",
    "csv": "text/csv; charset=utf-8",
    "arrow": "application/vnd.apache.arrow.stream",
    "parquet": "application/vnd.apache.parquet",
}
MAX_SAFE_INTEGER = 2**53 - 1
"""Largest integer every JSON reader keeps exact (RFC 7493, I-JSON); larger ones are sent as text."""

PROBE_PREFIX = "FROM (\n"
Rows = Sequence[tuple[Any, ...]]
Grown = Callable[[int], None]
"""Told how many bytes a result has so far; raises to end it."""

_FETCH_ROWS = 4096
_INTEGERS = {"tinyint", "smallint", "integer", "utinyint", "usmallint", "uinteger", "bigint", "ubigint"}
_WIDE = {"hugeint", "uhugeint"}
_FLOATS = {"float", "double"}
_JSON_TYPES = _INTEGERS | _WIDE | _FLOATS | {"boolean", "varchar", "null"}
_ARROW_TYPES = (
    _INTEGERS | _FLOATS | {"boolean", "varchar", "null", "blob", "date", "time", "decimal", "uuid", "enum"}
) | {
    "timestamp",
    "timestamp_s",
    "timestamp_ms",
    "timestamp_ns",
    "timestamp with time zone",
}
# Not among them: INTERVAL. Arrow counts its nanoseconds in 64 bits, DuckDB its microseconds, and the export overflows
# silently; the Parquet writer has no interval at all and panics on one. Parquet spells dictionaries out.
_PARQUET_TYPES = _ARROW_TYPES - {"enum", "timestamp_s"}
_NATIVE: dict[Format, set[str]] = {
    "json": _JSON_TYPES,
    "csv": {"varchar"},
    "arrow": _ARROW_TYPES,
    "parquet": _PARQUET_TYPES,
}
_QUALITY = re.compile(r"(0(\.[0-9]{0,3})?|1(\.0{0,3})?)")
_NULL_TYPE = re.compile(r'^"NULL"')
_MOST_RANGES = 32
_REMEMBERED_ACCEPT_CHARS = 256
_CSV_QUOTED = re.compile(r'[",\r\n]|^\s|\s$')


@dataclass(frozen=True)
class Limits:
    """How much one result may hold; what is beyond is cut and `truncated` says so."""

    rows: int
    bytes: int

    def within(self, other: Limits | None) -> Limits:
        """The narrower of the two, each on its own."""
        return self if other is None else Limits(min(self.rows, other.rows), min(self.bytes, other.bytes))


@dataclass(frozen=True)
class Encoded:
    """A result as bytes of one format."""

    body: bytes
    row_count: int
    truncated: bool
    encode_seconds: float


@dataclass(frozen=True)
class Plan:
    """How a SELECT is run for a format: its columns as DuckDB types them, and the text with the casts it needs."""

    sql: str
    columns: tuple[tuple[str, str], ...]
    floats: tuple[int, ...]
    nested_floats: bool
    prefix_bytes: int = 0
    """How many bytes of `sql` stand before the caller's own text: DuckDB's error positions count from the start."""
    statement: duckdb.Statement | None = None
    """`sql` parsed, nothing bound: a quarter of a short query's processor time is parsing. None where it is not run."""


def negotiate(accept: str, explicit: str | None) -> Format:
    """The format to answer in: `?format=` if given, else the best offer for the `Accept` header, else JSON.

    Raises `NotAcceptable`.
    """
    if explicit is not None:
        if explicit not in FORMATS:
            raise NotAcceptable("unknown_format", f"unknown format {explicit[:40]!r}; use one of {', '.join(FORMATS)}")
        return explicit
    if not accept or accept == "*/*":
        return "json"
    chosen = _best_offer(accept) if len(accept) > _REMEMBERED_ACCEPT_CHARS else _remembered_offer(accept)
    if chosen is None:
        offers = ", ".join(media.partition(";")[0] for media in MEDIA_TYPES.values())
        raise NotAcceptable("not_acceptable", f"none of the accepted types can be had; offered: {offers}")
    return chosen


def _best_offer(accept: str) -> Format | None:
    """RFC 9110: the most specific range that names a type decides its quality; ties go to the range named first."""
    ranges: dict[str, tuple[float, int]] = {}
    for order, part in enumerate(accept.split(",")[:_MOST_RANGES]):
        media, _, parameters = part.strip().partition(";")
        ranges.setdefault(media.strip().lower(), (_quality(parameters), order))
    best: tuple[float, int, Format] | None = None
    for name in FORMATS:
        media = MEDIA_TYPES[name].partition(";")[0]
        found = [ranges[key] for key in (media, media.split("/")[0] + "/*", "*/*") if key in ranges]
        if found and found[0][0] > 0 and (best is None or (-found[0][0], found[0][1]) < best[:2]):
            best = (-found[0][0], found[0][1], name)
    return None if best is None else best[2]


_remembered_offer = lru_cache(maxsize=1024)(_best_offer)


def _quality(parameters: str) -> float:
    for parameter in parameters.split(";"):
        name, _, value = parameter.strip().partition("=")
        if name.strip().lower() == "q":
            return float(value.strip()) if _QUALITY.fullmatch(value.strip()) else 0.0
    return 1.0


def make_plan(cursor: duckdb.DuckDBPyConnection, sql: str, params: Mapping[str, object], fmt: Format) -> Plan:
    """Bind `sql` without running it and choose the casts `fmt` needs. Raises what DuckDB raises on SQL that cannot bind.

    `LIMIT 0` binds and types a query of any cost in about half a millisecond.
    """
    cursor.execute(f"{PROBE_PREFIX}{sql}\n) LIMIT 0", params)
    described = cursor.description or []
    cursor.fetchall()
    casts = [_target(column[1], fmt) for column in described]
    columns = tuple((column[0], _NULL_TYPE.sub("NULL", str(column[1]))) for column in described)
    floats = tuple(i for i, column in enumerate(described) if column[1].id in _FLOATS)
    nested = any(column[1].id not in _FLOATS and _holds(column[1], _FLOATS) for column in described)
    if fmt in ("json", "csv") and not any(casts):
        return Plan(sql, columns, floats, nested, statement=_parsed(cursor, sql))
    names = [f"c{i}" for i in range(len(columns))]
    items = [
        (f"{name} AS {_quoted(column[0])}" if target is None else f"CAST({name} AS {target}) AS {_quoted(column[0])}")
        for name, column, target in zip(names, columns, casts, strict=True)
    ]
    prefix = f"SELECT {', '.join(items)} FROM (\n"
    text = f"{prefix}{sql}\n) AS result({', '.join(names)})"
    statement = _parsed(cursor, text) if fmt in ("json", "csv") else None
    return Plan(text, columns, floats, nested, len(prefix.encode()), statement)


def _parsed(cursor: duckdb.DuckDBPyConnection, sql: str) -> duckdb.Statement | None:
    """What every run of `sql` may copy instead of parsing; None where it stands for several statements."""
    statements = cursor.extract_statements(sql)
    return statements[0] if len(statements) == 1 else None


def _target(kind: Any, fmt: Format) -> str | None:
    """The SQL type to cast `kind` to, or None when the format holds it as it is."""
    if fmt == "csv" or kind.id not in ("list", "array", "struct", "map", "tuple"):
        if kind.id in _NATIVE[fmt]:
            return None
        if kind.id == "timestamp_s" and fmt == "parquet":  # its writer would leave a plain integer
            return "TIMESTAMP_MS"
        # Arrow has no 128-bit integer; DuckDB's export silently drops digits beyond 38, a DECIMAL cast refuses instead.
        return "DECIMAL(38,0)" if kind.id in _WIDE and fmt != "csv" else "VARCHAR"
    children = dict(kind.children)
    if kind.id in ("list", "array"):
        inner = _target(children["child"], fmt)
        return None if inner is None else f"{inner}[{children.get('size', '')}]"
    if kind.id == "map":
        key = None if fmt != "json" or children["key"].id == "varchar" else "VARCHAR"
        key, value = key or _target(children["key"], fmt), _target(children["value"], fmt)
        return None if key is None and value is None else f"MAP({key or children['key']}, {value or children['value']})"
    targets = [_target(child, fmt) for child in children.values()]
    if not any(targets):
        return None
    if kind.id == "tuple":
        return "VARCHAR"
    fields = zip(children.items(), targets, strict=True)
    return "STRUCT(" + ", ".join(f"{_quoted(name)} {target or child}" for (name, child), target in fields) + ")"


def _holds(kind: Any, ids: set[str]) -> bool:
    if kind.id in ids:
        return True
    if kind.id not in ("list", "array", "struct", "map", "tuple"):
        return False
    return any(_holds(child, ids) for name, child in kind.children if name != "size" and not isinstance(child, list))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def encode(
    cursor: duckdb.DuckDBPyConnection,
    plan: Plan,
    params: Mapping[str, object],
    fmt: Format,
    limits: Limits,
    grown: Grown = lambda size: None,
) -> Encoded:
    """Run `plan` and encode its rows, at most `limits.rows` and about `limits.bytes`. Blocking; for a worker thread."""
    if fmt in ("arrow", "parquet"):
        return _encode_columns(cursor, plan, params, fmt, limits, grown)
    cursor.execute(plan.sql if plan.statement is None else plan.statement, params)
    encoder = _Timed(_json_rows(plan) if fmt == "json" else _csv_rows)
    pieces, count, truncated = _take(_chunks(cursor, limits.rows), encoder, limits, grown)
    if truncated:
        cursor.abort()
    if fmt == "csv":
        header = (",".join(_csv_field(name) for name, _ in plan.columns) + "\r\n").encode()
        return Encoded(header + b"".join(pieces), count, truncated, encoder.seconds)
    columns = orjson.dumps([{"name": name, "type": kind} for name, kind in plan.columns])
    tail = f'],"row_count":{count},"truncated":{"true" if truncated else "false"}}}'.encode()
    return Encoded(
        b'{"columns":' + columns + b',"rows":[' + b",".join(pieces) + tail, count, truncated, encoder.seconds
    )


class _Timed:
    """An encoder that knows how long it took."""

    def __init__(self, encoder: Callable[[Rows], bytes]) -> None:
        self._encoder = encoder
        self.seconds = 0.0

    def __call__(self, rows: Rows) -> bytes:
        started = time.perf_counter()
        piece = self._encoder(rows)
        self.seconds += time.perf_counter() - started
        return piece


def _chunks(cursor: duckdb.DuckDBPyConnection, max_rows: int) -> Iterator[tuple[Rows, bool]]:
    """Chunks of rows, and whether rows beyond `max_rows` exist. Reads one row more than it gives."""
    left = max_rows
    while rows := cursor.fetchmany(min(_FETCH_ROWS, left + 1)):
        if len(rows) > left:
            yield rows[:left], True
            return
        left -= len(rows)
        yield rows, False


def _take(
    chunks: Iterator[tuple[Rows, bool]], encoder: Callable[[Rows], bytes], limits: Limits, grown: Grown
) -> tuple[list[bytes], int, bool]:
    pieces: list[bytes] = []
    count = size = 0
    for rows, more in chunks:
        piece = encoder(rows) if rows else b""
        if size + len(piece) > limits.bytes:
            for row in rows:
                one = encoder([row])
                if size + len(one) > limits.bytes:
                    return pieces, count, True
                pieces.append(one)
                size += len(one) + 1
                count += 1
        elif piece:
            pieces.append(piece)
            size += len(piece) + 1
            count += len(rows)
        grown(size)
        if more:
            return pieces, count, True
    return pieces, count, False


def _json_rows(plan: Plan) -> Callable[[Rows], bytes]:
    def encode_rows(rows: Rows) -> bytes:
        exact = not plan.nested_floats and all(
            math.isfinite(sum(row[i] for row in rows if row[i] is not None)) for i in plan.floats
        )
        try:
            if exact:
                return orjson.dumps(rows, option=orjson.OPT_STRICT_INTEGER)[1:-1]
        except TypeError:  # an integer beyond 53 bits
            pass
        return orjson.dumps(_exact(rows), option=orjson.OPT_STRICT_INTEGER)[1:-1]

    return encode_rows


def _exact(value: Any) -> Any:
    """The same value with text in place of numbers that JSON readers would change."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int):
        return value if -MAX_SAFE_INTEGER <= value <= MAX_SAFE_INTEGER else str(value)
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if isinstance(value, dict):
        return {key: _exact(item) for key, item in value.items()}
    return [_exact(item) for item in value]


def _csv_rows(rows: Rows) -> bytes:
    return "".join(",".join(_csv_field(value) for value in row) + "\r\n" for row in rows).encode()


def _csv_field(value: str | None) -> str:
    # RFC 4180, and one thing more than the csv module of Python 3.11 can do: NULL is empty, the empty text is "".
    if value is None:
        return ""
    return '"' + value.replace('"', '""') + '"' if value == "" or _CSV_QUOTED.search(value) else value


def _encode_columns(
    cursor: duckdb.DuckDBPyConnection,
    plan: Plan,
    params: Mapping[str, object],
    fmt: Format,
    limits: Limits,
    grown: Grown,
) -> Encoded:
    try:
        relation = cursor.sql(f"{plan.sql}\nLIMIT {limits.rows + 1}", params=params)
        reader = RecordBatchReader.from_stream(relation)
        batches: list[RecordBatch] = []
        count, size, truncated = 0, 0, False
        for batch in reader:
            room = min(limits.rows - count, _fitting_rows(batch, limits.bytes - size))
            truncated = room < batch.num_rows
            kept = batch.slice(0, room) if truncated else batch
            batches.append(kept)
            count += kept.num_rows
            size += kept.nbytes
            grown(size)
            if truncated:
                break
        table = Table.from_batches(batches, schema=reader.schema)
    except duckdb.ConversionException as error:
        if "DECIMAL(38,0)" in str(error):
            message = (
                "a 128-bit integer has more than 38 digits, which Arrow and Parquet cannot hold; CAST it to VARCHAR"
            )
            raise SqlRefused("value_out_of_range", message) from error
        raise
    started = time.perf_counter()
    return Encoded(_written(table, fmt), count, truncated, time.perf_counter() - started)


def _written(table: Table, fmt: Format) -> bytes:
    sink = io.BytesIO()
    try:
        if fmt == "arrow":
            write_ipc_stream(table, sink, compression=None)
        else:
            write_parquet(table, sink)
    except BaseException as error:
        # A panic of the Rust writer is no Exception: unconverted, it would pass every handler on its way up.
        if type(error).__name__ != "PanicException":
            raise
        text = f"the {fmt} writer cannot hold one of these columns ({str(error)[:100]}); CAST it to VARCHAR"
        raise SqlRefused("not_encodable", text) from None
    return sink.getvalue()


def _fitting_rows(batch: RecordBatch, room_bytes: int) -> int:
    if batch.nbytes <= room_bytes:
        return int(batch.num_rows)
    return max(0, int(batch.num_rows * room_bytes / batch.nbytes))
