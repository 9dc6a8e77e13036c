"""The publisher as a process of its own, beside a service that shows what it publishes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from tests.service.test_cli import environment, run
from tests.support.service import Service, wait_until
from tests.support.small import Small

QUICK: dict[str, object] = {
    "publish_interval_seconds": 0.1,
    "publish_settle_seconds": 0.2,
    "publish_patience_seconds": 3600,
}
ENDLESS = "select count(*) as n from range(10_000_000) a, range(100_000) b where (a.range + b.range) % 7 = 3"


class Publisher:
    """A running `bi-query watch`."""

    def __init__(self, small: Small, **settings: object) -> None:
        self._log = small.root / f"publisher-{uuid.uuid4().hex}.log"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bi_query.cli", "watch"],
            env=environment(small, **{**QUICK, **settings}),
            stdout=subprocess.DEVNULL,
            stderr=self._log.open("wb"),
        )

    def lines(self) -> list[dict[str, Any]]:
        """Its log so far: whole lines, every one of them JSON."""
        return [json.loads(line) for line in self._log.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def said(self, message: str) -> list[dict[str, Any]]:
        return [line for line in self.lines() if line["message"] == message]

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


@pytest.fixture
def publisher(small: Small) -> Iterator[Callable[..., Publisher]]:
    """Start publishers on the small deployment."""
    started: list[Publisher] = []

    def start(**settings: object) -> Publisher:
        started.append(Publisher(small, **settings))
        return started[-1]

    yield start
    for one in started:
        with contextlib.suppress(ProcessLookupError):
            one.process.kill()
        one.process.wait(10)


def shows(service: Service, version: int) -> Callable[[], bool]:
    return lambda: service.sql("select version from versions").json()["rows"] == [[version]]


def child_of(process: subprocess.Popen[bytes]) -> int:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(children[0])


def test_what_is_put_into_the_folder_is_served_and_a_half_written_file_is_not(
    small: Small, serve: Callable[..., Service], publisher: Callable[..., Publisher]
) -> None:
    service = serve(snapshot_poll_seconds=0.05)
    running = publisher()
    wait_until(lambda: running.said("published"))
    small.write_data(2)
    wait_until(shows(service, 2))
    whole = duckdb.sql("select 3 as version").write_parquet(str(small.root / "next.parquet"))
    assert whole is None
    content = (small.root / "next.parquet").read_bytes()
    (small.data / "versions.parquet").write_bytes(content[: len(content) // 2])
    waiting = f"waiting for {small.data / 'versions.parquet'} to be complete"
    wait_until(lambda: running.said(waiting))
    assert shows(service, 2)()
    assert service.metric("bi_publish_last_success") == 1
    (small.data / "versions.parquet").write_bytes(content)
    wait_until(shows(service, 3))
    assert service.metric("bi_publisher_heartbeat_timestamp_seconds") > 0
    assert running.stop() == 0
    assert running.lines()[-1]["message"] == "stopped"
    assert all({"time", "level", "logger", "message"} <= set(line) for line in running.lines())


def test_a_rollback_reaches_the_service_and_the_publisher_leaves_it_until_the_data_change(
    small: Small, serve: Callable[..., Service], publisher: Callable[..., Publisher]
) -> None:
    small.publish(2)
    service = serve(snapshot_poll_seconds=0.05)
    running = publisher()
    wait_until(lambda: running.said("published"))
    done = run(small, "rollback")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("current is now snapshot ")
    wait_until(shows(service, 1))
    assert running.stop() == 0
    again = publisher()
    wait_until(lambda: again.said("published"))
    assert "rolled back to snapshot" in again.said("published")[0]["said"]
    assert shows(service, 1)()
    small.write_data(3)
    wait_until(shows(service, 3))
    listed = run(small, "snapshots").stdout.splitlines()
    assert len(listed) == 3
    assert listed[0].endswith("bytes  current")


def test_a_failure_is_told_by_the_service_with_its_count_and_ends_with_good_data(
    small: Small, serve: Callable[..., Service], publisher: Callable[..., Publisher]
) -> None:
    service = serve(snapshot_poll_seconds=0.05)
    running = publisher()
    wait_until(lambda: running.said("published"))
    (small.catalogue / "models" / "bad.sql").write_text("select nope from sales")
    wait_until(lambda: service.metric("bi_publish_last_success") == 0)
    failures = wait_until(lambda: service.metric("bi_publish_failures"))
    wait_until(lambda: service.metric("bi_publish_failures") > failures, what="another attempt")
    assert (
        "bad.sql:1: model 'bad' failed" in running.said("publishing failed; the old snapshot keeps serving")[0]["said"]
    )
    (small.catalogue / "models" / "bad.sql").write_text("select not yaml: [")
    wait_until(lambda: any("the catalogue has 1 problem(s)" in line.get("said", "") for line in running.lines()))
    assert shows(service, 1)()
    (small.catalogue / "models" / "bad.sql").unlink()
    wait_until(lambda: service.metric("bi_publish_last_success") == 1)
    assert service.metric("bi_publish_failures") == 0


def test_a_publish_that_is_killed_is_a_failure_and_the_publisher_lives(
    small: Small, publisher: Callable[..., Publisher]
) -> None:
    (small.catalogue / "models" / "endless.sql").write_text(ENDLESS)
    running = publisher()
    wait_until(lambda: list(small.snapshots.glob(".*.building")), what="a publish under way")
    os.kill(child_of(running.process), signal.SIGKILL)
    wait_until(lambda: running.said("publishing failed; the old snapshot keeps serving"))
    status = wait_until(lambda: json.loads((small.snapshots / "publish.json").read_text()))
    assert status["ok"] is False
    assert "ended by signal 9" in status["error"]
    (small.catalogue / "models" / "endless.sql").unlink()
    wait_until(lambda: running.said("published"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_in_the_middle_of_a_publish_and_leaves_nothing(
    small: Small, publisher: Callable[..., Publisher], number: signal.Signals
) -> None:
    (small.catalogue / "models" / "endless.sql").write_text(ENDLESS)
    running = publisher()
    wait_until(lambda: list(small.snapshots.glob(".*.building")), what="a publish under way")
    running.process.send_signal(number)
    assert running.process.wait(20) == 0
    assert list(small.snapshots.glob(".*.building*")) == []


def test_a_publish_that_takes_too_long_is_ended_and_says_so(small: Small, publisher: Callable[..., Publisher]) -> None:
    (small.catalogue / "models" / "endless.sql").write_text(ENDLESS)
    running = publisher(publish_timeout_seconds=5)
    failed = wait_until(lambda: running.said("publishing failed; the old snapshot keeps serving"))
    assert "endless.sql: publishing took longer than 5 s (BI_PUBLISH_TIMEOUT_SECONDS)" in failed[0]["said"]
    assert list(small.snapshots.glob(".*.building*")) == []


def test_two_publishers_and_a_publish_by_hand_do_each_other_no_harm(
    small: Small, serve: Callable[..., Service], publisher: Callable[..., Publisher]
) -> None:
    service = serve(snapshot_poll_seconds=0.05)
    both = [publisher(), publisher()]
    for version in (2, 3):
        # A publish under way would rightly refuse files that change while it reads them.
        wait_until(lambda: all(one.lines()[-1:] and one.lines()[-1]["message"] == "idle" for one in both))
        small.write_data(version)
        done = run(small, "publish", "--quiet", "--wait-seconds", "30")
        assert done.returncode == 0, done.stderr
        wait_until(shows(service, version))
    assert service.metric("bi_snapshot_load_failures_total") == 0
    assert [one.stop() for one in both] == [0, 0]
    for one in both:
        assert one.said("publishing failed; the old snapshot keeps serving") == []


def test_an_idle_publisher_does_next_to_nothing(small: Small, publisher: Callable[..., Publisher]) -> None:
    running = publisher(publish_interval_seconds=0.5)
    wait_until(lambda: running.said("idle"))

    def ticks() -> int:
        fields = Path(f"/proc/{running.process.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    beats, before = (small.snapshots / "publisher.json").stat().st_mtime, ticks()
    wait_until(lambda: (small.snapshots / "publisher.json").stat().st_mtime > beats)  # at most 5 s
    assert (ticks() - before) / os.sysconf("SC_CLK_TCK") < 1
    assert len(running.said("published")) == 1
