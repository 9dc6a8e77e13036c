"""The objectives, read from slo.yaml: no number of an SLO stands in this package."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


class BadObjectives(ValueError):
    """slo.yaml cannot be used; the message says which entry and why."""


@dataclass(frozen=True)
class Objectives:
    """What must hold. Ratios are 0..1, times seconds; `client_caused`: (endpoint, status) pairs that are no failures."""

    users: int
    requests_per_second: float
    availability: float
    bad_status: re.Pattern[str]
    client_caused: frozenset[tuple[str, str]]
    fast_enough: float
    threshold_seconds: float
    p95_seconds: float
    hit_rate: float
    hit_results: frozenset[str]
    ignored_results: frozenset[str]
    job: str
    endpoints: re.Pattern[str]

    def is_bad(self, endpoint: str, status: str) -> bool:
        """Whether an answer counts against availability; status "0" (no answer came) always does."""
        if status == "0":
            return True
        return bool(self.bad_status.fullmatch(status)) and (endpoint, status) not in self.client_caused

    def is_good(self, status: str) -> bool:
        """Whether it is an answer to the question: what throughput counts, for a failure can be quick."""
        return status[:1] in ("2", "3")

    def is_refused(self, status: str) -> bool:
        """Whether the service found fault with the question: a valid run has none (499 is a client that left)."""
        return status.startswith("4") and status != "499"


def load_objectives(path: Path) -> Objectives:
    """Read slo.yaml. Raises `BadObjectives`."""
    try:
        document: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        availability, latency, cache = document["availability"], document["latency"], document["cache"]
        return Objectives(
            users=int(document["users"]),
            requests_per_second=float(document["throughput"]["requests_per_second"]),
            availability=float(availability["objective_percent"]) / 100,
            bad_status=re.compile(str(availability["bad_status"])),
            client_caused=frozenset((c["endpoint"], str(c["status"])) for c in availability.get("client_caused", ())),
            fast_enough=float(latency["objective_percent"]) / 100,
            threshold_seconds=float(latency["threshold_seconds"]),
            p95_seconds=float(latency["p95_seconds"]),
            hit_rate=float(cache["hit_rate_percent"]) / 100,
            hit_results=frozenset(cache["hit_results"]),
            ignored_results=frozenset(cache["ignored_results"]),
            job=str(document["scope"]["job"]),
            endpoints=re.compile(str(document["scope"]["endpoints"])),
        )
    except OSError as error:
        raise BadObjectives(f"cannot read {path}: {error}") from error
    except (KeyError, TypeError, ValueError, re.error, yaml.YAMLError) as error:
        raise BadObjectives(f"{path}: {type(error).__name__}: {error}") from error
