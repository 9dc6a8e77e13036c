"""The benchmark's questions, comparison and arithmetic: no sockets."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections import Counter
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from loadtest.bench import report
from loadtest.bench.check import difference
from loadtest.bench.portable_sql import DATES, KINDS, Dialect, portable_sql
from loadtest.bench.report import AIMS, as_markdown, ratios
from loadtest.bench.rounds import FULL, HIT_KEYS, hit_questions, medians, not_what_it_says
from loadtest.bench.systems.base import Ask
from loadtest.bench.workload import NEW_SHARE, Question, distinct, mixed

ROOT = Path(__file__).parents[2]

# --- questions -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stream() -> list[Question]:
    return mixed(20_000)


def test_the_stream_is_the_same_every_time(stream: list[Question]) -> None:
    assert mixed(500) == stream[:500]


@pytest.mark.parametrize("length", [500, 2_000, 20_000])
def test_a_fast_system_that_gets_further_down_the_list_meets_the_same_share_of_new_questions(
    stream: list[Question], length: int
) -> None:
    assert len(set(stream[:length])) / length == pytest.approx(NEW_SHARE, rel=0.25)


@pytest.mark.parametrize("length", [100, 20_000])
def test_a_slow_system_that_stops_early_meets_the_same_mix_of_kinds(stream: list[Question], length: int) -> None:
    assert Counter(question.kind for question in stream[:length]) == dict.fromkeys(KINDS, length // len(KINDS))


def test_popular_questions_are_repeated_most(stream: list[Question]) -> None:
    times = [count for _, count in Counter(stream).most_common()]
    assert times[0] > 20 * times[100] and times[-1] == 1


def test_no_miss_was_asked_before() -> None:
    for kinds in (KINDS, ("store_ranking",)):
        questions = list(itertools.islice(distinct(kinds), FULL.misses))
        assert len({(one.kind, *one.asked.items()) for one in questions}) == FULL.misses


def test_hits_are_asked_under_as_many_keys_as_are_said() -> None:
    assert len({tuple(one.asked.items()) for one in hit_questions()}) == HIT_KEYS


@pytest.mark.parametrize("question", list(itertools.islice(distinct(("top_products",)), 40)), ids=str)
def test_days_before_whole_months_and_days_after_are_the_period_without_overlap(question: Question) -> None:
    day = {name: date.fromisoformat(str(value)) for name, value in question.values.items() if name in DATES}

    def span(first: date, end: date) -> list[date]:
        return [first + timedelta(days=number) for number in range((end - first).days)]

    months = span(day["first_month"], day["after_months"])
    before = span(day["from_date"], day["head_to_date"] + timedelta(days=1))
    after = span(day["tail_from_date"], day["to_date"] + timedelta(days=1))
    assert before + months + after == span(question.from_date, question.to_date + timedelta(days=1))
    assert day["first_month"].day == day["after_months"].day == 1


@pytest.mark.parametrize("kind", KINDS)
def test_portable_sql_names_the_department_only_where_one_is_asked_for(kind: str) -> None:
    dialect = Dialect("<{}>".format)
    assert "<department>" in portable_sql(kind, dialect, department=True)
    assert "<department>" not in portable_sql(kind, dialect, department=False)


def test_a_request_goes_over_the_wire_as_http() -> None:
    ask = Ask("/api/sql", "POST", b"select 1", {"X-API-Key": "k"})
    assert (
        ask.raw(80)
        == b"POST /api/sql HTTP/1.1\r\nHost: 127.0.0.1:80\r\nX-API-Key: k\r\nContent-Length: 8\r\n\r\nselect 1"
    )


# --- the same numbers ------------------------------------------------------------------------------------------------

EXPECTED = [{"rank": 1, "week_start": "2017-01-02", "sales_usd": 10.0, "extra": "x"}]


@pytest.mark.parametrize(
    "rows",
    [
        [{"rank": 1, "sales_usd": 10.0}],
        [{"rank": 1.0, "week_start": "2017-01-02T00:00:00"}],
        [{"sales_usd": 10.01}],
    ],
)
def test_the_same_numbers_in_other_types_are_the_same(rows: list[dict[str, Any]]) -> None:
    assert difference(EXPECTED, rows) is None


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"sales_usd": 10.02}], "row 0, sales_usd: 10.02, expected 10.0"),
        ([{"sales_usd": None}], "row 0, sales_usd: None, expected 10.0"),
        ([{"week_start": "2017-01-03"}], "row 0, week_start"),
        ([{"turnover": 10.0}], "column turnover is not the service's"),
        ([], "0 rows, expected 1"),
    ],
)
def test_a_difference_is_told(rows: list[dict[str, Any]], said: str) -> None:
    found = difference(EXPECTED, rows)
    assert found is not None and said in found


def test_two_empty_answers_compare_nothing() -> None:
    assert difference([], []) == "0 rows, expected 0"


# --- rounds, ratios, report ------------------------------------------------------------------------------------------


def figures(rate: float, **more: float) -> dict[str, float]:
    return {"requests_per_second": rate, "answers": rate, "p50_ms": 2.0, "p95_ms": 6.0, "p99_ms": 9.0, **more}


SPENT = {
    "refused": 0, "timeouts": 0, "failed_sockets": 0, "engine_runs": 10, "engine_seconds": 1, "wait_seconds": 2,
    "hit_memory": 0, "hit_redis": 0, "miss_none": 10,
    "cpu_system_seconds": 1, "cpu_redis_seconds": 0.1, "cpu_wrk_seconds": 0.1,
}  # fmt: skip
ROUNDS = {
    "hit": [figures(50), figures(40), figures(10)],
    "hit_redis": [figures(20)],
    "fastapi": [figures(50)],
    "asgi": [figures(100)],
    "miss": [figures(8, **SPENT)],
    "duckdb_threads_1": [figures(10)],
    "duckdb_threads_2": [figures(4)],
    "miss_mixed": [figures(3, **SPENT)],
    "duckdb_mixed_threads_1": [figures(2)],
    "duckdb_mixed_threads_2": [figures(6)],
    "mixed_service": [figures(90)],
    "mixed_brief": [figures(9)],
    "mixed_roapi": [figures(0)],
}


def test_ratios_are_of_the_rounds_medians_and_duckdb_counts_with_its_better_threads() -> None:
    made = ratios(medians(ROUNDS))
    assert made["hit_vs_asgi"] == 0.4 and made["hit_vs_fastapi"] == 0.8
    assert made["hit_redis_vs_asgi"] == 0.2
    assert made["miss_vs_duckdb"] == 0.8 and made["miss_mixed_vs_duckdb"] == 0.5
    assert made["mixed_vs_brief"] == 10
    assert made["p99_vs_p50_30_users"] == 4.5


def test_a_peer_that_finished_nothing_or_was_not_run_gives_no_ratio() -> None:
    made = ratios(medians(ROUNDS))
    assert made["mixed_vs_roapi"] is None
    assert "mixed_vs_datasette" not in made


def test_the_report_says_which_aims_were_missed() -> None:
    document = {
        "date": "today",
        "machine": {"cores": 2, "processor": "p"},
        "versions": {"duckdb": "9"},
        "method": {
            "rounds": 3, "round_seconds": 4, "peer_round_seconds": 9, "connections": 30, "questions_compared": 5,
            "hit": {"query": "q", "cache_keys": 3, "answer_bytes": 9}, "mixed": {"new_share": 0.1, "zipf_exponent": 1},
        },
        "given": {"this service": "everything on"},
        "titles": {name: f"title of {name}" for name in ROUNDS},
        "rounds": ROUNDS,
        "medians": medians(ROUNDS),
        "ratios": ratios(medians(ROUNDS)),
    }  # fmt: skip
    text = as_markdown(document)
    assert "| hit_vs_asgi | 0.40 | >= 0.4 | met |" in text
    assert "| miss_vs_duckdb | 0.80 | >= 0.85 | missed |" in text
    assert "| mixed_vs_roapi | none finished | >= 10 | missed |" in text
    assert all(f"title of {name}" in text for name in ROUNDS)


def test_refusals_time_outs_and_broken_connections_are_counted_apart_over_all_rounds() -> None:
    rounds = [figures(9, refused=one, timeouts=2, failed_sockets=3) for one in (1, 6)]
    document = {"titles": {"hit": "hits", "alone": "DuckDB"}, "rounds": {"hit": rounds, "alone": [figures(9)]}}
    document["medians"] = medians(document["rounds"])
    head, _, hits, alone = report._table(document, ["hit", "alone"]).splitlines()
    assert head.endswith("| refused | time-outs | broken |")
    assert hits.endswith("| 7 | 4 | 6 |") and alone.endswith("|  |  |  |")


def test_the_committed_table_is_what_the_committed_rounds_render_to() -> None:
    folder = ROOT / "loadtest/bench"
    assert (folder / "RESULTS.md").read_text() == as_markdown(json.loads((folder / "results.json").read_text()))


def test_every_aim_is_of_a_ratio_that_is_measured() -> None:
    assert AIMS.keys() <= ratios(medians(ROUNDS)).keys()


@pytest.mark.parametrize(
    ("name", "counted", "said"),
    [
        ("hit", {"answers": 9, "hit_memory": 9, "hit_redis": 0, "miss_none": 0}, None),
        ("hit", {"answers": 9, "hit_memory": 8, "hit_redis": 0, "miss_none": 1}, "8 of them hits"),
        ("hit_redis", {"answers": 9, "hit_memory": 9, "hit_redis": 0, "miss_none": 0}, "0 of them hits"),
        ("miss", {"answers": 9, "hit_memory": 0, "hit_redis": 0, "miss_none": 9}, None),
        ("miss_mixed", {"answers": 9, "hit_memory": 1, "hit_redis": 1, "miss_none": 7}, "2 of 9 answers were hits"),
    ],
)
def test_a_row_that_is_not_what_its_name_says_is_found(name: str, counted: dict[str, float], said: str | None) -> None:
    found = not_what_it_says(name, counted)
    assert found == said or (said is not None and found is not None and said in found)


def test_without_wrk_the_benchmark_says_how_to_get_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "loadtest.bench", "--quick"],
        cwd=ROOT, env={"PATH": str(tmp_path), "BI_SNAPSHOT_DIR": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "apt-get install wrk" in done.stderr


def test_what_both_use_has_one_version_in_both_lock_files() -> None:
    service, bench = (
        dict(re.findall(r"^([a-z0-9-]+)==([^ ;]+)", (ROOT / path).read_text(), re.MULTILINE))
        for path in ("services/query/requirements.lock", "loadtest/bench/requirements.lock")
    )
    shared = {"duckdb", "fastapi", "uvicorn", "uvloop", "httptools", "redis", "slowapi", "prometheus-client"}
    assert shared <= service.keys() & bench.keys()
    assert {name: service[name] for name in shared} == {name: bench[name] for name in shared}
