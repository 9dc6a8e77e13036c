"""What a run left: the service's counters and the client's tallies, stage by stage."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from .measured import Counters, Measured, from_counters, good_in
from .objectives import Objectives
from .recorder import Recorder
from .verdict import Window

# How far back the service's gauge of clients looks.
SERVICE_REMEMBERS_SECONDS = 300.0


@dataclass
class StageSeen:
    """One stage at the client. `rate`: good answers per second, where nobody thinks."""

    name: str
    thinking: bool
    users: int = 0
    rate: float | None = None


@dataclass
class WindowSeen:
    """Stages between two readings of the service; more than one where a reading failed. `counted`: None if not read."""

    stages: list[StageSeen]
    seconds: float
    client_cores: float
    client_lags: list[float]
    counted: Counters | None = None
    service_rate: float | None = None

    @property
    def name(self) -> str:
        """Its stages' names."""
        return " + ".join(stage.name for stage in self.stages)


@dataclass
class Outcome:
    """The whole run. `gaps`: readings that failed on the way; `unmeasured`: why there is no verdict, if there is none."""

    windows: list[WindowSeen] = field(default_factory=list)
    seconds: float = 0.0
    service_users_before: float = math.nan
    service_users: float = math.nan
    slots: Mapping[str, float] = field(default_factory=dict)
    memory: list[tuple[float, float]] = field(default_factory=list)
    published: list[int] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)
    unmeasured: str = ""

    @property
    def told_users(self) -> float:
        """Clients the service saw; NaN where some of them may be others', who came before the run."""
        alone = self.service_users_before <= 1  # the load test itself, reading the catalogue
        return self.service_users if alone or self.seconds >= SERVICE_REMEMBERS_SECONDS else math.nan


def windows(outcome: Outcome, recorder: Recorder, objectives: Objectives) -> list[Window]:
    """As the verdict reads them."""
    return [_window(seen, outcome, recorder, objectives) for seen in outcome.windows]


def _window(seen: WindowSeen, outcome: Outcome, recorder: Recorder, objectives: Objectives) -> Window:
    stages = {
        stage.name: recorder.measured(recorder.together([stage.name]), stage.rate, stage.users) for stage in seen.stages
    }
    rates = [stage.rate for stage in seen.stages if stage.rate is not None]
    client = next(iter(stages.values()))
    if len(stages) > 1:
        users = max(stage.users for stage in seen.stages)
        client = recorder.measured(recorder.together(stages), rates[0] if rates else None, users)
    service: Measured | None = None
    if seen.counted is not None:
        rate = seen.service_rate
        if rate is None and rates and len(stages) == 1:  # no reading in the middle of it: then from end to end
            rate = good_in(seen.counted, objectives) / seen.seconds
            client = replace(client, requests_per_second=recorder.good(seen.name) / seen.seconds)
            stages = {seen.name: client}
        service = from_counters(seen.counted, objectives, rate, outcome.told_users)
    return Window(seen.name, stages, client, service, all(stage.thinking for stage in seen.stages))
