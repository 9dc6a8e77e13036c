"""The load test's arithmetic and judgement, and what its people ask: no sockets."""

from __future__ import annotations

import math
import os
import random
import resource
import socket
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from geventhttpclient.connectionpool import ConnectionPool

from loadtest.agreement import apart
from loadtest.connections import keep_connections
from loadtest.keys import RESERVE, KeyRing, read_keys
from loadtest.measured import bucket_quantile, from_counters, increase, percentile
from loadtest.objectives import BadObjectives, Objectives, load_objectives
from loadtest.questions import AD_HOC_ENDPOINT, NAMED_ENDPOINT, Questions, Zipf, read_questions
from loadtest.recorder import Recorder
from loadtest.scenarios import scenarios
from loadtest.verdict import ALL, Window, as_text, exit_code, judge
from tests.support.load_sides import GOOD, counters, failing, objectives, verdict

ROOT = Path(__file__).parents[2]


@pytest.fixture
def goals(tmp_path: Path) -> Objectives:
    return objectives(tmp_path)


# --- objectives ------------------------------------------------------------------------------------------------------


def test_the_repositorys_slo_yaml_can_be_judged() -> None:
    goals = load_objectives(ROOT / "slo.yaml")
    assert 0 < goals.hit_rate < 1 and 0 < goals.availability < 1 and goals.users > 0


def test_no_answer_is_a_failure_and_so_is_5xx_unless_the_client_caused_it(goals: Objectives) -> None:
    assert goals.is_bad(NAMED_ENDPOINT, "0")
    assert goals.is_bad(NAMED_ENDPOINT, "504")
    assert not goals.is_bad(AD_HOC_ENDPOINT, "504")
    assert not goals.is_bad(NAMED_ENDPOINT, "429")


def test_a_missing_objective_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadObjectives, match="hit_rate_percent"):
        objectives(tmp_path, cache={})


# --- arithmetic ------------------------------------------------------------------------------------------------------


def test_a_percentile_is_a_value_that_was_measured() -> None:
    assert percentile([1, 2, 3, 4], 0.5) == 2
    assert percentile(list(range(1, 101)), 0.95) == 95
    assert percentile([7.0], 0.99) == 7
    assert math.isnan(percentile([], 0.5))


def test_difference_is_a_share_of_the_larger_and_nothing_against_something_is_no_agreement() -> None:
    assert apart(90, 100) == apart(100, 90) == pytest.approx(0.1)
    assert apart(0, 0) == 0
    assert apart(math.nan, math.nan) == 0
    assert math.isnan(apart(math.nan, 0.5))


def test_a_counter_is_followed_over_a_restart_and_from_its_first_appearance() -> None:
    assert increase([(0, 100), (5, 110), (10, 130)], 2, 10) == 30
    assert increase([(5, 4), (10, 9)], 2, 10) == 9, "a series that began within the window counts from zero"
    assert increase([(0, 100), (5, 120), (10, 3), (15, 8)], 2, 15) == 28
    assert increase([(0, 100), (5, 110), (20, 500)], 2, 10) == 10, "what comes after the window is not in it"


def test_a_quantile_of_buckets_is_interpolated_as_prometheus_does() -> None:
    assert bucket_quantile({1.0: 50, 2.0: 100, math.inf: 100}, 0.75) == pytest.approx(1.5)
    assert bucket_quantile({1.0: 50, math.inf: 100}, 0.95) == 1.0
    assert math.isnan(bucket_quantile({}, 0.95))


def test_the_services_side_counts_the_api_alone(goals: Objectives) -> None:
    probes = {
        ("http_requests_total", (("endpoint", "/health/ready"), ("method", "GET"), ("status", "503"))): 99.0,
        ("http_request_duration_seconds_bucket", (("endpoint", "/metrics"), ("le", "+Inf"))): 99.0,
    }
    seen = from_counters(counters(fast=8) | probes, goals, 5.0, 3)
    assert (seen.requests, seen.bad, seen.within_threshold, seen.within_p95) == (10, 0, 8, 8)


def test_a_bypass_is_no_lookup_and_a_shared_answer_is_a_hit(goals: Objectives) -> None:
    results = {"hit": 5.0, "miss": 3.0, "coalesced": 2.0, "bypass": 90.0}
    lookups = {
        ("bi_cache_requests_total", (("query", "q"), ("result", result), ("tier", "memory"))): count
        for result, count in results.items()
    }
    seen = from_counters(counters() | lookups, goals, None, 1)
    assert (seen.hits, seen.lookups, seen.hit_rate) == (7, 10, 0.7)


def test_an_objective_between_two_buckets_cannot_be_judged(tmp_path: Path) -> None:
    goals = objectives(tmp_path, latency={"objective_percent": 80, "threshold_seconds": 0.7, "p95_seconds": 0.5})
    with pytest.raises(ValueError, match=r"0\.7 s is no bucket edge"):
        from_counters(counters(), goals, None, 1)


def test_both_sides_count_the_same_answers_alike(goals: Objectives) -> None:
    recorder = Recorder(goals)
    recorder.phase = "people"
    for status, seconds in ((200, 0.2), (200, 0.7), (500, 3.0), (429, 0.1), (404, 0.1)):
        recorder.add("q", NAMED_ENDPOINT, status, seconds, "hit" if status == 200 else None)
    client = recorder.measured(recorder.together(["people"]), None, 1)
    assert (client.requests, client.bad, client.limited, client.refused) == (5, 1, 1, 1)
    assert (client.within_p95, client.within_threshold, client.hits) == (3, 4, 2)


def test_times_at_full_speed_say_nothing_of_the_cache(goals: Objectives) -> None:
    recorder = Recorder(goals)
    recorder.add("q", NAMED_ENDPOINT, 200, 0.1, "hit")
    recorder.compares = False
    recorder.add("q", NAMED_ENDPOINT, 200, 9.0, "hit")
    assert list(recorder.queries["q"].cached) == [0.1] and recorder.queries["q"].results["hit"] == 2


# --- verdict ---------------------------------------------------------------------------------------------------------


def test_all_well_is_exit_code_0(goals: Objectives) -> None:
    rows = verdict(goals, GOOD, GOOD)
    assert failing(rows) == set() and exit_code(rows.values()) == 0


@pytest.mark.parametrize(
    ("change", "slo"),
    [
        ({"bad": 101}, "availability"),
        ({"within_threshold": 799}, "latency"),
        ({"within_p95": 949}, "p95"),
        ({"hits": 449}, "hit_rate"),
        ({"hits": 0, "lookups": 0}, "hit_rate"),
        ({"requests_per_second": 10.0}, "throughput"),
        ({"requests_per_second": None}, "throughput"),
        ({"users": 3}, "users"),
        ({"limited": 1}, "valid_questions"),
        ({"refused": 1}, "valid_questions"),
    ],
)
def test_each_miss_is_exit_code_1_and_is_named(goals: Objectives, change: dict[str, Any], slo: str) -> None:
    seen = replace(GOOD, **change)
    rows = verdict(goals, seen, seen)
    assert failing(rows) == {slo} and exit_code(rows.values()) == 1
    assert "MISSED" in next(line for line in as_text(list(rows.values())).splitlines() if line.startswith(slo))


def test_an_objective_that_is_just_reached_is_met(goals: Objectives) -> None:
    edge = replace(GOOD, bad=100, within_threshold=800, within_p95=950, hits=450)
    assert failing(verdict(goals, edge, edge)) == set()


def test_a_miss_on_either_side_is_a_miss(goals: Objectives) -> None:
    # 8.5 % apart: the sides agree well enough, and one of them is below the objective.
    low = replace(GOOD, within_p95=915)
    assert failing(verdict(goals, low, GOOD)) == failing(verdict(goals, GOOD, low)) == {"p95"}


@pytest.mark.parametrize(
    ("change", "slo"),
    [
        ({"requests": 1200, "within_threshold": 1200, "within_p95": 1200}, "requests"),
        ({"hits": 700}, "hit_rate"),
        ({"requests_per_second": 60.0}, "throughput"),
    ],
)
def test_sides_more_than_a_tenth_apart_fail_though_both_meet_the_objective(
    goals: Objectives, change: dict[str, Any], slo: str
) -> None:
    rows = verdict(goals, GOOD, replace(GOOD, **change))
    assert failing(rows) == {slo} and rows[slo].outcome == "DISAGREE"


def test_a_side_that_measured_nothing_does_not_agree(goals: Objectives) -> None:
    silent = replace(GOOD, requests=0, within_threshold=0, within_p95=0, lookups=0, hits=0, requests_per_second=None)
    assert {"availability", "hit_rate", "requests", "throughput"} <= failing(verdict(goals, GOOD, silent))


def test_no_requests_at_all_is_no_success(goals: Objectives) -> None:
    silent = replace(GOOD, requests=0, within_threshold=0, within_p95=0, lookups=0, hits=0, requests_per_second=None)
    assert {"availability", "latency", "requests"} <= failing(verdict(goals, silent, silent))


def test_what_a_scenario_does_not_judge_is_shown_only(goals: Objectives) -> None:
    cold = replace(GOOD, hits=0, lookups=0, requests_per_second=None)
    window = Window("people", {"people": cold}, cold, cold, thinking=False)
    rows = judge(goals, scenarios(4)["cold"].judged, [window], 4)
    assert exit_code(rows) == 0
    assert {row.slo for row in rows if row.outcome == "not judged"} == {"hit_rate", "throughput", "times"}


def test_without_a_service_side_the_client_alone_is_judged(goals: Objectives) -> None:
    assert failing(verdict(goals, GOOD, None)) == set()
    assert failing(verdict(goals, replace(GOOD, bad=500), None)) == {"availability"}


# --- scenarios, keys, questions --------------------------------------------------------------------------------------


def test_scenarios_follow_the_number_of_users() -> None:
    for users in (30, 7):
        made = scenarios(users)
        assert made["slo"].users == made["cold"].users == users and made["spike"].users == 10 * users
        assert made["slo"].judged == ALL and made["slo"].seconds == 120
    assert scenarios(30)["scale"].users == 1000


def test_a_scenario_can_be_shortened_as_a_whole() -> None:
    short = scenarios(7)["slo"].lasting(12)
    assert [stage.seconds for stage in short.stages] == [9, 3] and short.users == 7


def test_a_person_takes_the_next_key_before_the_quota_ends_and_only_once() -> None:
    ring = KeyRing("anna")
    first = ring.key
    ring.answered(first, str(RESERVE + 1))
    assert ring.key == first
    for _ in range(3):  # three tiles of one dashboard, asked together
        ring.answered(first, str(RESERVE))
    assert ring.key == "anna-1"
    ring.answered(ring.key, None)
    assert ring.key == "anna-1"


def test_given_keys_are_used_in_turn() -> None:
    ring = KeyRing("anna", ["a", "b"], first=1)
    keys = []
    for _ in range(3):
        keys.append(ring.key)
        ring.answered(ring.key, "0")
    assert keys == ["b", "a", "b"]


def test_a_file_of_keys_has_one_a_line(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_text("bi_1_a\n\n  bi_2_b \r\n")
    assert read_keys(file) == ["bi_1_a", "bi_2_b"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("make[1]: Entering directory '/srv/bi'\nbi_1_a\n", "line 1: not an API key"),
        ("bi_1_a\nbi_2_b bi_3_c\n", "line 2: not an API key"),
        ("bi_1_a\n\x00\xffé\n", "line 2: not an API key"),
        ("\n", "no API key in it"),
    ],
)
def test_a_file_that_is_not_one_of_keys_is_refused_by_the_line(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "keys.txt"
    file.write_text(content)
    with pytest.raises(ValueError, match=said) as refused:
        read_keys(file)
    assert str(file) in str(refused.value)
    assert "bi_" not in str(refused.value)


def test_a_connection_is_used_again_whatever_its_descriptors_number_until_it_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ConnectionPool, "_is_socket_alive", ConnectionPool._is_socket_alive)  # as before, afterwards
    keep_connections()
    pool = ConnectionPool("127.0.0.1", 1, "127.0.0.1", 1)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, limits[1]), limits[1]))
    try:
        mine, other = socket.socketpair()
        with mine, other, socket.socket(fileno=os.dup2(mine.fileno(), 2000)) as high:
            assert pool._is_socket_alive(high)  # type: ignore[arg-type]  # gevent's sockets have the same methods
            other.send(b"x")
            assert not pool._is_socket_alive(high), "nobody asked for this"  # type: ignore[arg-type]
            high.recv(1)
            assert pool._is_socket_alive(high)  # type: ignore[arg-type]
            other.close()
            assert not pool._is_socket_alive(high)  # type: ignore[arg-type]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert not pool._is_socket_alive(high), "closed"  # type: ignore[arg-type]


def test_zipf_prefers_the_first() -> None:
    chance = random.Random(1)
    drawn = Counter(Zipf(["a", "b", "c", "d"]).draw(chance) for _ in range(4000))
    assert [item for item, _ in drawn.most_common()] == ["a", "b", "c", "d"]
    assert drawn["a"] > 3 * drawn["d"] > 0


CATALOGUE = [
    {
        "name": "shops",
        "parameters": [
            {"name": "limit", "type": "integer", "required": False, "default": 10, "minimum": 1, "maximum": 15},
            {"name": "shop", "type": "string", "required": False, "default": None, "max_length": 20},
            {
                "name": "from_date",
                "type": "date",
                "required": False,
                "default": "2017-01-15",
                "minimum": None,
                "maximum": None,
            },
            {
                "name": "to_date",
                "type": "date",
                "required": False,
                "default": "2017-03-10",
                "minimum": None,
                "maximum": None,
            },
        ],
    },
    {"name": "versions", "parameters": []},
]
TABLES = [
    {"name": "sales", "rows": 1000, "columns": [{"name": "shop", "type": "VARCHAR"}, {"name": "n", "type": "DOUBLE"}]},
    {"name": 'odd"one', "rows": 4, "columns": [{"name": "shop", "type": "VARCHAR"}]},
]


@pytest.fixture
def questions() -> Questions:
    def ask(path: str, body: dict[str, Any] | None) -> Any:
        if body is None:
            return {"queries": CATALOGUE} if path.endswith("queries") else {"tables": TABLES}
        assert '"odd""one"' in body["sql"], "values come from the smallest table that has the column"
        return {"rows": [["north", 9], ["south", 1]]}

    return read_questions(ask)


def test_questions_take_values_of_the_data_within_bounds(questions: Questions) -> None:
    chance = random.Random(2)
    seen: dict[str, set[Any]] = {}
    for _ in range(500):
        for name, value in questions.of("shops", chance).parameters.items():
            seen.setdefault(name, set()).add(value)
    assert seen["shop"] == {"north", "south"}
    assert seen["limit"] == {10, 15, 5}
    assert seen["from_date"] == {"2017-01-15", "2017-02-01", "2017-03-01"}
    assert seen["to_date"] == {"2017-01-31", "2017-02-28", "2017-03-10"}


def test_a_period_never_ends_before_it_begins(questions: Questions) -> None:
    chance = random.Random(3)
    drawn = [questions.rare(chance).parameters for _ in range(500)]
    assert all(d["from_date"] <= d["to_date"] for d in drawn if "from_date" in d or "to_date" in d)


def test_a_dashboard_asks_the_same_every_time(questions: Questions) -> None:
    assert questions.dashboard(3) == questions.dashboard(3)


def test_ad_hoc_sql_binds_its_value(questions: Questions) -> None:
    chance = random.Random(5)
    asked = [question for _ in range(200) if (question := questions.ad_hoc(chance)) is not None]
    assert any(question.parameters for question in asked)
    assert all(("$value" in str(q.sql)) == bool(q.parameters) for q in asked)
    assert not any("north" in str(q.sql) for q in asked)


def test_a_service_without_queries_cannot_be_tested() -> None:
    with pytest.raises(ValueError, match="no named query"):
        Questions([], [], {})
