"""One run: people start, stages pass, the two sides are read between them, people stop."""

from __future__ import annotations

import math
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gevent
from locust.env import Environment
from locust.runners import LocalRunner

from .connections import keep_connections
from .gauges import Gauges
from .measured import check_edges
from .objectives import Objectives
from .outcome import Outcome, StageSeen, WindowSeen
from .pauses import Pauses
from .people import CONNECTION_TIMEOUT_SECONDS, NETWORK_TIMEOUT_SECONDS, PEOPLE, World
from .recorder import Recorder
from .scenarios import Scenario, Stage
from .service_side import BUCKETS, ServiceSide, Unmeasured

# Longer than a request may take: one that is still open is counted when it ends, not forgotten.
STOP_WITHIN_SECONDS = CONNECTION_TIMEOUT_SECONDS + NETWORK_TIMEOUT_SECONDS + 5
_TICK_SECONDS = 1.0
_LAG_EVERY_SECONDS = 0.1
_LINE_EVERY_SECONDS = 5.0


@dataclass
class Chores:
    """What happens beside the requests: `flush` empties the cache each `flush_every` s, `publish` runs a command."""

    flush: Callable[[], None] | None = None
    flush_every: float = 0.0
    publish: str = ""
    publish_every: float = 30.0


class Run:
    """Runs a scenario against `url`."""

    def __init__(
        self,
        scenario: Scenario,
        url: str,
        world: World,
        recorder: Recorder,
        service: ServiceSide | None,
        gauges: Gauges,
        objectives: Objectives,
    ) -> None:
        self._scenario = scenario
        self._recorder = recorder
        self._world = world
        self._service = service
        self._gauges = gauges
        self._objectives = objectives
        for kind in PEOPLE:
            kind.world = world
        keep_connections()
        self.environment = Environment(user_classes=list(PEOPLE), host=url, stop_timeout=STOP_WITHIN_SECONDS)
        self._runner: LocalRunner = self.environment.create_local_runner()
        self._outcome = Outcome()
        self._lags: list[float] = []
        self._passed = 0.0
        self._next_line = self._next_reading = 0.0
        self._mark = "start"  # the last that could be read

    def go(self, chores: Chores) -> Outcome:
        """Run to the end. Raises `Unmeasured` when the service's side cannot be read before anything was asked.

        Later, a reading that fails is a gap; without the last one the outcome has no verdict.
        """
        outcome = self._outcome
        if self._service is not None:
            self._service.mark(self._mark, quiet=True)
            check_edges({float(edge) for edge in self._service.by_label(BUCKETS, "le")}, self._objectives)
            outcome.service_users_before = self._read("active_users")
        started = time.monotonic()
        helpers = self._start(chores)
        try:
            for stage in self._scenario.stages:
                self._window(stage)
        finally:
            gevent.killall(helpers)
            self._runner.quit()
        outcome.seconds = time.monotonic() - started
        if self._service is not None:
            outcome.service_users = self._read("active_users")
            try:
                outcome.slots = self._service.by_label("bi_engine_max_running_queries", "lane")
            except Unmeasured as error:
                self._gap(error)
        print(file=sys.stderr)
        return outcome

    def _window(self, stage: Stage) -> None:
        """A stage, and the reading after it. Where the reading before it failed, it joins the stage before."""
        windows, seen = self._outcome.windows, StageSeen(stage.name, not stage.full_speed)
        self._lags = []
        began, cpu = time.monotonic(), time.process_time()
        rate = self._stage(stage, seen)
        self._world.pauses.begin()
        idle = self._world.pauses.idle(STOP_WITHIN_SECONDS)
        seconds, cpu = time.monotonic() - began, time.process_time() - cpu
        window = WindowSeen([seen], seconds, cpu / seconds, list(self._lags), service_rate=rate)
        if self._outcome.unmeasured:
            before = windows.pop()
            window.client_cores = (before.client_cores * before.seconds + cpu) / (before.seconds + seconds)
            window.stages, window.seconds = before.stages + window.stages, before.seconds + seconds
            window.client_lags = before.client_lags + window.client_lags
        windows.append(window)
        if self._service is None:
            return
        try:
            if not idle:
                raise Unmeasured(f"requests were open {STOP_WITHIN_SECONDS:g} s after {stage.name}")
            mark = f"after {stage.name}"
            self._service.mark(mark, quiet=True)
            window.counted = self._service.counted(self._mark, mark)
            self._mark, self._outcome.unmeasured = mark, ""
        except Unmeasured as error:
            self._gap(error)
            self._outcome.unmeasured = str(error)

    def _stage(self, stage: Stage, seen: StageSeen) -> float | None:
        """Let it pass; at full speed the service's rate, if it can be read."""
        self._recorder.phase = stage.name
        self._recorder.compares = not stage.full_speed
        self._world.full_speed = stage.full_speed
        self._world.pauses.end()
        self._runner.start(stage.users, spawn_rate=stage.spawn_rate)
        began = time.monotonic()
        readable = stage.full_speed and self._middle("full speed begins")
        while (spent := time.monotonic() - began) < stage.seconds:
            self._progress(stage, seen, self._passed + spent)
            gevent.sleep(min(_TICK_SECONDS, max(0.0, stage.seconds - (time.monotonic() - began))))
        seen.users = max(seen.users, self._runner.user_count)
        self._passed += stage.seconds
        if not stage.full_speed:
            return None
        seen.rate = self._recorder.rate(began, time.monotonic())
        if self._service is None or not readable or not self._middle("full speed ends"):
            return None
        try:
            # The client's rate is taken between the same two readings, or the sides would compare different moments.
            rate = self._service.rate("full speed begins", "full speed ends", self._objectives)
        except Unmeasured as error:
            self._gap(error)
            return None
        if rate is None:
            return None
        seen.rate = self._recorder.rate(rate.began, rate.ended)
        return rate.per_second

    def _progress(self, stage: Stage, seen: StageSeen, passed: float) -> None:
        rate, p95, failures = self._recorder.recent()
        users = self._runner.user_count
        seen.users = max(seen.users, users)
        self._gauges.show(users, rate, p95, failures)
        if passed >= self._next_reading and self._service is not None:
            self._next_reading = passed + _LINE_EVERY_SECONDS
            self._outcome.memory.append((round(passed, 1), self._read("process_resident_memory_bytes")))
        live = sys.stderr.isatty()
        if passed < self._next_line and not live:
            return
        self._next_line = passed + _LINE_EVERY_SECONDS
        line = (
            f"{self._scenario.name} {passed:4.0f}/{self._scenario.seconds:.0f} s  {stage.name}: {users} users, "
            f"{rate:.1f} req/s, p95 {p95 * 1000:.0f} ms, failed {100 * failures:.1f} %"
        )
        print(f"\r{line:<100}" if live else line, end="" if live else "\n", file=sys.stderr, flush=True)

    def _middle(self, name: str) -> bool:
        """Mark a moment while requests run; whether the service could be read."""
        if self._service is None:
            return False
        try:
            self._service.mark(name)
        except Unmeasured as error:
            self._gap(error)
            return False
        return True

    def _read(self, gauge: str) -> float:
        """A gauge of the service; NaN, and a gap, when it cannot be read."""
        try:
            return math.nan if self._service is None else self._service.gauge(gauge)
        except Unmeasured as error:
            self._gap(error)
            return math.nan

    def _gap(self, error: Unmeasured) -> None:
        self._outcome.gaps.append(f"after {self._passed:.0f} s: {error}")

    def _start(self, chores: Chores) -> list[Any]:
        helpers, pauses = [gevent.spawn(self._watch_lag)], self._world.pauses
        if chores.flush is not None:
            helpers.append(gevent.spawn(_repeat, chores.flush, chores.flush_every, pauses))
        if chores.publish:
            helpers.append(gevent.spawn(_repeat, lambda: self._publish(chores.publish), chores.publish_every, None))
        return helpers

    def _watch_lag(self) -> None:
        """How late this process wakes up: what the client adds to the times it measures."""
        while True:
            due = time.monotonic() + _LAG_EVERY_SECONDS
            gevent.sleep(_LAG_EVERY_SECONDS)
            self._lags.append(time.monotonic() - due)

    def _publish(self, command: str) -> None:
        done = subprocess.run(shlex.split(command), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
        self._outcome.published.append(done.returncode)
        if done.returncode:
            print(f"publishing ended with {done.returncode}: {done.stderr.decode()[-500:]}", file=sys.stderr)


def _repeat(work: Callable[[], None], every: float, pauses: Pauses | None) -> None:
    """Again and again, but not in pauses: those are for what asks the service."""
    while True:
        gevent.sleep(every)
        if pauses is None:
            work()
        elif not pauses.on:
            with pauses.action():
                work()
