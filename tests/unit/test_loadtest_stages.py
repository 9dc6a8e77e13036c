"""How the load test judges: the two sides of each stage, memory, and what lies between stages. No sockets."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import gevent
import pytest

from loadtest.agreement import widest_gap
from loadtest.limits import limits, limits_table
from loadtest.measured import good_in
from loadtest.memory import memory_row, memory_table
from loadtest.objectives import Objectives
from loadtest.outcome import Outcome, StageSeen, WindowSeen, windows
from loadtest.pauses import Pauses
from loadtest.questions import NAMED_ENDPOINT
from loadtest.recorder import Recorder
from loadtest.scenarios import scenarios
from loadtest.service_side import Prometheus, Unmeasured
from loadtest.verdict import ALL, Row, Window, exit_code, judge
from tests.support.load_sides import GOOD, counters, failing, objectives, verdict

ROOT = Path(__file__).parents[2]


@pytest.fixture
def goals(tmp_path: Path) -> Objectives:
    return objectives(tmp_path)


# --- agreement -------------------------------------------------------------------------------------------------------

EDGES = {0.005: 960.0, 0.01: 990.0, 0.5: 1000.0, 1.0: 1000.0, math.inf: 1000.0}
"""What a service says whose p95 is 5 ms."""


def thinking(goals: Objectives, times: list[float]) -> dict[str, Row]:
    client, service = replace(GOOD, times=sorted(times)), replace(GOOD, edges=EDGES)
    return {row.slo: row for row in judge(goals, ALL, [Window("people", {"people": client}, client, service, True)], 4)}


def test_a_client_that_waits_where_the_service_does_not_disagrees_though_both_meet_the_objective(
    goals: Objectives,
) -> None:
    rows = thinking(goals, [0.008] * 650 + [0.4] * 350)
    assert rows["latency"].outcome == rows["p95"].outcome == "met"
    assert rows["times"].outcome == "DISAGREE" and exit_code(rows.values()) == 1
    assert (rows["times"].client, rows["times"].service) == ("65.00 % within 60 ms", "99.00 % within 10 ms")


def test_what_the_network_adds_to_every_request_is_no_disagreement(goals: Objectives) -> None:
    rows = thinking(goals, [0.013] * 960 + [0.4] * 40)
    assert rows["times"].outcome == "met", rows["times"]


def test_a_client_that_is_quicker_than_the_service_disagrees() -> None:
    slow = {0.005: 0.0, 0.5: 800.0, 1.0: 1000.0, math.inf: 1000.0}
    gap = widest_gap([0.001] * 1000, slow)
    assert (gap.size, gap.edge, gap.client, gap.service) == (1, 0.005, 1, 0)
    assert widest_gap([0.004] * 90 + [0.6] * 910, slow).size == pytest.approx(0.71)


def test_times_that_one_side_did_not_measure_do_not_agree(goals: Objectives) -> None:
    assert math.isnan(widest_gap([], EDGES).size) and math.isnan(widest_gap([0.1], {}).size)
    assert thinking(goals, [])["times"].outcome == "DISAGREE"


def test_at_full_speed_waiting_at_the_client_is_no_disagreement(goals: Objectives) -> None:
    client, service = replace(GOOD, times=[0.4] * 1000), replace(GOOD, edges=EDGES)
    assert verdict(goals, client, service)["times"].outcome == "not judged"


def test_failures_are_compared_as_counts_too_for_shares_near_1_hide_them(goals: Objectives) -> None:
    assert verdict(goals, replace(GOOD, bad=10), GOOD)["availability"].outcome == "met"
    for client, service in ((replace(GOOD, bad=11), GOOD), (GOOD, replace(GOOD, bad=11))):
        rows = verdict(goals, client, service)
        assert failing(rows) == {"availability"} and rows["availability"].outcome == "DISAGREE"
    assert verdict(goals, replace(GOOD, bad=100), replace(GOOD, bad=90))["availability"].outcome == "met"


# --- stages ----------------------------------------------------------------------------------------------------------


def run_of(goals: Objectives, *stages: tuple[str, bool, int, float], apart_at: tuple[str, ...] = ()) -> list[Row]:
    """The verdict on stages of (name, thinks, requests, seconds each), both sides alike; not read after `apart_at`."""
    recorder, outcome, joined = Recorder(goals), Outcome(), False
    for name, thinks, requests, seconds in stages:
        recorder.phase = name
        for _ in range(requests):
            recorder.add("q", NAMED_ENDPOINT, 200, seconds, "hit")
        seen = StageSeen(name, thinks, users=4, rate=None if thinks else 50.0)
        fast = {edge: requests * (seconds <= edge) for edge in (0.5, 1.0, math.inf)}
        counted: dict[Any, float] = {
            ("http_requests_total", (("endpoint", NAMED_ENDPOINT), ("status", "200"))): requests,
            ("bi_cache_requests_total", (("query", "q"), ("result", "hit"))): requests,
        }
        for edge, count in fast.items():
            counted["http_request_duration_seconds_bucket", (("endpoint", NAMED_ENDPOINT), ("le", str(edge)))] = count
        window = WindowSeen([seen], 10.0, 0.1, [], counted, None if thinks else 50.0)
        if joined:
            before = outcome.windows.pop()
            window.stages = before.stages + window.stages
            assert before.counted is not None
            window.counted = {key: value + before.counted[key] for key, value in counted.items()}
            window.service_rate = None
        outcome.windows.append(window)
        joined = name in apart_at
    return judge(goals, ALL, windows(outcome, recorder, goals), 4)


def test_people_who_think_decide_though_a_hundred_times_as_many_requests_are_fast_at_full_speed(
    goals: Objectives,
) -> None:
    rows = {row.slo: row for row in run_of(goals, ("people", True, 100, 3.0), ("full speed", False, 10_000, 0.01))}
    assert failing(rows) == {"latency", "p95"} and exit_code(rows.values()) == 1
    assert rows["latency"].client == "0.00 % in people" and rows["latency"].service == "0.00 % in people"
    assert [(part.stage, part.met) for part in rows["latency"].parts] == [("people", False), ("full speed", True)]


def test_the_worst_stage_of_a_spike_decides(goals: Objectives) -> None:
    stages = [("before", True, 900, 0.1), ("spike", True, 100, 3.0), ("after", True, 900, 0.1)]
    rows = {row.slo: row for row in run_of(goals, *stages)}
    assert {"latency", "p95"} <= failing(rows) and rows["latency"].client.endswith("in spike")


def test_a_stage_in_which_nothing_was_asked_is_no_success(goals: Objectives) -> None:
    rows = {row.slo: row for row in run_of(goals, ("people", True, 0, 0.1), ("full speed", False, 500, 0.1))}
    assert {"availability", "latency", "requests"} <= failing(rows)


def test_where_the_service_was_not_read_between_two_stages_the_client_still_judges_each(goals: Objectives) -> None:
    good = [("people", True, 100, 0.1), ("full speed", False, 10_000, 0.01)]
    rows = {row.slo: row for row in run_of(goals, *good, apart_at=("people",))}
    assert failing(rows) == set(), rows
    assert rows["requests"].service == "10,100" and rows["throughput"].service == "-"
    slow = [("people", True, 100, 3.0), *good[1:]]
    rows = {row.slo: row for row in run_of(goals, *slow, apart_at=("people",))}
    assert failing(rows) == {"latency", "p95"}
    assert rows["latency"].service == "99.01 %", "of the whole run"


def test_a_rate_that_was_not_read_in_the_middle_is_taken_from_end_to_end(goals: Objectives) -> None:
    recorder, outcome = Recorder(goals), Outcome()
    recorder.phase = "full speed"
    for status in [200] * 80 + [500] * 20:
        recorder.add("q", NAMED_ENDPOINT, status, 0.1, None)
    counted = counters(requests=80, fast=80) | counters("500", 20, 0)
    outcome.windows.append(WindowSeen([StageSeen("full speed", False, 4, 99.0)], 10.0, 0.1, [], counted))
    (window,) = windows(outcome, recorder, goals)
    assert window.service is not None and window.service.requests_per_second == 8
    assert window.client.requests_per_second == 8, "between the same two moments, good answers only"


def test_throughput_counts_good_answers_for_failures_can_be_quick(goals: Objectives) -> None:
    recorder, began = Recorder(goals), time.monotonic()
    for status in (200, 304, 500, 503, 0, 429, 404):
        recorder.add("q", NAMED_ENDPOINT, status, 0.001, None)
    assert recorder.rate(began - 1, began + 1) == 1
    assert good_in(counters("200", 5) | counters("503", 90) | counters("429", 9), goals) == 5


def test_clients_of_others_are_not_shown_as_this_runs_users() -> None:
    assert Outcome(seconds=60, service_users_before=1, service_users=31).told_users == 31
    assert math.isnan(Outcome(seconds=60, service_users_before=1300, service_users=1324).told_users)
    assert Outcome(seconds=301, service_users_before=1300, service_users=31).told_users == 31
    assert math.isnan(Outcome(seconds=60, service_users=31).told_users), "the first reading failed"


def test_what_limits_a_run_is_told_for_each_stage_and_lane() -> None:
    def spent(query: str, seconds: float) -> dict[Any, float]:
        return {("bi_engine_execution_seconds_sum", (("query", query),)): seconds}

    stages = [
        WindowSeen([StageSeen("people", True)], 10.0, 0.02, [0.001], spent("shops", 6.0) | spent("ad_hoc", 1.0)),
        WindowSeen([StageSeen("full speed", False)], 5.0, 0.5, [0.004], spent("shops", 30.0)),
    ]
    found = limits(Outcome(windows=stages, slots={"named": 6, "ad_hoc": 2}))
    assert found["people"]["engine_busy_share_of_slots"] == {"ad_hoc": 0.05, "named": 0.1}
    assert found["full speed"]["engine_busy_share_of_slots"] == {"ad_hoc": 0, "named": 1}
    table = limits_table(found)
    assert table[0] == ["", "people", "full speed"]
    assert ["engine_busy_share_of_slots named", "0.1", "1"] in table and ["client_lag_ms p50", "1", "4"] in table


# --- memory ----------------------------------------------------------------------------------------------------------

MIB = 1024.0**2


def soak(*quarters: float, seconds: float = 3600) -> list[tuple[float, float]]:
    """Readings with these MiB in the four quarters."""
    return [(at, quarters[min(3, int(4 * at / seconds))] * MIB) for at in range(0, int(seconds), 30)]


def test_memory_that_keeps_growing_after_the_warm_up_is_a_miss() -> None:
    assert memory_row(soak(100, 500, 540, 549), 3600, judged=True).outcome == "met", "a tenth"
    grown = memory_row(soak(100, 500, 540, 551), 3600, judged=True)
    assert grown.outcome == "MISSED" and grown.service == "500 -> 551 MiB"
    assert memory_row(soak(20, 100, 120, 131), 3600, judged=True).outcome == "met", "a small one may grow by 32 MiB"
    assert memory_row(soak(20, 100, 120, 133), 3600, judged=True).outcome == "MISSED"
    assert memory_row(soak(900, 500, 400, 300), 3600, judged=True).outcome == "met"


def test_memory_is_not_judged_in_a_short_run_and_a_long_one_that_was_not_read_is_a_miss() -> None:
    assert memory_row(soak(1, 100, 1, 900, seconds=590), 590, judged=True).outcome == "not judged"
    unread = [(at, math.nan) for at, _ in soak(1, 1, 1, 1)]
    assert memory_row(unread, 3600, judged=True).outcome == "MISSED"
    assert memory_row(soak(1, 100, 1, 900), 3600, judged=False).passed
    assert {name for name, one in scenarios(4).items() if "memory" in one.judged} == {"soak"}


def test_memory_is_reported_in_a_table_of_twenty_lines() -> None:
    readings = [[float(at), 100 * MIB + at] for at in range(0, 3600, 5)] + [[3600.0, None]]
    table = memory_table(readings)
    assert table[0] == ["seconds", "MiB"] and len(table) <= 21
    assert table[1] == ["0", "100"] and table[-1] == ["3595", "100"]
    assert len(memory_table([])) == 1 and len(memory_table(readings[:1])) == 2
    assert len(memory_table(readings[:20])) == 21


# --- pauses ----------------------------------------------------------------------------------------------------------


def test_a_pause_waits_for_those_at_work_and_stops_their_clock() -> None:
    pauses, done = Pauses(), []

    def work() -> None:
        with pauses.action():
            gevent.sleep(0.05)
            done.append(True)

    worker = gevent.spawn(work)
    gevent.sleep(0)
    pauses.begin()
    stopped = pauses.now()
    assert not pauses.idle(0.001), "still at work"
    assert pauses.idle(10) and done
    assert pauses.now() == stopped
    pauses.end()
    assert stopped <= pauses.now() < stopped + 0.04
    worker.join()


def test_a_request_still_open_at_the_end_has_the_time_to_end() -> None:
    code = (
        "from loadtest.people import Person\nfrom loadtest.run import STOP_WITHIN_SECONDS as most\n"
        "assert most > Person.network_timeout + Person.connection_timeout"
    )  # in a process of its own: locust patches sockets where it is imported
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


# --- Prometheus ------------------------------------------------------------------------------------------------------


class Scraped(Prometheus):
    """What Prometheus has of two marks ten seconds apart, scraped each second."""

    def __init__(self, series: list[dict[str, Any]]) -> None:
        super().__init__("http://prometheus", "query")
        self._marks = {"begin": (100.0, 100.0), "end": (110.0, 110.0)}
        self._local = {"begin": 0.0, "end": 10.0}
        self._series = series

    def _query(self, expression: str, when: float | None) -> list[Any]:
        return self._series


def series(instance: str, status: str, samples: dict[float, float]) -> dict[str, Any]:
    labels = {"__name__": "http_requests_total", "endpoint": NAMED_ENDPOINT, "status": status, "instance": instance}
    return {"metric": labels, "values": [[when, str(value)] for when, value in samples.items()]}


def test_a_series_that_appears_late_does_not_shorten_the_time_that_requests_are_counted_over(goals: Objectives) -> None:
    steady = {100.0 + second: 2000.0 * second for second in range(11)}
    late = {108.0: 1.0, 109.0: 1.0, 110.0: 2.0}
    for order in (1, -1):
        made = [series("a", "200", steady), series("a", "504", late)][::order]
        rate = Scraped(made).rate("begin", "end", goals)
        assert rate is not None and (rate.per_second, rate.began, rate.ended) == (2000, 0, 10)


def test_a_series_with_one_sample_counts_from_zero_where_it_appeared(goals: Objectives) -> None:
    steady = {100.0 + second: 5.0 * second for second in range(11)}
    rate = Scraped([series("a", "200", steady), series("a", "206", {110.0: 50.0})]).rate("begin", "end", goals)
    assert rate is not None and rate.per_second == 10
    assert Scraped([series("a", "200", {105.0: 9.0})]).rate("begin", "end", goals) is None, "one scrape has no length"


class Marked(Prometheus):
    """Prometheus at second 1,000: when it last scraped which replica; it scrapes `a` and `b` still."""

    def __init__(self, scrapes: dict[str, float]) -> None:
        super().__init__("http://prometheus", "query")
        self._scrapes = scrapes

    def _targets(self) -> set[str]:
        return {"a", "b"}

    def _query(self, expression: str, when: float | None) -> list[Any]:
        if expression == "time()":
            return [1000.0, "1000"]
        return [{"metric": {"instance": name}, "value": [0, str(at)]} for name, at in self._scrapes.items()]


def test_a_replica_from_before_a_restart_of_prometheus_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadtest.service_side._SCRAPE_WAIT_SECONDS", 0.7)
    Marked({"a": 1000.5, "of before": 990.0}).mark("start", quiet=True)
    for scrapes in ({"a": 1000.5, "b": 999.5}, {"of before": 1000.5}):  # one that is late, and none at all
        with pytest.raises(Unmeasured, match="was not scraped"):
            Marked(scrapes).mark("start", quiet=True)
