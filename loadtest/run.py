"""One run: people start, phases pass, the two sides are read, people stop."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gevent
from locust.env import Environment
from locust.runners import LocalRunner

from .connections import keep_connections
from .gauges import Gauges
from .measured import Counters
from .objectives import Objectives
from .people import PEOPLE, World
from .recorder import Recorder
from .scenarios import Scenario, Stage
from .service_side import ServiceSide

STOP_WITHIN_SECONDS = 30
_TICK_SECONDS = 1.0
_LAG_EVERY_SECONDS = 0.1
_LINE_EVERY_SECONDS = 5.0


@dataclass
class Outcome:
    """What a run left: counters of the service over its window (None without a service side), and the client's tallies."""

    counted: Counters | None
    service_rate: float | None
    client_rate: float | None
    client_users: int
    service_users: float
    seconds: float
    client_cores: float
    client_lags: list[float] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)
    published: list[int] = field(default_factory=list)


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
        self._users = 0
        self._outcome = Outcome(None, None, None, 0, 0.0, 0.0, 0.0)
        self._next_line = 0.0

    def go(self, chores: Chores) -> Outcome:
        """Run to the end. Raises `Unmeasured` when the service's side cannot be read."""
        self._mark("start", quiet=True)
        started, cpu = time.monotonic(), time.process_time()
        helpers = self._start(chores)
        passed = 0.0
        for stage in self._scenario.stages:
            self._stage(stage, passed)
            passed += stage.seconds
        gevent.killall(helpers)
        self._runner.quit()
        outcome = self._outcome
        outcome.client_cores = (time.process_time() - cpu) / (time.monotonic() - started)
        outcome.seconds = time.monotonic() - started
        outcome.client_users = self._users
        if self._service is not None:
            outcome.service_users = self._service.gauge("active_users")
            self._mark("end", quiet=True)
            outcome.counted = self._service.counted("start", "end")
        print(file=sys.stderr)
        return outcome

    def _stage(self, stage: Stage, passed: float) -> None:
        self._recorder.phase = stage.name
        self._recorder.compares = not stage.full_speed
        self._world.full_speed = stage.full_speed
        self._runner.start(stage.users, spawn_rate=stage.spawn_rate)
        began = time.monotonic()
        if stage.full_speed:
            self._mark("full speed begins")
        while (spent := time.monotonic() - began) < stage.seconds:
            self._progress(stage, passed + spent)
            gevent.sleep(min(_TICK_SECONDS, stage.seconds - spent))
        self._users = max(self._users, self._runner.user_count)
        if stage.full_speed:
            self._outcome.client_rate = self._recorder.rate(began, time.monotonic())
            self._mark("full speed ends")
            if self._service is not None:
                # The client's rate is taken between the same two readings, or the sides would compare different moments.
                rate = self._service.rate("full speed begins", "full speed ends", self._objectives)
                if rate is not None:
                    self._outcome.service_rate = rate.per_second
                    self._outcome.client_rate = self._recorder.rate(rate.began, rate.ended)

    def _progress(self, stage: Stage, passed: float) -> None:
        rate, p95, failures = self._recorder.recent()
        users = self._runner.user_count
        self._users = max(self._users, users)
        self._gauges.show(users, rate, p95, failures)
        live = sys.stderr.isatty()
        if passed < self._next_line and not live:
            return
        self._next_line = passed + _LINE_EVERY_SECONDS
        if self._service is not None:
            self._outcome.memory.append((round(passed, 1), self._service.gauge("process_resident_memory_bytes")))
        line = (
            f"{self._scenario.name} {passed:4.0f}/{self._scenario.seconds:.0f} s  {stage.name}: {users} users, "
            f"{rate:.1f} req/s, p95 {p95 * 1000:.0f} ms, failed {100 * failures:.1f} %"
        )
        print(f"\r{line:<100}" if live else line, end="" if live else "\n", file=sys.stderr, flush=True)

    def _mark(self, name: str, *, quiet: bool = False) -> None:
        if self._service is not None:
            self._service.mark(name, quiet=quiet)

    def _start(self, chores: Chores) -> list[Any]:
        helpers = [gevent.spawn(self._watch_lag)]
        if chores.flush is not None:
            helpers.append(gevent.spawn(_repeat, chores.flush, chores.flush_every))
        if chores.publish:
            helpers.append(gevent.spawn(_repeat, lambda: self._publish(chores.publish), chores.publish_every))
        return helpers

    def _watch_lag(self) -> None:
        """How late this process wakes up: what the client adds to the times it measures."""
        while True:
            due = time.monotonic() + _LAG_EVERY_SECONDS
            gevent.sleep(_LAG_EVERY_SECONDS)
            self._outcome.client_lags.append(time.monotonic() - due)

    def _publish(self, command: str) -> None:
        done = subprocess.run(shlex.split(command), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
        self._outcome.published.append(done.returncode)
        if done.returncode:
            print(f"publishing ended with {done.returncode}: {done.stderr.decode()[-500:]}", file=sys.stderr)


def _repeat(work: Callable[[], None], every: float) -> None:
    while True:
        gevent.sleep(every)
        work()
