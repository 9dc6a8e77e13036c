"""The guard against tables of hostile and of valid SQL, random SQL, and the installed DuckDB's function catalogue."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
from bi_query.errors import SqlRefused
from bi_query.sql_functions import EXPRESSION_FUNCTIONS, PARSER_FUNCTIONS, TABLE_FUNCTIONS
from bi_query.sql_guard import SqlGuard
from bi_query.sql_tree import TreeError, Walk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.hostile_sql import (
    ARGUMENTS,
    FUNCTIONS,
    HOSTILE,
    PARAMETER_VALUES,
    SNAPSHOT_SQL,
    SPELLINGS,
    VALID,
)

RELATIONS = ["products", "sales", "prices", "monthly", "Weekly Sales", "sales_by_store"]
GUARD = SqlGuard(RELATIONS)


def short(text: str) -> str:
    return ascii(text if len(text) < 90 else text[:60] + f"...({len(text)})")


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[duckdb.DuckDBPyConnection]:
    """A snapshot file opened as the engine opens it."""
    path: Path = tmp_path_factory.mktemp("guard") / "snapshot.duckdb"
    with duckdb.connect(str(path)) as writer:
        writer.execute(SNAPSHOT_SQL)
    config: dict[str, str | bool | int | float | list[str]] = {"enable_external_access": "false"}
    with duckdb.connect(str(path), read_only=True, config=config) as reader:
        reader.execute("set lock_configuration = true")
        yield reader


def refusal(sql: str, guard: SqlGuard = GUARD) -> SqlRefused:
    with pytest.raises(SqlRefused) as caught:
        guard.check(sql)
    return caught.value


@pytest.mark.parametrize(("sql", "code"), HOSTILE, ids=[short(sql) for sql, _ in HOSTILE])
def test_a_hostile_text_is_refused_with_its_code(sql: str, code: str) -> None:
    assert refusal(sql).code == code


@pytest.mark.parametrize("sql", VALID, ids=[short(sql) for sql in VALID])
def test_a_valid_text_passes_and_runs_on_a_snapshot(sql: str, snapshot: duckdb.DuckDBPyConnection) -> None:
    guarded = GUARD.check(sql)
    values = {name: PARAMETER_VALUES[name] for name in guarded.parameters}
    with snapshot.cursor() as cursor:
        cursor.execute(guarded.sql, values).fetchall()


def test_every_spelling_hides_what_the_same_text_without_it_may_do() -> None:
    """Guards the table itself: a text refused for another reason than its function would prove nothing."""
    for sql in SPELLINGS:
        GUARD.check(sql.replace("getenv", "lower").replace("GETENV", "LOWER").replace("GeTeNv", "LoWeR"))


def test_a_refused_argument_is_named_with_what_it_must_be() -> None:
    assert refusal("select repeat('x', $n)").detail == (
        "Argument 2 of repeat must be written out as a whole number up to 10000."
    )
    assert "lambda x:" in refusal("select list_filter([1], x -> x > 0)").detail


@pytest.mark.parametrize(
    "node",
    [
        {"class": "FUTURE_CLASS"},
        {"class": None, "type": "FUTURE_NODE"},
        {"type": "EMPTY", "future_key": None},
        {"type": "EMPTY", "sample": {"value": [{"future_key": 1}]}},
    ],
)
def test_what_a_future_duckdb_adds_to_the_tree_is_refused(node: dict[str, object]) -> None:
    with pytest.raises(TreeError) as caught:
        Walk({}, qualified=True).run({"node": node})
    assert caught.value.code == "forbidden_construct"


# Positions and details


@pytest.mark.parametrize(
    ("sql", "code", "position"),
    [
        ("select ]", "sql_syntax", 7),
        ("select 'é' ]", "sql_syntax", 11),
        ("select '😀é', getenv('x')", "forbidden_function", 13),
        ("select 'ééé' from nowhere", "unknown_table", 18),
        ("select * from sales -- é\n, 'x.csv'", "forbidden_table", 27),
        ("select 1 + sleep_ms(1)", "forbidden_function", 11),
        ("select * from range(getenv('é')::int)", "forbidden_function", 20),
        ("select 'é\0'", "sql_syntax", 9),
        ("select '😀\udfff'", "sql_syntax", 9),
        ("drop table sales", "sql_not_select", None),
    ],
)
def test_a_position_counts_characters_of_the_text_as_sent(sql: str, code: str, position: int | None) -> None:
    error = refusal(sql)
    assert (error.code, error.position) == (code, position)


def test_a_syntax_error_carries_duckdbs_own_message() -> None:
    assert refusal("select 1 frm sales x y").detail.startswith('syntax error at or near "')


def test_a_near_miss_of_a_table_name_is_suggested() -> None:
    assert "Did you mean products?" in refusal("select * from product").detail


def test_a_pivot_without_values_is_told_to_list_them() -> None:
    assert "IN (" in refusal("pivot sales on store using sum(amount)").detail


def test_a_text_over_the_limit_is_refused_before_it_is_parsed() -> None:
    guard = SqlGuard(RELATIONS, max_sql_chars=10)
    assert guard.check("select 123").sql == "select 123"
    assert refusal("select 1234", guard).code == "sql_too_long"


# What is returned


@pytest.mark.parametrize(
    ("sql", "text"),
    [
        ("select 1", "select 1"),
        ("  select 1 ;; -- é\n /* x */ ; ", "  select 1"),
        ("select ';--' -- ;", "select ';--'"),
        ('select 1 as ";";', 'select 1 as ";"'),
        ("select $$;$$;", "select $$;$$"),
        ("select /* keep */ 1", "select /* keep */ 1"),
    ],
)
def test_the_text_to_run_has_no_trailing_semicolon_or_comment(sql: str, text: str) -> None:
    assert GUARD.check(sql).sql == text


def test_the_relations_read_are_named_as_the_snapshot_names_them() -> None:
    sql = 'with c as (from SALES) select * from c, "weekly sales", main.Products, (select 1 from c)'
    assert GUARD.check(sql).tables == {"sales", "Weekly Sales", "products"}
    assert GUARD.check("with sales as (select 1) from sales").tables == frozenset()


def test_parameters_are_named_once_each() -> None:
    assert GUARD.check("select $a, $b, list_filter([1], lambda x: x > $a)").parameters == {"a", "b"}
    assert GUARD.check("select '$a', $$b$$, 1").parameters == frozenset()
    assert GUARD.check("select ?, ?").parameters == {"1", "2"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("select a from sales", "SELECT a FROM sales"),
        ("select a from sales", "  select\n\ta -- b\n from /* c */ sales ; "),
        ("select a from sales where a = $x", "select a from sales where (a=$x)"),
        ("select count(*) from sales group by a order by a", "Select count( * ) From sales Group By a Order By a"),
    ],
)
def test_texts_that_mean_the_same_normalise_to_the_same(one: str, other: str) -> None:
    assert GUARD.check(one).normalised == GUARD.check(other).normalised


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("select 1", "select 2"),
        ("select 1", "select 1.0"),
        ("select 1", "select '1'"),
        ("select 'a'", "select 'A'"),
        ("select 'a b'", "select 'a  b'"),
        ("select '--a'", "select '--b'"),
        ("select a from sales", "select b from sales"),
        ("select a as x from sales", "select a as X from sales"),
        ("select a from sales", "select a from products"),
        ("select $a", "select $b"),
        ("select $a, $b", "select $b, $a"),
        ("select a from sales order by a", "select a from sales order by a desc"),
        ("select a from sales limit 1", "select a from sales offset 1"),
        ("select distinct a from sales", "select a from sales"),
        ("select 1 union select 1", "select 1 union all select 1"),
        ("select '\"query_location\":1,'", "select '\"query_location\":2,'"),
        ('select 1 as "query_location"', 'select 1 as "query_location_length"'),
    ],
)
def test_texts_that_mean_different_things_normalise_differently(one: str, other: str) -> None:
    assert GUARD.check(one).normalised != GUARD.check(other).normalised


# The allowlist


def catalogue(*kinds: str) -> set[str]:
    query = "select lower(function_name) from duckdb_functions() where list_contains($kinds, function_type)"
    return {name for (name,) in duckdb.connect().execute(query, {"kinds": list(kinds)}).fetchall()}


def test_every_allowed_function_exists_in_the_installed_duckdb() -> None:
    expressions = catalogue("scalar", "aggregate", "macro", "window")
    assert EXPRESSION_FUNCTIONS - PARSER_FUNCTIONS - expressions == set()
    assert TABLE_FUNCTIONS - {"unnest"} - catalogue("table") == set()


def test_no_dangerous_function_is_allowed() -> None:
    prefixes = (
        *("read_", "parquet_", "duckdb_", "pragma_", "pg_get", "pg_sleep", "has_", "inet_", "json_serialize"),
        *("json_deserialize", "json_execute", "__internal", "__cast", "sql_", "query", "current_se", "current_q"),
        *("variant_", "st_", "arrow_", "pandas_", "python_", "enable_", "disable_", "create_", "truncate_"),
        *("register_", "deregister_", "destroy_", "set_", "test_", "which_", "txid_", "write_", "sleep_"),
    )
    names = """
        getenv current_setting getvariable nextval currval setval setseed glob sniff_csv summary seq_scan
        checkpoint force_checkpoint error assert_true finalize combine stats version current_database
        current_user session_user user current_catalog in_search_path histogram_values invoke to_aggregate_state
        remap_struct cast_to_type make_type replace_type parse_duckdb_log_message get_block_size
        current_connection_id current_transaction_id copy_database reservoir_quantile json_structure json_group_structure
        list_resize array_resize bitstring damerau_levenshtein editdist3 import_database vector_type
    """
    allowed = EXPRESSION_FUNCTIONS | TABLE_FUNCTIONS
    assert allowed & set(names.split()) == set()
    assert {name for name in allowed if name.startswith(prefixes)} - {"set_bit"} == set()
    assert len(allowed) > 400


@pytest.mark.parametrize("kind", ["table", "table_macro"])
def test_every_other_table_function_of_this_duckdb_is_refused_in_from(kind: str) -> None:
    for name in catalogue(kind) - TABLE_FUNCTIONS:
        assert refusal(f"from \"{name}\"('x')").code == "forbidden_function"
        assert refusal(f"select 1 from range(1), lateral main.{name}('x')").code == "forbidden_function"


def test_every_other_function_of_this_duckdb_is_refused_in_an_expression() -> None:
    names = catalogue("scalar", "aggregate", "macro", "window", "table", "table_macro", "pragma")
    names = {name for name in names - EXPRESSION_FUNCTIONS if name.replace("_", "").isalnum()}
    assert len(names) > 300
    for name in names:
        assert refusal(f"select \"{name}\"('x')").code == "forbidden_function"


# Robustness

FRAGMENTS = ["(", ")", "[", "]", "'", '"', ";", "--", "/*", "*/", "$$", ",", "::", "->", "\0", "é", "😀", "\udc80"]
WORDS = ["select", "from", "with", "x as", "pivot", "in", "not", "case", "over", "lambda x:", "union", "$a", "?", "1e9"]
seed_texts = st.sampled_from([*VALID, *SPELLINGS, *FUNCTIONS, *ARGUMENTS]).filter(lambda text: len(text) < 500)


@st.composite
def mutations(draw: st.DrawFn) -> str:
    """A known text cut, spliced with another, and sprinkled with what parsers stumble over."""
    text = draw(seed_texts)
    for _ in range(draw(st.integers(1, 4))):
        start, end = sorted((draw(st.integers(0, len(text))), draw(st.integers(0, len(text)))))
        piece = draw(
            st.one_of(
                st.sampled_from(FRAGMENTS),
                st.sampled_from(WORDS).map(lambda word: f" {word} "),
                seed_texts.map(lambda other: f" ({other}) "),
                st.text(max_size=4),
                st.just(text[start:end] * 2),
            )
        )
        text = text[:start] + piece + text[draw(st.sampled_from([start, end])) :]
    return text


@settings(max_examples=1_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutations())
def test_a_mutated_text_is_refused_or_stands_a_second_check_unchanged(text: str) -> None:
    try:
        guarded = GUARD.check(text)
    except SqlRefused as error:
        assert error.position is None or 0 <= error.position <= len(text)
        return
    assert GUARD.check(guarded.sql) == guarded
    assert not guarded.sql.rstrip().endswith(";")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=60))
def test_any_text_at_all_gives_an_answer_or_a_refusal(text: str) -> None:
    try:
        GUARD.check(text)
    except SqlRefused as error:
        assert error.code.startswith(("sql_", "forbidden_", "unknown_"))


@pytest.mark.parametrize(
    "unit",
    [
        *("(", "[", "{'a': ", "((", "- ", "+", "~ ", "not ", "case when ", "(select ", "from (", "with a as ("),
        *("f(x -> ", "a.", "a[", "1::", "a and ", "a + ", "a || ", "a, ", "exists (", "cast(", "(from t pivot ("),
        *("'", '"', "/*", "$$"),
    ],
)
def test_text_made_to_stall_the_parser_is_answered_soon(unit: str) -> None:
    text = ("select " + unit * 100_000)[:99_999] + "%"
    started = time.perf_counter()
    refusal(text)
    assert time.perf_counter() - started < 5


def test_threads_share_one_guard() -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(50):
                guarded = GUARD.check(f"select {number} as n, $p{turn} from sales")
                assert f'"text":"{number}"' in guarded.normalised
                assert guarded.parameters == {f"p{turn}"}
                assert refusal(f"select getenv('{number}')").code == "forbidden_function"
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
