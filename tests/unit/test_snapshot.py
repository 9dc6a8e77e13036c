"""Snapshot files and their life in a process: pointer, leases, revival, spill folders."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path

import duckdb
import pytest
from bi_query.errors import Overloaded
from bi_query.metrics import Metrics
from bi_query.snapshot import Snapshot, SnapshotStore
from bi_query.snapshot_files import (
    Manifest,
    SnapshotUnusable,
    read_pointer,
    remove_dead_spill,
    replace_file,
    snapshot_path,
    spill_folder,
)
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.support.small import Small


def opened(small: Small) -> Snapshot:
    pointer = read_pointer(small.snapshots)
    assert pointer is not None
    return Snapshot(snapshot_path(small.snapshots, pointer.snapshot_id), pointer, small.settings())


def test_no_pointer_means_nothing_was_published(tmp_path: Path) -> None:
    assert read_pointer(tmp_path) is None


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b"null", b'{"snapshot_id": "a"}', b'{"snapshot_id": "../a", "published_at": 1}', b"\xff"],
)
def test_a_damaged_pointer_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "current.json").write_bytes(content)
    with pytest.raises(SnapshotUnusable, match=r"current\.json"):
        read_pointer(tmp_path)


@hypothesis_settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_any_bytes_as_pointer_give_a_pointer_or_a_refusal(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "current.json").write_bytes(content)
    try:
        pointer = read_pointer(tmp_path)
    except SnapshotUnusable:
        return
    assert pointer is not None
    assert pointer.snapshot_id.isalnum()


def test_replacing_a_file_leaves_the_old_one_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    replace_file(path, b"old")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_a_manifest_survives_its_json() -> None:
    manifest = Manifest("abc", 1.5, {"t": {"kind": "table", "rows": 1, "columns": [], "description": "é"}}, 7)
    assert Manifest.from_json(manifest.to_json()) == manifest


@pytest.mark.parametrize("private", [False, True])
def test_a_retired_snapshot_closes_with_its_last_lease_and_then_says_so(small: Small, private: bool) -> None:
    async def story() -> None:
        snapshot = opened(small)
        with snapshot.lease():
            with snapshot.lease():
                snapshot.retire()
            assert snapshot.is_open
            with snapshot.instance(private=private) as database:
                cursor = database.take_cursor()
                assert cursor.execute("select count(*) from sales").fetchall() == [(1000,)]
                database.give_back(cursor)
        assert not snapshot.is_open
        with pytest.raises(Overloaded) as refused, snapshot.lease():
            pass
        assert refused.value.code == "snapshot_gone"
        with pytest.raises(duckdb.Error):
            cursor.execute("select 1")

    asyncio.run(story())


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize(
    "sql",
    [
        "create table x as select 1",
        "insert into sales select * from sales",
        "from read_csv('/etc/passwd')",
        "copy sales to '/tmp/x.csv'",
        "create table memory.x as select 1",
        "attach '/tmp/x.db'",
        "set enable_external_access = true",
        "set memory_limit = '1TB'",
        "reset lock_configuration",
        "install httpfs",
    ],
)
def test_an_open_snapshot_refuses_to_write_to_read_files_and_to_be_reconfigured(
    small: Small, sql: str, private: bool
) -> None:
    snapshot = opened(small)
    with snapshot.instance(private=private) as database, pytest.raises(duckdb.Error):
        database.take_cursor().execute(sql)
    snapshot.retire()


def test_a_database_that_sql_attached_in_memory_is_seen_by_nobody_else(small: Small) -> None:
    """The guard refuses such SQL; should it ever not, an instance of an ad-hoc query's own is thrown away after it."""
    snapshot = opened(small)
    with snapshot.instance(private=False) as shared, pytest.raises(duckdb.Error):
        shared.take_cursor().execute("attach ':memory:' as mine")
    with snapshot.instance(private=True) as lent:
        lent.take_cursor().execute("attach ':memory:' as mine")
    for _ in range(small.settings().effective_ad_hoc_max_running_queries + 1):
        with snapshot.instance(private=True) as database:
            assert database is not lent
            assert database.take_cursor().execute("select count(*) from sales").fetchall() == [(1000,)]
    snapshot.retire()


def test_a_snapshot_whose_file_is_gone_serves_everybody_until_it_is_retired(small: Small) -> None:
    snapshot = opened(small)
    for path in small.snapshots.glob(f"{snapshot.id}*"):
        path.unlink() if path.is_file() else None
    with contextlib.ExitStack() as lent:
        places = small.settings().effective_ad_hoc_max_running_queries
        instances = [lent.enter_context(snapshot.instance(private=True)) for _ in range(places)]
        instances.append(lent.enter_context(snapshot.instance(private=False)))
        for database in instances:
            assert database.take_cursor().execute("select count(*) from sales").fetchall() == [(1000,)]
    snapshot.retire()


def test_an_instance_that_was_lent_out_is_given_to_nobody_else_and_reused_when_it_is_back(small: Small) -> None:
    snapshot = opened(small)
    private = snapshot.instance(private=True)
    with private as first, snapshot.instance(private=True) as second, snapshot.instance(private=False) as shared:
        assert len({first, second, shared}) == 3
    with snapshot.instance(private=True) as again:
        assert again in (first, second)
    snapshot.retire()


def threads_of_this_process() -> int:
    return sum(1 for _ in Path("/proc/self/task").iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_an_instance_costs_no_more_threads_than_it_computes_with(small: Small) -> None:
    """Each thread's stack counts against the memory that the process may have, used or not."""
    snapshot = opened(small)
    before = threads_of_this_process()
    with snapshot.instance(private=True) as database:
        database.take_cursor().execute("select sum(amount) from sales").fetchall()
        assert threads_of_this_process() - before <= small.settings().engine_threads
    snapshot.retire()


def test_a_file_that_holds_another_snapshot_is_refused(small: Small) -> None:
    first, second = small.publish(1).snapshot_id, small.publish(2).snapshot_id
    target = snapshot_path(small.snapshots, second)
    target.unlink()
    snapshot_path(small.snapshots, first).rename(target)
    with pytest.raises(SnapshotUnusable, match=first):
        opened(small)


def test_a_way_back_keeps_the_snapshot_that_was_about_to_close(small: Small) -> None:
    async def story() -> None:
        store = SnapshotStore(small.settings(), Metrics())
        await store.refresh()
        first = store.current
        small.publish(2)
        await store.refresh()
        assert store.current is not first
        small.publish(1)
        await store.refresh()
        assert store.current is first
        assert first.is_open
        store.close()
        assert not first.is_open

    asyncio.run(story())


def test_a_way_back_keeps_a_retired_snapshot_that_a_long_query_holds_open(small: Small) -> None:
    async def story() -> None:
        store = SnapshotStore(small.settings(), Metrics())
        await store.refresh()
        first = store.current
        with first.lease():
            small.publish(2)
            await store.refresh()
            first.retire()  # as its timer does
            small.publish(1)
            await store.refresh()
            assert store.current is first
        assert first.is_open, "the query's end must not close what serves again"
        store.close()

    asyncio.run(story())


def test_a_failure_is_explained_until_it_is_over(small: Small) -> None:
    async def story() -> None:
        store = SnapshotStore(small.settings(), Metrics())
        pointer = (small.snapshots / "current.json").read_bytes()
        (small.snapshots / "current.json").write_bytes(b"x")
        await store.refresh()
        assert "current.json" in store.failure
        assert not store.is_ready
        with pytest.raises(Overloaded):
            _ = store.current
        (small.snapshots / "current.json").write_bytes(pointer)
        await store.refresh()
        assert (store.failure, store.is_ready) == ("", True)
        store.close()

    asyncio.run(story())


def test_only_the_spill_of_dead_processes_is_removed(tmp_path: Path) -> None:
    mine = spill_folder(tmp_path, "abc")
    host = mine.name.split("-", 1)[1].rsplit("-", 1)[0]
    dead, living = tmp_path / f"abc-{host}-4194999", tmp_path / f"abc-{host}-{os.getppid()}"
    foreign, other = tmp_path / "abc-elsewhere-4194999", tmp_path / "notes"
    for folder in (dead, living, foreign, other):
        folder.mkdir()
        (folder / "duckdb_temp_storage").write_bytes(b"x")
    remove_dead_spill(tmp_path)
    assert not dead.exists()
    assert all(folder.exists() for folder in (living, foreign, other))


def test_a_missing_spill_folder_is_nothing_to_remove(tmp_path: Path) -> None:
    remove_dead_spill(tmp_path / "missing")
