"""The command: what to run against what, and what to leave behind."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .gauges import Gauges
from .keys import read_keys
from .limits import limits_table
from .memory import memory_row
from .objectives import BadObjectives, Objectives, load_objectives
from .outcome import Outcome, windows
from .people import World
from .questions import read_questions
from .recorder import Recorder
from .report import aligned, document, latency_table, phase_table, stage_table, write
from .run import Chores, Run
from .scenarios import Scenario, scenarios
from .service_side import MetricsPage, Prometheus, ServiceSide, Unmeasured
from .verdict import Row, Window, as_text, exit_code, judge

MISSED, NOT_RUN = 1, 2
_HERE = Path(__file__).parent


def _address(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"{text!r} is no http or https address")
    return text.rstrip("/")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="loadtest", description=__doc__)
    parser.add_argument("scenario", choices=sorted(scenarios(1)), help="what to do")
    parser.add_argument("--url", type=_address, default="http://127.0.0.1:8000", help="the service")
    parser.add_argument("--slo", type=Path, default=_HERE.parent / "slo.yaml", help="the objectives")
    side = parser.add_mutually_exclusive_group()
    side.add_argument("--prometheus", type=_address, help="read the service's side from this Prometheus")
    side.add_argument("--metrics", type=_address, help="read it from this page (default: URL/metrics)")
    side.add_argument("--client-only", action="store_true", help="judge the client's side alone")
    parser.add_argument("--seconds", type=float, help="length of the whole run (the scenario's own otherwise)")
    parser.add_argument("--pace", type=float, default=1.0, help="divides think times")
    parser.add_argument("--users", type=int, help="people (slo.yaml's otherwise); spike takes ten times as many")
    parser.add_argument("--no-cache", action="store_true", help="bypass the cache on every request")
    parser.add_argument("--queries", default="", help="only these named queries, comma separated")
    parser.add_argument("--keys-file", type=Path, help="API keys to use in turn, one a line (made up otherwise)")
    parser.add_argument("--reports", type=Path, default=_HERE / "reports", help="folder for the reports")
    parser.add_argument("--listen", type=int, default=0, help="offer Prometheus gauges on this port (0: do not)")
    parser.add_argument("--listen-host", default="127.0.0.1", help="address to offer them on")
    parser.add_argument("--linger", type=float, default=0.0, help="seconds to offer the verdict for at the end")
    parser.add_argument("--publish-command", default="", help="scenario publish: run this again and again")
    parser.add_argument("--publish-every", type=float, default=30.0, help="seconds between two of them")
    tests = parser.add_argument_group("to see it fail (a service with BI_FAULT_INJECTION=true)")
    tests.add_argument("--fault-delay", type=float, default=0.0, help="seconds that each answer is held back")
    tests.add_argument("--fault-status", type=int, default=0, help="5xx that is answered instead")
    tests.add_argument("--fault-share", type=float, default=1.0, help="share of requests that get the fault")
    tests.add_argument("--flush-every", type=float, default=0.0, help="empty the cache every so many seconds")
    return parser


class _Service:
    """The few requests that are not the load: reading the catalogue, emptying the cache."""

    def __init__(self, url: str, key: str) -> None:
        self._url = url
        self._key = key

    def ask(self, path: str, body: dict[str, Any] | None) -> Any:
        """GET or POST; the JSON document. Raises OSError."""
        data = None if body is None else json.dumps(body).encode()
        with self._send(path, data, "GET" if data is None else "POST") as answer:
            return json.load(answer)

    def flush(self, recorder: Recorder) -> None:
        """Empty the cache; counted like any request to the API."""
        started, path = time.perf_counter(), "/api/v1/cache"
        try:
            with self._send(f"{path}?pattern=*", None, "DELETE") as answer:
                status = int(answer.status)
        except OSError as error:
            status = int(getattr(error, "code", 0))
        recorder.add("cache_flush", path, status, time.perf_counter() - started, None)

    def _send(self, path: str, data: bytes | None, method: str) -> Any:
        headers = {"X-API-Key": self._key, "Content-Type": "application/json"}
        request = urllib.request.Request(self._url + path, data, headers, method=method)  # noqa: S310 - _address checked
        return urllib.request.urlopen(request, timeout=60)  # noqa: S310


def _chosen(given: argparse.Namespace, objectives: Objectives) -> Scenario:
    scenario = scenarios(given.users or objectives.users)[given.scenario]
    return scenario if given.seconds is None else scenario.lasting(given.seconds)


def _service_side(given: argparse.Namespace, objectives: Objectives) -> ServiceSide | None:
    if given.client_only:
        return None
    if given.prometheus:
        return Prometheus(given.prometheus, objectives.job)
    return MetricsPage(given.metrics or f"{given.url}/metrics")


def _world(given: argparse.Namespace, scenario: Scenario, recorder: Recorder, keys: list[str], run: str) -> World:
    faults = {}
    if given.fault_delay:
        faults["X-Fault-Delay-Seconds"] = str(given.fault_delay)
    if given.fault_status:
        faults["X-Fault-Status"] = str(given.fault_status)
    service = _Service(given.url, keys[0] if keys else f"loadtest-{run}-reads")
    return World(
        questions=read_questions(service.ask, [name for name in given.queries.split(",") if name]),
        sink=recorder,
        run=run,
        keys=keys,
        no_cache=given.no_cache or scenario.no_cache,
        pace=given.pace,
        fault_headers=faults,
        fault_share=given.fault_share,
    )


def _chores(given: argparse.Namespace, scenario: Scenario, recorder: Recorder, run: str) -> Chores:
    chores = Chores()
    if given.flush_every:
        # A key for each, so that emptying the cache does not meet the rate limit either.
        numbers = iter(range(1_000_000_000))
        chores.flush = lambda: _Service(given.url, f"loadtest-{run}-flush-{next(numbers)}").flush(recorder)
        chores.flush_every = given.flush_every
    if scenario.publishes:
        chores.publish, chores.publish_every = given.publish_command, given.publish_every
    return chores


def _judge(
    objectives: Objectives, scenario: Scenario, seen: list[Window], recorder: Recorder, outcome: Outcome, read: bool
) -> list[Row]:
    rows = judge(objectives, scenario.judged, seen, scenario.users)
    if read:
        rows.append(memory_row(outcome.memory, scenario.seconds, judged="memory" in scenario.judged))
    if scenario.publishes:
        good = sum(code == 0 for code in outcome.published)
        versions = len(recorder.versions)
        met = good == len(outcome.published) > 0 and versions > 1
        rows.append(
            Row(
                "publishes",
                "all work, new data seen",
                f"{versions} snapshots seen",
                f"{good} of {len(outcome.published)} published",
                met,
                None,
                True,
            )
        )
    return rows


def _finish(made: dict[str, Any], rows: list[Row], given: argparse.Namespace) -> None:
    print(f"\n{made['scenario']} on {made['url']}, {made['seconds']} s; service side: {made['service_side']}")
    print("\n" + as_text(rows))
    stages = stage_table(made)
    if len(stages) > 1:
        print("\nBy stage\n" + aligned(stages))
    print("\nAll answers, ms\n" + aligned(phase_table(made["phases"])))
    print("\nWhat the cache saves, ms\n" + aligned(latency_table(made["queries"], "query")))
    print("\nWhat limits it\n" + aligned(limits_table(made["limits"])))
    for gap in made["gaps"]:
        print(f"\nNot read {gap}")
    paths = write(made, given.reports)
    print("Reports: " + ", ".join(str(path) for path in paths))
    missed = "MISSED: " + ", ".join(row.slo for row in rows if not row.passed)
    none = f"none, the service's side could not be read at the end: {made['unmeasured']}"
    print("\nVERDICT: " + ("met" if made["passed"] else none if made["unmeasured"] else missed))


def main(arguments: list[str] | None = None) -> int:
    """Run a scenario. 0: all met; 1: something missed, or client and service disagree; 2: not run, or not read."""
    given = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    started = datetime.now(UTC)
    run = f"{started:%H%M%S}{os.getpid() % 1000:03d}"
    try:
        objectives = load_objectives(given.slo)
        scenario = _chosen(given, objectives)
        if scenario.publishes and not given.publish_command:
            raise BadObjectives("scenario publish needs --publish-command (make load SCENARIO=publish shows one)")
        keys = read_keys(given.keys_file) if given.keys_file else []
        recorder = Recorder(objectives)
        gauges = Gauges(scenario.name)
        if given.listen:
            gauges.serve(given.listen, given.listen_host)
        world = _world(given, scenario, recorder, keys, run)
        service = _service_side(given, objectives)
        outcome = Run(scenario, given.url, world, recorder, service, gauges, objectives).go(
            _chores(given, scenario, recorder, run)
        )
        seen = windows(outcome, recorder, objectives)
        rows = _judge(objectives, scenario, seen, recorder, outcome, service is not None)
        code = NOT_RUN if outcome.unmeasured else exit_code(rows)
        if not outcome.unmeasured:
            gauges.judged(rows)
        gauges.show(0, 0.0, 0.0, 0.0)
        head = {
            "scenario": scenario.name,
            "url": given.url,
            "started": f"{started:%Y-%m-%dT%H:%M:%SZ}",
            "service_side": "not read" if service is None else service.source,
            "stages": [vars(stage) for stage in scenario.stages],
        }
        made = document(head, rows, code == 0, recorder, outcome, seen)
        _finish(made, rows, given)
    except (BadObjectives, Unmeasured, OSError, ValueError, KeyError) as error:
        print(f"loadtest: not run: {type(error).__name__}: {error}", file=sys.stderr)
        return NOT_RUN
    time.sleep(given.linger)
    return code
