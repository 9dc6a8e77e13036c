"""When the publisher publishes, when it waits, and that nothing stops it; its publishes and its clock are ours."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from bi_query.publish_status import last_beat, read_status
from bi_query.rollback import roll_back
from bi_query.snapshot_files import read_pointer, snapshot_path
from bi_query.watch import EXIT_BUSY, Outcome, Watcher

from tests.support.small import Small
from tests.unit.test_publish import write_parquet

INTERVAL, SETTLE, PATIENCE = 10.0, 5.0, 600.0


class Watched:
    """A watcher on a clock that only moves when told, and a list of outcomes for its publishes (real ones without)."""

    def __init__(self, small: Small) -> None:
        self.small = small
        self.now = 1000.0
        self.publishes = 0
        self.outcomes: list[Outcome | Exception] = []
        self.stop = threading.Event()
        settings = small.settings(
            publish_interval_seconds=INTERVAL, publish_settle_seconds=SETTLE, publish_patience_seconds=PATIENCE
        )
        self.watcher = Watcher(settings, self.stop, self._publish, lambda: self.now)

    def _publish(self) -> Outcome:
        self.publishes += 1
        if self.outcomes:
            outcome = self.outcomes.pop(0)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome
        self.small.publish()
        return Outcome(0, "published")

    def run(self, seconds: float) -> int:
        """Turns until the clock has moved so far; how many publishes that were."""
        before, until = self.publishes, self.now + seconds
        while self.now < until:
            pause = self.watcher.turn()
            assert pause > 0, "a busy loop"
            self.now += pause
        return self.publishes - before


@pytest.fixture
def watched(small: Small) -> Watched:
    found = Watched(small)
    assert found.run(30) == 1
    return found


def test_it_publishes_once_at_its_start_and_then_only_what_changed(watched: Watched) -> None:
    assert watched.run(1000) == 0
    watched.small.write_data(2)
    assert watched.run(1000) == 1
    (watched.small.catalogue / "models" / "more.sql").write_text("select 1 as one")
    assert watched.run(1000) == 1
    (watched.small.catalogue / "models" / "sales_by_shop.sql").unlink()
    (watched.small.data / "sales.parquet").unlink()
    assert watched.run(100) == 1


def test_a_change_is_published_within_an_interval_and_the_settle_time(watched: Watched) -> None:
    watched.small.write_data(2)
    assert watched.run(INTERVAL + SETTLE) == 1


def test_a_file_that_grows_is_waited_for(watched: Watched) -> None:
    file = write_parquet(watched.small.data / "new.parquet")
    for size in range(1, 20):
        os.utime(file, (size, size))
        assert watched.run(SETTLE - 1) == 0
    assert watched.run(INTERVAL + SETTLE) == 1


@pytest.mark.parametrize("place", ["new.parquet", "many/part-1.parquet"])
@pytest.mark.parametrize("content", [b"", b"PAR1 half a file", b"half a file PAR1"], ids=["empty", "no end", "no head"])
def test_a_file_without_its_end_is_waited_for(watched: Watched, place: str, content: bytes) -> None:
    file = watched.small.data / place
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    assert watched.run(PATIENCE - 2 * INTERVAL) == 0
    write_parquet(file)
    assert watched.run(INTERVAL + SETTLE) == 1


def test_a_folder_where_a_job_still_collects_files_is_waited_for(watched: Watched) -> None:
    write_parquet(watched.small.data / "many" / "part-1.parquet")
    at_work = watched.small.data / "many" / "_temporary" / "0"
    at_work.mkdir(parents=True)
    assert watched.run(PATIENCE - 2 * INTERVAL) == 0
    at_work.rmdir()
    at_work.parent.rmdir()
    assert watched.run(INTERVAL + SETTLE) == 1


@pytest.mark.parametrize(
    "name", ["x.parquet.tmp", "x.parquet.part", ".x.parquet", "_x.parquet", "_temporary/x.parquet"]
)
def test_a_file_under_a_writer_s_temporary_name_is_not_there_until_it_is_renamed(watched: Watched, name: str) -> None:
    half = watched.small.data / name
    half.parent.mkdir(exist_ok=True)
    half.write_bytes(b"half")
    assert watched.run(PATIENCE * 3) == 0
    write_parquet(half).rename(watched.small.data / "x.parquet")
    assert watched.run(INTERVAL + SETTLE) == 1


def test_a_file_that_never_becomes_complete_is_told_of_after_a_time(watched: Watched) -> None:
    (watched.small.data / "bad.parquet").write_bytes(b"half")
    watched.outcomes = [Outcome(1, "bad.parquet: not a complete Parquet file")]
    assert watched.run(PATIENCE - INTERVAL) == 0
    assert watched.run(2 * INTERVAL) == 1
    status = read_status(watched.small.snapshots)
    assert status is not None
    assert (status.ok, status.error) == (False, "bad.parquet: not a complete Parquet file")


def test_a_file_that_never_stops_changing_is_told_of_and_does_not_make_it_busy(watched: Watched) -> None:
    watched.outcomes = [Outcome(1, "changed while it was being published")] * 100
    publishes = 0
    for turn in range(2000):
        write_parquet(watched.small.data / "new.parquet", f"select {turn} as n")
        publishes += watched.run(3)
    assert 1 <= publishes <= 2000 * INTERVAL / PATIENCE + 1


def test_failures_are_retried_ever_more_seldom_and_at_once_when_something_changes(watched: Watched) -> None:
    watched.small.write_data(2)
    watched.outcomes = [Outcome(1, "the disk is full")] * 1000
    assert watched.run(60) in (2, 3)
    assert watched.run(9 * 900) in range(9, 19)
    assert watched.run(900) == 1
    watched.outcomes = []
    watched.small.write_data(3)
    assert watched.run(INTERVAL + SETTLE) == 1
    assert watched.run(1000) == 0
    watched.small.write_data(4)
    watched.outcomes = [Outcome(1, "again")]
    assert watched.run(40) == 2, "a success ends the back-off"


def test_a_fault_that_passes_without_a_change_of_files_is_got_over(watched: Watched) -> None:
    watched.small.write_data(2)
    watched.outcomes = [Outcome(1, "the disk is full"), Outcome(-9, "killed")]
    assert watched.run(120) == 3
    assert watched.run(1000) == 0


def test_taking_the_bad_file_away_ends_the_failure(watched: Watched) -> None:
    bad = watched.small.data / "bad.parquet"
    bad.write_bytes(b"PAR1 not Parquet PAR1")
    watched.outcomes = [Outcome(1, "bad.parquet: its footer cannot be read")]
    assert watched.run(INTERVAL + SETTLE) == 1
    bad.unlink()
    assert watched.run(INTERVAL + SETTLE) == 1
    status = read_status(watched.small.snapshots)
    assert status is not None
    assert status.ok


def test_another_publish_is_waited_for_and_is_no_failure(watched: Watched) -> None:
    watched.small.write_data(2)
    watched.outcomes = [Outcome(EXIT_BUSY, "another publish is running")] * 3
    assert watched.run(INTERVAL * 6) == 4
    status = read_status(watched.small.snapshots)
    assert status is not None
    assert status.ok


def _no_folder(small: Small) -> None:
    small.data.rename(small.root / "away")


def _dangling(small: Small) -> None:
    (small.data / "bad.parquet").symlink_to("/nowhere")


def _two_of_a_name(small: Small) -> None:
    write_parquet(small.data / "SALES" / "x.parquet")


@pytest.mark.parametrize("fault", [_no_folder, _dangling, _two_of_a_name])
def test_a_folder_that_cannot_be_read_is_a_failed_publish_and_heals(
    watched: Watched, fault: Callable[[Small], None]
) -> None:
    fault(watched.small)
    watched.outcomes = [Outcome(1, "cannot be read")] * 50
    assert watched.run(INTERVAL + SETTLE) == 1
    assert watched.run(3600) < 10
    watched.outcomes = []
    for path in (watched.small.data / "bad.parquet", watched.small.data / "SALES" / "x.parquet"):
        path.unlink(missing_ok=True)
    if not watched.small.data.exists():
        (watched.small.root / "away").rename(watched.small.data)
    watched.run(900 + INTERVAL)
    assert watched.run(3600) == 0


def test_whatever_a_turn_raises_is_survived(
    small: Small, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(small)
    looks = 0

    def look(*_: object) -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            watched.stop.set()
        raise RuntimeError("no such luck")

    monkeypatch.setattr("bi_query.watch.look", look)
    monkeypatch.setattr(watched.stop, "wait", lambda timeout: _pass(watched, timeout))
    watched.watcher.watch()
    assert looks == 3
    assert caplog.text.count("no such luck") >= 3


def _pass(watched: Watched, seconds: float) -> bool:
    assert seconds >= 0
    watched.now += seconds
    return watched.stop.is_set()


def _missing(folder: Path, snapshot: Path) -> None:
    snapshot.unlink()


def _cut_off(folder: Path, snapshot: Path) -> None:
    snapshot.chmod(0o644)
    os.truncate(snapshot, 5000)


def _pointer_gone(folder: Path, snapshot: Path) -> None:
    (folder / "current.json").unlink()


def _pointer_rubbish(folder: Path, snapshot: Path) -> None:
    (folder / "current.json").write_bytes(b"\0" * 100)


@pytest.mark.parametrize("damage", [_missing, _cut_off, _pointer_gone, _pointer_rubbish])
def test_a_damaged_snapshot_or_pointer_is_mended_without_a_change_of_data(
    watched: Watched, damage: Callable[[Path, Path], None]
) -> None:
    assert watched.run(100) == 0
    pointer = read_pointer(watched.small.snapshots)
    assert pointer is not None
    path = snapshot_path(watched.small.snapshots, pointer.snapshot_id)
    damage(watched.small.snapshots, path)
    assert watched.run(2 * INTERVAL) == 1
    assert watched.run(100) == 0
    assert read_pointer(watched.small.snapshots) == pointer or damage in (
        _pointer_gone,
        _pointer_rubbish,
        _missing,
        _cut_off,
    )
    assert path.stat().st_size > 5000


def test_a_rollback_is_nothing_to_publish(watched: Watched) -> None:
    watched.small.write_data(2)
    assert watched.run(100) == 1
    roll_back(watched.small.snapshots)
    assert watched.run(1000) == 0


def test_the_heart_beats_at_every_look(watched: Watched) -> None:
    for _ in range(3):
        os.utime(watched.small.snapshots / "publisher.json", (1, 1))
        watched.run(INTERVAL)
        assert last_beat(watched.small.snapshots) > 1


def test_the_heart_beats_on_a_full_disk(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bi_query.publish_status.replace_file", full)
    os.utime(watched.small.snapshots / "publisher.json", (1, 1))
    watched.small.write_data(2)
    watched.outcomes = [Outcome(1, "No space left on device")]
    watched.run(INTERVAL + SETTLE)
    assert last_beat(watched.small.snapshots) > 1
    status = read_status(watched.small.snapshots)
    assert status is not None
    assert (status.ok, status.failures) == (False, 1)
