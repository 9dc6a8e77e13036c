"""Encodings: every DuckDB type in every format, read back by another reader; cuts that tell the truth."""

from __future__ import annotations

import csv
import io
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import duckdb
import pyarrow as pa
import pytest
from bi_query import formats
from bi_query.errors import NotAcceptable, SqlRefused
from bi_query.formats import FORMATS, Encoded, Format, Limits, encode, make_plan, negotiate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import ipc, parquet

PLENTY = Limits(rows=100_000, bytes=1 << 30)
DOCUMENT = Path(__file__).parents[2] / "docs" / "api.md"


@pytest.fixture(scope="module")
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as made:
        made.execute("SET TimeZone = 'UTC'")
        yield made


def run(
    connection: duckdb.DuckDBPyConnection, sql: str, fmt: Format, limits: Limits = PLENTY, **params: Any
) -> Encoded:
    with connection.cursor() as cursor:
        plan = make_plan(cursor, sql, params, fmt)
        return encode(cursor, plan, params, fmt, limits)


def read_arrow(body: bytes) -> pa.Table:
    return ipc.open_stream(body).read_all()


def read_parquet(body: bytes) -> pa.Table:
    return parquet.read_table(io.BytesIO(body))


def read_json(body: bytes) -> Any:
    def refuse(text: str) -> Any:
        raise AssertionError(f"{text} is not JSON")

    return json.loads(body, parse_constant=refuse)


def read_csv(body: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(body.decode(), newline="")))


# --- The documented table: docs/api.md says what each type becomes, and this is checked row by row. ---


def documented() -> list[tuple[str, str, str, str, str, str]]:
    """The rows of the table in docs/api.md: type, example, JSON, CSV, Arrow type, Parquet type."""
    rows = []
    lines = DOCUMENT.read_text(encoding="utf-8").partition("| DuckDB type |")[2].splitlines()[2:]
    for line in lines:
        if not line.startswith("|"):
            break
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        type_, example, *rest = [cell.strip("`") for cell in cells]
        rows.append((type_, example, *rest))
    return rows  # type: ignore[return-value]


@pytest.mark.parametrize(("kind", "example", "in_json", "in_csv", "in_arrow", "in_parquet"), documented())
def test_each_type_is_encoded_as_documented(
    connection: duckdb.DuckDBPyConnection,
    kind: str,
    example: str,
    in_json: str,
    in_csv: str,
    in_arrow: str,
    in_parquet: str,
) -> None:
    sql = f"SELECT {example} AS v"
    document = read_json(run(connection, sql, "json").body)
    assert document["columns"][0]["type"].startswith(kind)
    assert document["rows"][0][0] == json.loads(in_json)
    body = run(connection, sql, "csv").body.decode()
    assert body == f"v\r\n{in_csv}\r\n"
    for fmt, expected in (("arrow", in_arrow), ("parquet", in_parquet)):
        if expected.startswith("refused"):
            with pytest.raises(SqlRefused):
                run(connection, sql, fmt)  # type: ignore[arg-type]
            continue
        read = read_arrow if fmt == "arrow" else read_parquet
        column = read(run(connection, sql, fmt).body).column(0)  # type: ignore[arg-type]
        assert normal_type(column.type) == expected
        if kind == "TUPLE":  # Arrow names its members, and DuckDB then shows it as a struct
            continue
        again = "SELECT CAST(v AS VARCHAR) FROM table_read"
        table_read = pa.table({"v": column})  # noqa: F841 - DuckDB finds it by name
        assert (
            connection.execute(again).fetchall() == connection.execute(f"SELECT CAST({example} AS VARCHAR)").fetchall()
        )


def normal_type(kind: pa.DataType) -> str:
    """The type's name without the names Arrow gives to list items."""
    return re.sub(r"<(l|element|item)?: ", "<", re.sub(r" \('\w+'\)", "", str(kind)))


def test_the_documented_table_has_every_type_duckdb_knows(connection: duckdb.DuckDBPyConnection) -> None:
    known = {
        name
        for (name,) in connection.execute(
            "SELECT DISTINCT logical_type FROM duckdb_types() WHERE NOT internal"
        ).fetchall()
    } | {name for (name,) in connection.execute("SELECT DISTINCT logical_type FROM duckdb_types()").fetchall()}
    text = DOCUMENT.read_text(encoding="utf-8")
    documented_types = {row[0].partition("(")[0].removesuffix("[]") for row in documented()} | {"LIST", "ARRAY"}
    # TYPE is a type of types: no SELECT that the guard lets through gives one.
    assert {name for name in known if name not in documented_types and name not in text} <= {"TYPE"}


# --- Random types and values: what is read back is what was there. ---


def decimal_text(unscaled: int, scale: int) -> str:
    whole, rest = divmod(abs(unscaled), 10**scale)
    return f"'{'-' if unscaled < 0 else ''}{whole}.{rest:0{scale}}'"


SCALARS: dict[str, st.SearchStrategy[str]] = {
    "BOOLEAN": st.sampled_from(["true", "false"]),
    "TINYINT": st.integers(-128, 127).map(lambda n: f"'{n}'"),
    "UBIGINT": st.integers(0, 2**64 - 1).map(str),
    "BIGINT": st.integers(-(2**63), 2**63 - 1).map(lambda n: f"'{n}'"),
    "HUGEINT": st.integers(-(10**38) + 1, 10**38 - 1).map(lambda n: f"'{n}'"),
    "DOUBLE": st.floats(width=64).map(lambda x: f"'{x!r}'"),
    "FLOAT": st.floats(width=32).map(lambda x: f"'{x!r}'"),
    "DECIMAL(38,7)": st.integers(-(10**38) + 1, 10**38 - 1).map(lambda n: decimal_text(n, 7)),
    "DECIMAL(4,2)": st.integers(-9999, 9999).map(lambda n: decimal_text(n, 2)),
    "VARCHAR": st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0'")).map(lambda t: f"'{t}'"),
    "BLOB": st.binary(max_size=6).map(lambda b: "'" + "".join(f"\\x{c:02X}" for c in b) + "'"),
    "DATE": st.sampled_from(["'2024-02-29'", "'infinity'", "'0044-03-15 (BC)'", "'290000-01-01'", "'1969-12-31'"]),
    "TIME": st.sampled_from(["'00:00:00'", "'23:59:59.999999'"]),
    "TIME_NS": st.sampled_from(["'12:34:56.123456789'"]),
    "TIMETZ": st.sampled_from(["'12:34:56+15:59:59'", "'00:00:00-01'"]),
    "TIMESTAMP": st.sampled_from(["'1969-12-31 23:59:59.999999'", "'infinity'", "'0044-03-15 (BC) 01:00:00'"]),
    "TIMESTAMP_S": st.sampled_from(["'1969-12-31 23:59:59'", "'9999-12-31 23:59:59'"]),
    "TIMESTAMP_MS": st.sampled_from(["'1969-12-31 23:59:59.999'"]),
    "TIMESTAMP_NS": st.sampled_from(["'2024-01-01 00:00:00.123456789'", "'1677-09-22'"]),
    "TIMESTAMPTZ": st.sampled_from(["'2024-01-01 00:00:00.5+05:30'", "'-infinity'"]),
    "INTERVAL": st.sampled_from(["'1 year -3 days 1 microsecond'", "'5000000 hours'", "'-2000000000 months'"]),
    "UUID": st.uuids().map(lambda u: f"'{u}'"),
    "BIT": st.text("01", min_size=1, max_size=70).map(lambda t: f"'{t}'"),
    "BIGNUM": st.integers(-(10**60), 10**60).map(lambda n: f"'{n}'"),
    "ENUM('x', 'y z')": st.sampled_from(["'x'", "'y z'"]),
    "JSON": st.sampled_from(["'{\"a\": [1, null]}'"]),
    "UNION(n BIGINT, t TIME)": st.sampled_from(["7::BIGINT", "TIME '10:00:00'"]),
}


@st.composite
def typed_values(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A DuckDB type, nested or not, and SQL for some values of it."""
    kind, values = draw(nested(draw(st.integers(0, 2))))
    return kind, draw(st.lists(st.one_of(st.just("NULL"), values), min_size=1, max_size=4))


@st.composite
def nested(draw: st.DrawFn, depth: int) -> tuple[str, st.SearchStrategy[str]]:
    shape = draw(st.sampled_from(["scalar", "list", "array", "struct", "map"])) if depth else "scalar"
    if shape == "scalar":
        kind = draw(st.sampled_from(sorted(SCALARS)))
        return kind, SCALARS[kind].map(lambda text: f"({text})::{kind}")
    inner_kind, inner = draw(nested(depth - 1))
    inner_or_null = st.one_of(inner, st.just("NULL"))
    if shape == "list":
        return f"{inner_kind}[]", st.lists(inner_or_null, max_size=3).map(
            lambda items: f"[{', '.join(items)}]::{inner_kind}[]"
        )
    if shape == "array":
        return f"{inner_kind}[2]", st.lists(inner_or_null, min_size=2, max_size=2).map(
            lambda items: f"array_value({', '.join(f'({item})::{inner_kind}' for item in items)})"
        )
    if shape == "struct":
        kind = f'STRUCT("a b" {inner_kind}, c INTEGER)'
        return kind, inner_or_null.map(lambda item: f'struct_pack("a b" := ({item})::{inner_kind}, c := 1)')
    key_kind = draw(st.sampled_from(["VARCHAR", "BIGINT", "DATE", "UUID", "DECIMAL(38,7)"]))
    keys = SCALARS[key_kind].map(lambda text: f"({text})::{key_kind}")
    return f"MAP({key_kind}, {inner_kind})", st.tuples(keys, inner_or_null).map(
        lambda pair: f"map([{pair[0]}], [({pair[1]})::{inner_kind}])"
    )


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(typed_values())
def test_no_type_and_no_nesting_loses_a_value_or_ends_the_writer(
    connection: duckdb.DuckDBPyConnection, typed: tuple[str, list[str]]
) -> None:
    kind, values = typed
    rows = " UNION ALL ".join(f"SELECT {i} AS i, ({value})::{kind} AS v" for i, value in enumerate(values))
    sql = f"SELECT v FROM ({rows}) ORDER BY i"
    wanted = connection.execute(f"SELECT v::VARCHAR FROM ({rows}) ORDER BY i").fetchall()
    for fmt, parquet_bytes in (
        ("arrow", as_parquet(read_arrow(run(connection, sql, "arrow").body))),
        ("parquet", run(connection, sql, "parquet").body),
    ):
        assert [plain(text) for text in texts_in(parquet_bytes)] == [plain(text) for (text,) in wanted], fmt
    document = read_json(run(connection, sql, "json").body)
    assert document["row_count"] == len(values)
    assert [row[0] is None for row in document["rows"]] == [row[0] is None for row in wanted]
    lines = run(connection, sql, "csv").body.decode().encode()
    assert lines == b"v\r\n" + b"".join(formats._csv_field(text).encode() + b"\r\n" for (text,) in wanted)


def as_parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(table, sink)
    return sink.getvalue()


def texts_in(parquet_bytes: bytes) -> list[str | None]:
    """The first column as DuckDB's text. Read from a file: DuckDB's import of Arrow in memory crashes on nested NULLs."""
    with tempfile.NamedTemporaryFile(suffix=".parquet") as file, duckdb.connect() as reader:
        file.write(parquet_bytes)
        file.flush()
        reader.execute("SET TimeZone = 'UTC'")
        return [text for (text,) in reader.execute(f"SELECT v::VARCHAR FROM '{file.name}'").fetchall()]


def plain(text: str | None) -> str | None:
    """DuckDB's text of a nested value, without the quotes it puts around what became text inside it."""
    return None if text is None else re.sub(r"""['"\\]""", "", text).strip()


# --- JSON numbers ---


@pytest.mark.parametrize(
    ("sql", "value"),
    [
        ("9007199254740991", 2**53 - 1),
        ("-9007199254740991", -(2**53) + 1),
        ("9007199254740992", "9007199254740992"),
        ("-9007199254740992", "-9007199254740992"),
        ("[9007199254740993]", ["9007199254740993"]),
        ("{'a': {'b': 9007199254740993}}", {"a": {"b": "9007199254740993"}}),
        ("[1.5::DOUBLE, 'nan'::DOUBLE, '-inf'::DOUBLE, NULL]", [1.5, "nan", "-inf", None]),
        ("1e308::DOUBLE", 1e308),
        ("5e-324::DOUBLE", 5e-324),
        ("'a\"\\🦆' || chr(10) || chr(0)", 'a"\\🦆\n\0'),
    ],
)
def test_json_keeps_numbers_that_readers_would_change_as_text(
    connection: duckdb.DuckDBPyConnection, sql: str, value: object
) -> None:
    assert read_json(run(connection, f"SELECT {sql} AS v", "json").body)["rows"] == [[value]]


def test_many_finite_numbers_whose_sum_overflows_stay_numbers(connection: duckdb.DuckDBPyConnection) -> None:
    body = run(connection, "SELECT 1e308::DOUBLE AS v FROM range(20)", "json").body
    assert read_json(body)["rows"] == [[1e308]] * 20


# --- CSV ---


@pytest.mark.parametrize(
    ("sql", "line"),
    [
        ("NULL::VARCHAR, ''", ',""'),
        ("'a,b', 'say \"hi\"'", '"a,b","say ""hi"""'),
        ("'two' || chr(10) || 'lines', ' padded '", '"two\nlines"," padded "'),
        ("chr(13), chr(9)", '"\r","\t"'),
        ("'NULL', 'null'", "NULL,null"),
        ("'é🦆', '\"'", 'é🦆,""""'),
    ],
)
def test_csv_tells_null_from_empty_text_and_quotes_what_needs_it(
    connection: duckdb.DuckDBPyConnection, sql: str, line: str
) -> None:
    assert run(connection, f"SELECT {sql}", "csv").body.decode().partition("\r\n")[2] == line + "\r\n"


def test_csv_column_names_are_quoted_too(connection: duckdb.DuckDBPyConnection) -> None:
    body = run(connection, 'SELECT 1 AS "a,b", 2 AS "c""d"', "csv").body
    assert read_csv(body) == [["a,b", 'c"d'], ["1", "2"]]


# --- Shapes ---


@pytest.mark.parametrize("fmt", FORMATS)
def test_no_rows_still_names_the_columns(connection: duckdb.DuckDBPyConnection, fmt: Format) -> None:
    encoded = run(connection, "SELECT 1 AS a, 'x' AS b WHERE false", fmt)
    assert (encoded.row_count, encoded.truncated) == (0, False)
    assert column_names(encoded.body, fmt) == ["a", "b"]


@pytest.mark.parametrize("fmt", FORMATS)
def test_columns_of_one_name_get_the_same_distinct_names_in_every_format(
    connection: duckdb.DuckDBPyConnection, fmt: Format
) -> None:
    encoded = run(connection, 'SELECT 1 AS a, 2 AS a, 3::HUGEINT AS "A"', fmt)
    assert column_names(encoded.body, fmt) == ["a", "a_1", "A_2"]


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("sql", ["SELECT row() AS v", "SELECT struct_pack() AS v", "SELECT [struct_pack()] AS v"])
def test_a_struct_without_members_is_encoded_or_refused(
    connection: duckdb.DuckDBPyConnection, sql: str, fmt: Format
) -> None:
    try:
        assert run(connection, sql, fmt).row_count == 1
    except SqlRefused as refusal:
        assert refusal.code == "not_encodable"


@pytest.mark.parametrize("fmt", FORMATS)
def test_the_order_of_rows_is_the_one_asked_for(connection: duckdb.DuckDBPyConnection, fmt: Format) -> None:
    body = run(connection, "SELECT i::HUGEINT AS i FROM range(30000) t(i) ORDER BY hash(i)", fmt).body
    wanted = [str(i) for (i,) in connection.execute("SELECT i FROM range(30000) t(i) ORDER BY hash(i)").fetchall()]
    assert [str(value) for value in first_column(body, fmt)] == wanted


@pytest.mark.parametrize("fmt", ["arrow", "parquet"])
def test_enums_survive_more_than_one_batch(connection: duckdb.DuckDBPyConnection, fmt: Format) -> None:
    sql = "SELECT (CASE WHEN i % 2 = 0 THEN 'even' ELSE 'odd' END)::ENUM('odd', 'even') AS v FROM range(300000) t(i)"
    values = first_column(run(connection, sql, fmt, Limits(10**6, 1 << 30)).body, fmt)
    assert len(values) == 300_000
    assert values[:2] + values[-2:] == ["even", "odd", "even", "odd"]


def column_names(body: bytes, fmt: Format) -> list[str]:
    if fmt == "json":
        return [column["name"] for column in read_json(body)["columns"]]
    if fmt == "csv":
        return read_csv(body)[0]
    return (read_arrow if fmt == "arrow" else read_parquet)(body).column_names


def first_column(body: bytes, fmt: Format) -> list[Any]:
    if fmt == "json":
        return [row[0] for row in read_json(body)["rows"]]
    if fmt == "csv":
        return [row[0] for row in read_csv(body)[1:]]
    return (read_arrow if fmt == "arrow" else read_parquet)(body).column(0).to_pylist()


# --- Limits: `truncated` tells the truth ---


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("limit", [1, 2, 4095, 4096, 4097, 10_000])
@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_truncated_is_true_exactly_when_rows_are_missing(
    connection: duckdb.DuckDBPyConnection, fmt: Format, limit: int, beyond: int
) -> None:
    encoded = run(connection, f"SELECT i FROM range({limit + beyond}) t(i)", fmt, Limits(limit, 1 << 30))
    kept = min(limit, limit + beyond)
    assert (encoded.row_count, encoded.truncated) == (kept, beyond > 0)
    assert len(first_column(encoded.body, fmt)) == kept


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_byte_limit_cuts_at_a_row_and_says_so(connection: duckdb.DuckDBPyConnection, fmt: Format) -> None:
    sql = "SELECT i, repeat('x', 100) AS t FROM range(20000) t(i)"
    encoded = run(connection, sql, fmt, Limits(10**6, 200_000))
    values = first_column(encoded.body, fmt)
    assert encoded.truncated
    assert 0 < encoded.row_count == len(values) < 4000
    assert [int(value) for value in values] == list(range(encoded.row_count))
    assert len(encoded.body) < 300_000
    assert not run(connection, sql, fmt, Limits(10**6, 50_000_000)).truncated


@pytest.mark.parametrize("fmt", FORMATS)
def test_one_row_beyond_the_byte_limit_is_no_row_and_truncated(
    connection: duckdb.DuckDBPyConnection, fmt: Format
) -> None:
    encoded = run(connection, "SELECT repeat('x', 100000) AS t", fmt, Limits(10, 1000))
    assert (encoded.row_count, encoded.truncated) == (0, True)
    assert first_column(encoded.body, fmt) == []


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_cursor_serves_again_after_a_result_was_cut(connection: duckdb.DuckDBPyConnection, fmt: Format) -> None:
    with connection.cursor() as cursor:
        sql = "SELECT i FROM range(1000000) t(i)"
        for _ in range(3):
            plan = make_plan(cursor, sql, {}, fmt)
            assert encode(cursor, plan, {}, fmt, Limits(10, 1 << 20)).row_count == 10


# --- What a format cannot hold is refused, never changed and never fatal ---


@pytest.mark.parametrize("fmt", ["arrow", "parquet"])
@pytest.mark.parametrize(
    "digits", ["170141183460469231731687303715884105727", "-170141183460469231731687303715884105728"]
)
def test_integers_beyond_38_digits_are_refused_not_changed(
    connection: duckdb.DuckDBPyConnection, fmt: Format, digits: str
) -> None:
    with pytest.raises(SqlRefused, match="38 digits") as caught:
        run(connection, f"SELECT '{digits}'::HUGEINT AS v", fmt)
    assert caught.value.code == "value_out_of_range"
    assert first_column(run(connection, f"SELECT '{digits}'::HUGEINT AS v", "json").body, "json") == [digits]


def test_a_panic_of_the_writer_is_a_refusal(
    connection: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Types known to panic are cast; this takes the casts away to meet the writer's real panic.
    monkeypatch.setitem(formats._NATIVE, "parquet", formats._NATIVE["parquet"] | {"interval"})
    with pytest.raises(SqlRefused) as caught:
        run(connection, "SELECT INTERVAL 1 MONTH AS v", "parquet")
    assert caught.value.code == "not_encodable"


# --- Which format ---


@pytest.mark.parametrize(
    ("accept", "fmt"),
    [
        ("", "json"),
        ("*/*", "json"),
        ("application/json", "json"),
        ("APPLICATION/JSON", "json"),
        ("application/*", "json"),
        ("text/csv", "csv"),
        ("text/*", "csv"),
        ("text/csv;charset=utf-8", "csv"),
        ("application/vnd.apache.arrow.stream", "arrow"),
        ("application/vnd.apache.parquet", "parquet"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8", "json"),
        ("application/json;q=0.5, text/csv;q=0.9", "csv"),
        ("application/json;q=0.9, text/csv;q=0.9", "json"),
        ("text/csv, application/json", "csv"),
        ("application/json;q=0, */*", "csv"),
        ("*/*, application/json;q=0", "csv"),
        ("text/csv;q=0.1, */*;q=0.5", "json"),
        ("text/html, text/csv ; q=0.001", "csv"),
        ("text/csv;q=1e9, application/json;q=0.1", "json"),
        ("text/csv;q=nan, application/json;q=0.1", "json"),
        (", ,text/csv", "csv"),
    ],
)
def test_accept_chooses_the_format(accept: str, fmt: str) -> None:
    assert negotiate(accept, None) == fmt


@pytest.mark.parametrize(
    "accept", ["text/html", "image/png, video/*", "application/json;q=0", "*/*;q=0", "json", "text/csv;q=", "\x00"]
)
def test_accepting_nothing_on_offer_is_refused(accept: str) -> None:
    with pytest.raises(NotAcceptable) as caught:
        negotiate(accept, None)
    assert caught.value.code == "not_acceptable"


@pytest.mark.parametrize("fmt", FORMATS)
def test_an_explicit_format_wins_over_accept(fmt: Format) -> None:
    assert negotiate("text/html", fmt) == fmt


@pytest.mark.parametrize("name", ["", "JSON", "xml", "json ", "arrow\x00", "x" * 10_000])
def test_an_unknown_format_is_refused(name: str) -> None:
    with pytest.raises(NotAcceptable) as caught:
        negotiate("", name)
    assert caught.value.code == "unknown_format"
    assert len(caught.value.detail) < 200


def test_every_format_has_a_media_type() -> None:
    assert set(formats.MEDIA_TYPES) == set(get_args(Format))
