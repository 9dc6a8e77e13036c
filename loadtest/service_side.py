"""The service's side: increases of its counters over the window, from its own /metrics or from Prometheus."""

from __future__ import annotations

import json
import math
import time
import urllib.parse
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from prometheus_client.parser import text_string_to_metric_families

from .measured import Counters, Key, Labels, good_in, increase
from .objectives import Objectives

COUNTERS = frozenset(
    {
        "http_requests_total",
        "http_request_duration_seconds_bucket",
        "bi_cache_requests_total",
        "bi_cache_saved_seconds_total",
        "bi_engine_rejections_total",
        "bi_engine_wait_seconds_sum",
        "bi_engine_wait_seconds_count",
        "bi_engine_execution_seconds_sum",
        "bi_engine_execution_seconds_count",
        "bi_snapshot_swaps_total",
        "process_cpu_seconds_total",
    }
)
BUCKETS = "http_request_duration_seconds_bucket"
Samples = list[tuple[float, float]]  # (seconds, value)
# Labels that tell replicas apart; everything else of a target's labels is the same for all.
_TARGET = frozenset({"job", "instance", "__name__"})
_BEFORE_SECONDS = 60.0
_SCRAPE_WAIT_SECONDS = 40.0


class Unmeasured(RuntimeError):
    """The service's side cannot be read; the message says from where and why."""


@dataclass(frozen=True)
class Rate:
    """Good answers per second, and between which two moments of this process' monotonic clock they were counted."""

    per_second: float
    began: float
    ended: float


class ServiceSide(Protocol):
    """Reads the service's counters. `mark` names a moment; a window lies between two marks."""

    source: str

    def mark(self, name: str, *, quiet: bool = False) -> None:
        """Remember now as `name`; with `quiet` (no requests are running) wait until the counters up to now are in."""

    def counted(self, start: str, end: str) -> Counters:
        """Increases between two marks."""

    def rate(self, start: str, end: str, objectives: Objectives) -> Rate | None:
        """Good answers per second of the API between two marks; None when there are too few readings."""

    def gauge(self, name: str) -> float:
        """The largest current value of a gauge over replicas; NaN without one."""

    def by_label(self, name: str, label: str) -> dict[str, float]:
        """Current values of a series by one of its labels, added up over replicas and other labels."""


def _read(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=15) as answer:  # noqa: S310 - cli checks that it is http(s)
            return str(answer.read().decode("utf-8"))
    except (OSError, ValueError) as error:
        raise Unmeasured(f"cannot read {url}: {error}") from error


class MetricsPage:
    """One replica's /metrics, read at each mark: exact, and enough where there is no Prometheus."""

    def __init__(self, url: str) -> None:
        self.source = url
        self._marks: dict[str, tuple[float, dict[Key, float]]] = {}

    def mark(self, name: str, *, quiet: bool = False) -> None:
        """Read the page. It is always up to date; when within the call it was made is not known: halfway is closest."""
        asked = time.monotonic()
        text = _read(self.source)
        self._marks[name] = ((asked + time.monotonic()) / 2, self._parsed(text))

    def _parsed(self, text: str) -> dict[Key, float]:
        try:
            return {
                (sample.name, tuple(sorted(sample.labels.items()))): sample.value
                for family in text_string_to_metric_families(text)
                for sample in family.samples
            }
        except ValueError as error:
            raise Unmeasured(f"{self.source} is no page of metrics: {error}") from error

    def counted(self, start: str, end: str) -> Counters:
        """Differences of the two pages; from zero after a restart."""
        before, after = self._marks[start][1], self._marks[end][1]
        return {
            key: value - before.get(key, 0.0) if value >= before.get(key, 0.0) else value
            for key, value in after.items()
            if key[0] in COUNTERS
        }

    def rate(self, start: str, end: str, objectives: Objectives) -> Rate | None:
        """Difference over time."""
        began, ended = self._marks[start][0], self._marks[end][0]
        return Rate(good_in(self.counted(start, end), objectives) / (ended - began), began, ended)

    def gauge(self, name: str) -> float:
        """The page's value."""
        return max(self._values(name).values(), default=math.nan)

    def by_label(self, name: str, label: str) -> dict[str, float]:
        """Of the page."""
        found: dict[str, float] = {}
        for labels, value in self._values(name).items():
            found[dict(labels)[label]] = found.get(dict(labels)[label], 0.0) + value
        return found

    def _values(self, name: str) -> dict[Labels, float]:
        return {labels: value for (found, labels), value in self._parsed(_read(self.source)).items() if found == name}


class Prometheus:
    """Every replica's counters, as Prometheus scraped them. Sums raw samples instead of using increase().

    Times are Prometheus' own, so that the clock of the machine that sends the load does not matter.
    """

    def __init__(self, url: str, job: str) -> None:
        self.source = url
        self._url = url.rstrip("/")
        self._job = job
        self._marks: dict[str, tuple[float, float]] = {}
        self._local: dict[str, float] = {}

    def mark(self, name: str, *, quiet: bool = False) -> None:
        """Remember Prometheus' time. With `quiet` wait for a scrape of every replica that began after now.

        A window begins at the latest of those scrapes: by then each replica has a sample of its own that saw all that
        was asked before the window and nothing of what is asked in it. Not later, for a sample carries the time its scrape
        began and may be read when requests run again. A window ends when all have been scraped once more.
        """
        scraped = now = self._scalar("time()")
        if quiet:
            deadline = time.monotonic() + _SCRAPE_WAIT_SECONDS
            up = f'up{{job="{self._job}"}}'  # timestamp() tells a sample's own time of a plain selector only
            while True:
                samples = self._query(f"timestamp({up}) and {up} == 1", None)
                # A replica of before a restart of Prometheus, which never marked its series as ended, is no target.
                targets = self._targets()
                times = [float(sample["value"][1]) for sample in samples if sample["metric"]["instance"] in targets]
                if times and min(times) >= now:
                    break
                if time.monotonic() > deadline:
                    raise Unmeasured(f"{self._url}: job {self._job!r} was not scraped for {_SCRAPE_WAIT_SECONDS:g} s")
                time.sleep(0.5)
            scraped, now = max(times), self._scalar("time()")
        self._marks[name] = (scraped, now)
        self._local[name] = time.monotonic()

    def counted(self, start: str, end: str) -> Counters:
        """Increases of each series' raw samples, replicas added up."""
        began, ended = self._marks[start][0], self._marks[end][1]
        total: dict[Key, float] = {}
        for labels, samples in self._raw("|".join(sorted(COUNTERS)), began, ended):
            name = labels["__name__"]
            key = (name, tuple(sorted((k, v) for k, v in labels.items() if k not in _TARGET)))
            total[key] = total.get(key, 0.0) + increase(samples, began, ended)
        return total

    def rate(self, start: str, end: str, objectives: Objectives) -> Rate | None:
        """Good answers between the first and the last scrape inside the window, over the time between them, per replica.

        A replica's scrapes are those of all its series: one that appears late, a status not seen before, has fewer.
        """
        began, ended = self._marks[start][0], self._marks[end][1]
        scrapes: dict[str, list[float]] = {}
        good: list[tuple[str, Samples]] = []
        for labels, samples in self._raw("http_requests_total", began, ended):
            scrapes.setdefault(labels["instance"], []).extend(when for when, _ in samples if began <= when <= ended)
            if objectives.endpoints.fullmatch(labels.get("endpoint", "")) and objectives.is_good(labels["status"]):
                good.append((labels["instance"], samples))
        spans = {replica: (min(times), max(times)) for replica, times in scrapes.items() if len(set(times)) > 1}
        if not spans:
            return None
        ahead = ended - self._local[end]
        return Rate(
            sum(
                increase(samples, *spans[replica]) / (spans[replica][1] - spans[replica][0])
                for replica, samples in good
                if replica in spans
            ),
            min(first for first, _ in spans.values()) - ahead,
            max(last for _, last in spans.values()) - ahead,
        )

    def gauge(self, name: str) -> float:
        """The largest replica's."""
        return self._scalar(f'max({name}{{job="{self._job}"}})')

    def by_label(self, name: str, label: str) -> dict[str, float]:
        """Of all replicas."""
        found = self._query(f'sum by ({label}) ({name}{{job="{self._job}"}})', None)
        return {series["metric"].get(label, ""): float(series["value"][1]) for series in found}

    def _raw(self, names: str, began: float, ended: float) -> Iterable[tuple[dict[str, str], Samples]]:
        seconds = math.ceil(ended - began + _BEFORE_SECONDS)
        found = self._query(f'{{__name__=~"{names}", job="{self._job}"}}[{seconds}s]', ended)
        for series in found:
            yield series["metric"], [(float(when), float(value)) for when, value in series["values"]]

    def _scalar(self, expression: str) -> float:
        found = self._query(expression, None)
        if not found:
            return math.nan
        return float(found[1] if isinstance(found[0], (int, float)) else found[0]["value"][1])

    def _targets(self) -> set[str]:
        """The replicas that are scraped now."""
        found = json.loads(_read(f"{self._url}/api/v1/targets?state=active"))["data"]["activeTargets"]
        return {target["labels"]["instance"] for target in found if target["labels"]["job"] == self._job}

    def _query(self, expression: str, when: float | None) -> list[Any]:
        given = {"query": expression} | ({} if when is None else {"time": f"{when:.3f}"})
        text = _read(f"{self._url}/api/v1/query?{urllib.parse.urlencode(given)}")
        try:
            result: list[Any] = json.loads(text)["data"]["result"]
        except (ValueError, KeyError, TypeError) as error:
            raise Unmeasured(f"{self._url} does not answer as Prometheus: {error!r}") from error
        return result


def requests_in(counted: Counters, objectives: Objectives) -> float:
    """Requests to the API in increases of counters."""
    return sum(
        value
        for (name, labels), value in counted.items()
        if name == "http_requests_total" and objectives.endpoints.fullmatch(dict(labels).get("endpoint", ""))
    )
