"""The scenarios: how many people, for how long, and which objectives decide. Users come in multiples of slo.yaml's."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .verdict import ALL

PEOPLE = "people"
FULL_SPEED = "full speed"


@dataclass(frozen=True)
class Stage:
    """`users` people for `seconds`, `spawn_rate` of them starting each second; `full_speed`: without think times."""

    name: str
    users: int
    seconds: float
    spawn_rate: float = 30
    full_speed: bool = False


@dataclass(frozen=True)
class Scenario:
    """What happens, and the objectives that decide (others are shown)."""

    name: str
    stages: tuple[Stage, ...]
    judged: frozenset[str]
    no_cache: bool = False
    publishes: bool = False

    @property
    def seconds(self) -> float:
        """Length of the whole run."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def users(self) -> int:
        """Most people at once."""
        return max(stage.users for stage in self.stages)

    def lasting(self, seconds: float) -> Scenario:
        """The same with every stage stretched or shortened to `seconds` in all."""
        factor = seconds / self.seconds
        return replace(self, stages=tuple(replace(s, seconds=s.seconds * factor) for s in self.stages))


def scenarios(users: int) -> dict[str, Scenario]:
    """Every scenario, for the number of users that slo.yaml asks for."""
    crowd, everyone = users * 10, 1000
    answers = frozenset({"availability", "latency", "p95", "users"})
    made = [
        # People with think times offer what people offer (some 15 requests a second from 30); what the service can do for
        # the same number of users is seen when they stop thinking.
        Scenario("slo", (Stage(PEOPLE, users, 90), Stage(FULL_SPEED, users, 30, full_speed=True)), ALL),
        # Nothing cached: a hit rate would be meaningless.
        Scenario("cold", (Stage(PEOPLE, users, 60),), answers, no_cache=True),
        Scenario(
            "spike",
            (Stage("before", users, 30), Stage("spike", crowd, 60, spawn_rate=100), Stage("after", users, 30)),
            answers,
        ),
        Scenario("scale", (Stage(PEOPLE, everyone, 120, spawn_rate=50),), answers),
        Scenario("soak", (Stage(PEOPLE, users, 3600),), answers | {"hit_rate", "memory"}),
        # A new snapshot starts with an empty cache, by design: the hit rate is shown, not judged.
        Scenario("publish", (Stage(PEOPLE, users, 120),), answers, publishes=True),
    ]
    return {scenario.name: scenario for scenario in made}
