"""The engine on a real snapshot: admission, time-outs and cancellations that stop the query, and slots that come back."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pytest
from bi_query import engine as engine_module
from bi_query import engine_call
from bi_query.engine import Engine
from bi_query.engine_call import Answer, Job
from bi_query.engine_errors import QueryFailed
from bi_query.entries import Packed, make_etag, pack
from bi_query.errors import Overloaded, ProblemError, QueryTimeout, SqlRefused
from bi_query.metrics import AD_HOC, Metrics
from bi_query.settings import Settings
from bi_query.snapshot import Snapshot
from bi_query.snapshot_files import read_pointer, snapshot_path
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.support.small import Small, make_small

ENDLESS = "select count(*) as n from range(10000000) a(i), range(1000000) b(j) where (i + j) % 7 = 3"
PATIENCE_SECONDS = 30


class Bench:
    """An engine, the snapshot it runs on, and its numbers."""

    def __init__(self, settings: Settings, snapshot: Snapshot) -> None:
        self.metrics = Metrics()
        self.engine = Engine(settings, self.metrics)
        self.snapshot = snapshot

    def ask(self, sql: str, params: dict[str, Any] | None = None, **job: Any) -> asyncio.Task[Answer]:
        return asyncio.create_task(
            self.engine.run(self.snapshot, Job(job.pop("query", AD_HOC), sql, params or {}, "json", **job))
        )

    async def value(self, sql: str, params: dict[str, Any] | None = None, **job: Any) -> Any:
        return orjson.loads((await self.ask(sql, params, **job)).encoded.body)["rows"][0][0]

    def spilled(self) -> list[Path]:
        return [path for path in self.snapshot._spill_folder.rglob("*") if path.is_file()]

    def number(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def in_lanes(self, name: str) -> float:
        return sum(self.number(name, lane=lane) for lane in ("named", "ad_hoc"))

    def running(self) -> float:
        return self.in_lanes("bi_engine_running_queries")

    def waiting(self) -> float:
        return self.in_lanes("bi_engine_waiting_queries")

    def idle_cursors(self) -> int:
        return sum(len(database._idle_cursors) for database in (self.snapshot._shared, *self.snapshot._private))

    def outcome(self, name: str, query: str = AD_HOC) -> float:
        return self.number("bi_engine_queries_total", query=query, outcome=name)

    async def until(self, check: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not check():
            assert time.monotonic() < deadline, "not within the patience of this test"
            await asyncio.sleep(0.005)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Small:
    small = make_small(tmp_path_factory.mktemp("engine"))
    small.publish()
    return small


@contextlib.asynccontextmanager
async def bench(small: Small, **overrides: object) -> AsyncIterator[Bench]:
    settings = small.settings(**{"max_running_queries": 2, **overrides})
    pointer = read_pointer(small.snapshots)
    assert pointer is not None
    snapshot = Snapshot(snapshot_path(small.snapshots, pointer.snapshot_id), pointer, settings)
    made = Bench(settings, snapshot)
    try:
        yield made
        assert made.running() == made.waiting() == 0, "every slot is free at the end"
    finally:
        await made.engine.close(0)
        snapshot.retire()
        assert not snapshot.is_open, "every lease is returned"


def test_no_more_run_than_may_and_no_more_are_admitted_than_may(published: Small) -> None:
    async def story() -> None:
        async with bench(published, max_connections=5) as b:
            asked = [b.ask(ENDLESS) for _ in range(5)]
            await b.until(lambda: b.running() == 2 and b.waiting() == 3)
            with pytest.raises(Overloaded) as refused:
                await asyncio.wait_for(b.ask("select 1"), PATIENCE_SECONDS)
            assert (refused.value.code, refused.value.status) == ("queue_full", 503)
            assert refused.value.retry_after_seconds
            assert b.number("bi_engine_rejections_total", reason="queue_full") == 1
            for task in asked:
                task.cancel()
            await b.until(lambda: b.running() == b.waiting() == 0)
            assert await b.value("select 41 + 1") == 42

    asyncio.run(story())


def test_who_waits_too_long_is_refused_and_the_wait_is_counted(published: Small) -> None:
    async def story() -> None:
        async with bench(published, max_running_queries=1, queue_timeout_seconds=0.2) as b:
            first = b.ask(ENDLESS)
            await b.until(lambda: b.running() == 1)
            with pytest.raises(Overloaded) as refused:
                await b.ask("select 1")
            assert refused.value.code == "queue_timeout"
            assert b.number("bi_engine_wait_seconds_count") == 2
            assert b.number("bi_engine_wait_seconds_sum") >= 0.2
            first.cancel()
            await b.until(lambda: b.running() == 0)
            assert await b.value("select 1") == 1

    asyncio.run(story())


def test_a_thread_that_is_free_takes_the_next_query_while_the_event_loop_is_busy(published: Small) -> None:
    async def story() -> None:
        async with bench(published, max_running_queries=1) as b:
            asked = [b.ask("select 7"), b.ask("select 8"), b.ask("select 9")]
            await asyncio.sleep(0)
            runs = b.engine._runs()
            assert len(runs) == 3
            deadline = time.monotonic() + PATIENCE_SECONDS
            while not all(run.packed for run in runs):  # nothing is awaited here: the loop stands still
                assert time.monotonic() < deadline, "the thread waits for the event loop"
                time.sleep(0.005)  # noqa: ASYNC251
            answers = [orjson.loads((await task).encoded.body)["rows"] for task in asked]
            assert answers == [[[7]], [[8]], [[9]]]
            assert b.number("bi_engine_wait_seconds_count") == 3

    asyncio.run(story())


def test_a_time_out_counts_from_the_start_of_the_query_not_from_its_wait(published: Small) -> None:
    async def story() -> None:
        async with bench(published, max_running_queries=1, query_timeout_seconds=20) as b:
            first = b.ask(ENDLESS, query="first")
            await b.until(lambda: b.running() == 1)
            second = b.ask("select 1", timeout_seconds=1, query="late")
            await b.until(lambda: b.waiting() == 1)
            await asyncio.sleep(1.2)  # longer than the second may run, shorter than it may wait
            assert b.waiting() == 1
            first.cancel()
            assert (await second).encoded.row_count == 1
            third = b.ask(ENDLESS, query="third")
            await b.until(lambda: b.running() == 1)
            fourth = b.ask(ENDLESS, timeout_seconds=0.3, query="late")
            await b.until(lambda: b.waiting() == 1)
            await asyncio.sleep(0.5)
            third.cancel()
            started = time.perf_counter()
            with pytest.raises(QueryTimeout, match=r"longer than 0\.3 s"):
                await fourth
            assert time.perf_counter() - started >= 0.3
            assert b.outcome("timeout", "late") == 1

    asyncio.run(story())


def test_a_time_out_really_stops_the_query(published: Small) -> None:
    async def story() -> None:
        async with bench(published, query_timeout_seconds=0.3) as b:
            with pytest.raises(QueryTimeout, match=r"longer than 0\.3 s"):
                await b.ask(ENDLESS)
            assert b.outcome("timeout") == 1
            assert b.running() == 0
            await cpu_is_idle()

    asyncio.run(story())


async def cpu_is_idle() -> None:
    """Until this process spends next to no CPU over a while: a query left running would spend two cores'."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        before = time.process_time()
        await asyncio.sleep(0.2)
        if time.process_time() - before < 0.05:
            return
        assert time.monotonic() < deadline, "something still computes"


@pytest.mark.parametrize(("own", "service", "effective"), [(0.2, 20.0, "0.2"), (20.0, 0.2, "0.2"), (None, 0.2, "0.2")])
def test_the_lower_of_the_two_time_outs_holds(
    published: Small, own: float | None, service: float, effective: str
) -> None:
    async def story() -> None:
        async with bench(published, query_timeout_seconds=service) as b:
            with pytest.raises(QueryTimeout, match=f"longer than {effective} s"):
                await b.ask(ENDLESS, query="slow", timeout_seconds=own)
            assert b.outcome("timeout", "slow") == 1

    asyncio.run(story())


def test_the_engine_s_own_limit_stops_a_query_whose_interrupts_are_all_lost(
    published: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_call.Call, "interrupt", lambda self: None)

    async def story() -> None:
        async with bench(published, query_timeout_seconds=0.1) as b:
            with pytest.raises(QueryTimeout):
                await b.ask(ENDLESS)

    asyncio.run(story())


@pytest.mark.parametrize("place", ["running", "waiting"])
def test_a_caller_that_goes_away_frees_its_place(published: Small, place: str) -> None:
    async def story() -> None:
        async with bench(published, max_running_queries=1) as b:
            first = b.ask(ENDLESS, query="first")
            second = b.ask(ENDLESS, query="slow")
            await b.until(lambda: b.running() == 1 and b.waiting() == 1)
            leaver, query = (first, "first") if place == "running" else (second, "slow")
            leaver.cancel()
            await b.until(lambda: b.outcome("cancelled", query) == 1)
            await b.until(lambda: b.running() == 1 and b.waiting() == 0)
            for task in (first, second):
                task.cancel()
            await b.until(lambda: b.running() == 0)
            await cpu_is_idle()

    asyncio.run(story())


@pytest.mark.parametrize("query", [AD_HOC, "named"])
def test_a_storm_of_cancellations_leaves_free_slots_and_right_answers(published: Small, query: str) -> None:
    """Short queries run while others are cancelled at every moment: an interrupt must never hit a bystander."""

    async def story() -> None:
        async with bench(published, max_connections=500, max_running_queries=3, queue_timeout_seconds=60) as b:
            bystanders = [b.ask(f"select sum(i) + {n} as s from range(3000) r(i)", query=query) for n in range(100)]
            leavers = []
            for n in range(200):
                leavers.append(b.ask(ENDLESS if n % 2 else "select sum(i) from range(20000) r(i)", query=query))
                await asyncio.sleep(0.0005 * (n % 7))
                for task in leavers[: -(n % 5) - 1 or None]:
                    task.cancel()
                if n % 10 == 0:
                    sql = f"select sum(i) + {100 + n // 10} as s from range(3000) r(i)"
                    bystanders.append(b.ask(sql, query=query))
            for task in leavers:
                task.cancel()
            await asyncio.gather(*leavers, return_exceptions=True)
            answers = await asyncio.wait_for(asyncio.gather(*bystanders), PATIENCE_SECONDS * 2)
            sums = [int(orjson.loads(answer.encoded.body)["rows"][0][0]) for answer in answers]
            assert sums == [4498500 + n for n in range(120)]
            await b.until(lambda: b.running() == b.waiting() == 0)
            assert b.idle_cursors() <= 3

    asyncio.run(story())


def test_an_interrupt_that_comes_late_reaches_nobody(published: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop decided while the query ends of itself: its cursor already serves the next query."""
    taken: list[Any] = []

    async def story() -> None:
        async with bench(published) as b:
            shared = b.snapshot._shared
            call = engine_call.Call(
                b.snapshot,
                Job("named", "select 1", {}, "json"),
                b.engine._limits,
                b.engine._plans,
                b.engine.unsent.claim(),
            )
            give_back = shared.give_back

            def given(cursor: duckdb.DuckDBPyConnection) -> None:
                give_back(cursor)
                taken.append(shared.take_cursor())  # another thread has it now
                monkeypatch.setattr(shared, "give_back", give_back)
                call.interrupt()
                call_again = taken[0].execute("select sum(i) from range(1000) r(i)").fetchall()
                assert call_again == [(499500,)]

            monkeypatch.setattr(shared, "give_back", given)
            await asyncio.to_thread(call)
            assert call._cursor is None, "a call that has ended holds no cursor that it could interrupt"
            shared.give_back(taken[0])

    asyncio.run(story())


def test_interrupts_and_the_end_of_a_query_exclude_each_other(published: Small) -> None:
    """While an interrupt is being sent, the query's thread cannot hand its cursor on."""

    async def story() -> None:
        async with bench(published) as b:
            call = engine_call.Call(
                b.snapshot,
                Job(AD_HOC, "select 1", {}, "json"),
                b.engine._limits,
                b.engine._plans,
                b.engine.unsent.claim(),
            )
            sending, may_go = threading.Event(), threading.Event()

            class Slow:
                """Stands for a cursor whose interrupt takes a while."""

                def interrupt(self) -> None:
                    sending.set()
                    may_go.wait(PATIENCE_SECONDS)

            call._cursor = Slow()  # type: ignore[assignment]
            sender = threading.Thread(target=call.interrupt)
            sender.start()
            sending.wait(PATIENCE_SECONDS)
            assert call._lock.locked()
            may_go.set()
            sender.join()
            with pytest.raises(duckdb.InterruptException):
                call()

    asyncio.run(story())


def test_a_result_that_does_not_fit_beside_the_others_is_given_up_while_it_is_made(published: Small) -> None:
    async def story() -> None:
        async with bench(published, max_result_bytes=4 * 2**20, unsent_max_bytes=5 * 2**20) as b:
            rows = "select i, repeat('x', 1000) as text from range({}) r(i)"
            held = await b.ask(rows.format(3000))
            assert len(held.encoded.body) == b.number("bi_unsent_bytes")
            started = time.perf_counter()
            with pytest.raises(Overloaded) as refused:
                await b.ask(rows.format(10**12))  # would take days
            assert refused.value.code == "unsent_full"
            assert time.perf_counter() - started < PATIENCE_SECONDS
            assert len(held.encoded.body) == b.number("bi_unsent_bytes")
            assert b.outcome("refused") == 1
            assert b.outcome("error") == 0
            assert await b.value("select 42") == 42
            del held
            assert (await b.ask(rows.format(3000))).encoded.row_count == 3000

    asyncio.run(story())


def test_a_query_that_is_stopped_or_fails_gives_back_what_its_rows_took(published: Small) -> None:
    async def story() -> None:
        async with bench(published) as b:
            # A fraction of a millisecond a row: the first rows come soon and the last not within this test.
            slow = "md5(repeat(chr(65 + (i % 26)::int), 80000)) as slow"
            leaving = b.ask(f"select i, repeat('x', 1000) as text, {slow} from range(60000) r(i)")
            await b.until(lambda: b.number("bi_unsent_bytes") > 0)
            assert not leaving.done()
            leaving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaving
            await b.until(lambda: b.running() == 0)
            assert b.number("bi_unsent_bytes") == 0
            number = "(case when i = 3000 then 'x' else '1' end)::int"
            with pytest.raises(SqlRefused):
                await b.ask(f"select repeat('x', 1000) as text, {number} as n from range(4000) r(i)")
            assert b.number("bi_unsent_bytes") == 0

    asyncio.run(story())


def test_a_query_too_large_for_memory_and_spill_is_refused_and_the_next_works(published: Small) -> None:
    async def story() -> None:
        async with bench(published, engine_memory_bytes=80 * 2**20, spill_max_bytes=2**20) as b:
            large = "select len(list(i)) from range(40000000) r(i)"
            with pytest.raises(SqlRefused) as refused:
                await b.ask(large)
            assert refused.value.code == "query_too_large"
            assert refused.value.status == 422
            assert await b.value("select count(*) from sales") == 1000

    asyncio.run(story())


def test_named_queries_that_take_each_others_memory_are_answered_all_the_same(published: Small) -> None:
    """Each fits by itself, no two do."""

    async def story() -> None:
        async with bench(published, engine_memory_bytes=160 * 2**20, spill_max_bytes=2**20) as b:
            sql = "select len(list(i)) as n from range(3000000) r(i)"
            answers = await asyncio.gather(*(b.ask(sql, query="long_list") for _ in range(4)))
            assert {orjson.loads(answer.encoded.body)["rows"][0][0] for answer in answers} == {3_000_000}

    asyncio.run(story())


def test_a_named_query_too_large_by_itself_is_its_askers_matter_and_one_crowded_out_is_ours(published: Small) -> None:
    async def story() -> None:
        async with bench(published, engine_memory_bytes=80 * 2**20, spill_max_bytes=2**20) as b:
            too_long = "select len(list(i)) from range(40000000) r(i)"
            with pytest.raises(SqlRefused) as refused:
                await b.ask(too_long, query="too_long_list")
            assert refused.value.code == "query_too_large"
            assert refused.value.__cause__ is not None
            assert refused.value.__cause__.__traceback__ is None, "its frames hold what there was of the result"
            beside = b.ask(ENDLESS, query="endless")
            await b.until(lambda: b.running() == 1)
            with pytest.raises(Overloaded) as crowded:
                await b.ask(too_long, query="too_long_list")
            assert (crowded.value.status, crowded.value.code) == (503, "out_of_memory")
            assert b.number("bi_engine_rejections_total", reason="out_of_memory") == 1
            beside.cancel()
            await b.until(lambda: b.running() == 0)

    asyncio.run(story())


def test_a_named_query_that_waits_for_memory_stops_when_its_caller_leaves(published: Small) -> None:
    async def story() -> None:
        async with bench(published, engine_memory_bytes=80 * 2**20, spill_max_bytes=2**20) as b:
            asked = b.ask("select len(list(i)) from range(40000000) r(i)", query="too_long_list")
            await asyncio.sleep(0.3)
            asked.cancel()
            await b.until(lambda: b.running() == 0)
            assert b.outcome("cancelled", "too_long_list") + b.outcome("error", "too_long_list") == 1

    asyncio.run(story())


# A billion rows of a hundred bytes, sorted: takes all the memory there is, then all the disk.
GREEDY = (
    "select count(*) as n from (select row_number() over (order by hash(i)) as place, repeat(i::varchar, 10) as text"
    " from range(1000000000) t(i)) where place % 7 = 0 and text > '5'"
)


def test_an_ad_hoc_query_that_takes_all_its_memory_takes_it_from_nobody(published: Small) -> None:
    async def story() -> None:
        async with bench(
            published, engine_memory_bytes=256 * 2**20, spill_max_bytes=32 * 2**30, query_timeout_seconds=60
        ) as b:
            greedy = b.ask(GREEDY)
            await b.until(lambda: bool(b.spilled()))
            for n in range(20):
                sql = f"select len(list(i)) + {n} as n from range(500000) r(i)"
                answers = await asyncio.gather(b.value(sql), b.value(sql, query="named"))
                assert answers == [500_000 + n] * 2
            assert not greedy.done(), "it was still at it"
            greedy.cancel()
            await b.until(lambda: b.running() == 0)

    asyncio.run(story())


def test_ad_hoc_queries_that_take_every_thread_of_theirs_leave_the_named_ones_theirs(published: Small) -> None:
    async def story() -> None:
        async with bench(published, max_connections=4, queue_timeout_seconds=60) as b:
            asked = [b.ask(ENDLESS) for _ in range(4)]
            await b.until(lambda: b.running() == b.waiting() == 2)
            assert await b.value("select 41 + 1", query="named") == 42
            for task in asked:
                task.cancel()
            await b.until(lambda: b.running() == b.waiting() == 0)

    asyncio.run(story())


def test_an_ad_hoc_query_that_breaks_its_instance_breaks_nobody_else_s(published: Small) -> None:
    nested = "repeat('{\"a\":', 400) || '1' || repeat('}', 400)"

    async def story() -> None:
        async with bench(published) as b:
            beside = b.ask(ENDLESS, query="endless")
            await b.until(lambda: b.running() == 1)
            for _ in range(3):
                with pytest.raises(ProblemError) as raised:
                    await b.ask(f"select json_group_structure(({nested})::json) as s")
                assert raised.value.status == 500
                assert not b.snapshot.is_broken
                assert await b.value("select count(*) from sales") == 1000
                assert await b.value("select count(*) from sales", query="named") == 1000
            assert not beside.done()
            beside.cancel()
            await b.until(lambda: b.running() == 0)

    asyncio.run(story())


def test_a_spill_folder_that_cannot_be_read_leaves_a_query_its_time_out(published: Small) -> None:
    async def story() -> None:
        async with bench(published, query_timeout_seconds=1) as b:
            folder = b.snapshot._private[-1]._spill_folder
            folder.write_text("no folder")
            with pytest.raises(QueryTimeout):
                await asyncio.wait_for(b.ask(ENDLESS), PATIENCE_SECONDS)

    asyncio.run(story())


def test_an_ad_hoc_query_that_spills_more_than_it_may_is_stopped(published: Small) -> None:
    """DuckDB's own limit lets a sort go on: 51 GB were written under one of 128 MB."""

    async def story() -> None:
        settings = {"engine_memory_bytes": 256 * 2**20, "spill_max_bytes": 128 * 2**20, "query_timeout_seconds": 300}
        async with bench(published, **settings) as b:
            with pytest.raises(SqlRefused) as refused:
                await asyncio.wait_for(b.ask(GREEDY), PATIENCE_SECONDS * 4)
            assert refused.value.code == "query_too_large"
            assert b.outcome("error") == 1
            assert await b.value("select count(*) from sales") == 1000

    asyncio.run(story())


def test_a_query_that_only_needs_to_spill_is_answered(published: Small) -> None:
    async def story() -> None:
        async with bench(published, engine_memory_bytes=160 * 2**20, max_running_queries=1) as b:
            sql = "select count(*) from (select hash(i)::varchar || repeat('x', 40) t from range(2000000) r(i) order by t)"
            assert await b.value(sql + " where t > '0'") == 2_000_000

    asyncio.run(story())


def test_a_disk_that_fails_the_engine_is_our_fault_and_no_folder_is_told(published: Small, tmp_path: Path) -> None:
    async def story() -> None:
        spill = tmp_path / "spill"
        async with bench(published, engine_memory_bytes=160 * 2**20, max_running_queries=1, spill_dir=spill) as b:
            shutil.rmtree(spill)
            spill.write_text("no folder any more")
            sql = "select count(*) from (select hash(i)::varchar || repeat('x', 40) t from range(2000000) r(i) order by t)"
            with pytest.raises(ProblemError) as raised:
                await b.ask(sql + " where t > '0'")
            assert (raised.value.status, raised.value.code) == (500, "engine_failure")
            assert str(tmp_path) not in raised.value.detail
            assert await b.value("select 1") == 1

    asyncio.run(story())


@pytest.mark.parametrize(("limits", "rows"), [({"max_result_rows": 7}, 7), ({"max_result_bytes": 1024}, None)])
def test_what_is_cut_is_said_to_be_cut(published: Small, limits: dict[str, int], rows: int | None) -> None:
    async def story() -> None:
        async with bench(published, **limits) as b:
            answer = await b.ask("select i, i * 2 as j from range(1000) r(i)")
            document = orjson.loads(answer.encoded.body)
            assert document["truncated"] is True
            assert document["row_count"] == len(document["rows"])
            assert len(document["rows"]) == rows or (rows is None and 0 < len(document["rows"]) < 1000)
            assert b.number("bi_engine_truncated_results_total", query=AD_HOC) == 1
            whole = await b.ask("select i from range(7) r(i)")
            assert whole.encoded.truncated is False

    asyncio.run(story())


def test_an_answer_is_tagged_and_compressed_on_the_thread_that_computed_it(
    published: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the event loop a large one would hold everybody up, and even a small one lets the interpreter go."""
    packers: list[str] = []

    def noted(raw: bytes) -> Packed:
        packers.append(threading.current_thread().name)
        return pack(raw)

    monkeypatch.setattr(engine_module, "pack", noted)

    async def story() -> None:
        async with bench(published) as b:
            answer = await b.ask("select repeat('x', 100000) as x")
            assert [name.partition("_")[0] for name in packers] == ["query"]
            assert answer.packed.etag == make_etag(answer.encoded.body)
            assert answer.packed.compressed
            assert len(answer.packed.body) < 1000 < len(answer.encoded.body)

    asyncio.run(story())


class Panic(BaseException):
    """As native code raises through pyo3: not an `Exception`."""


@pytest.mark.parametrize("fault", [Panic("boom"), RuntimeError("boom"), SystemExit(3)], ids=lambda e: type(e).__name__)
def test_a_thread_that_gives_up_is_a_500_not_a_hang(
    published: Small, monkeypatch: pytest.MonkeyPatch, fault: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise fault

    async def story() -> None:
        async with bench(published, max_running_queries=1) as b:
            with monkeypatch.context() as patch:
                patch.setattr(engine_call, "encode", fail)
                for _ in range(3):
                    with pytest.raises(ProblemError) as raised:
                        await asyncio.wait_for(b.ask("select 1"), PATIENCE_SECONDS)
                    assert (raised.value.status, raised.value.code) == (500, "engine_failure")
            assert b.outcome("error") == 3
            assert await b.value("select 1") == 1

    asyncio.run(story())


def test_bad_sql_is_the_client_s_fault_and_a_broken_named_query_ours(published: Small) -> None:
    async def story() -> None:
        async with bench(published) as b:
            sql = "select 'é' as x,\n  nope from sales"
            with pytest.raises(SqlRefused) as refused:
                await b.ask(sql)
            assert refused.value.position == sql.index("nope")
            with pytest.raises(QueryFailed) as failed:
                await b.ask(sql, query="named")
            assert (failed.value.status, failed.value.position) == (500, sql.index("nope"))
            assert "position" not in failed.value.document("r")

    asyncio.run(story())


def test_an_error_while_running_carries_its_place_too(published: Small) -> None:
    async def story() -> None:
        async with bench(published) as b:
            sql = "select amount,\n cast(shop as date) from sales"
            with pytest.raises(SqlRefused, match="Conversion Error") as refused:
                await b.ask(sql)
            assert refused.value.position in (None, sql.index("cast"), sql.index("shop"))

    asyncio.run(story())


def test_closing_lets_running_queries_end_and_refuses_new_ones(published: Small) -> None:
    async def story() -> None:
        async with bench(published) as b:
            running = b.ask("select count(*) from range(10000) a(i), range(10000) b(j) where (i * j) % 7 = 3")
            await b.until(lambda: b.running() == 1)
            closing = asyncio.create_task(b.engine.close(PATIENCE_SECONDS))
            await asyncio.sleep(0)
            with pytest.raises(Overloaded) as refused:
                await b.ask("select 1")
            assert refused.value.code == "shutdown"
            await closing
            assert (await running).encoded.row_count == 1

    asyncio.run(story())


def test_closing_stops_what_outlives_the_grace(published: Small) -> None:
    async def story() -> None:
        async with bench(published) as b:
            running = b.ask(ENDLESS)
            await b.until(lambda: b.running() == 1)
            await b.engine.close(0.05)
            with pytest.raises(Overloaded) as refused:
                await running
            assert refused.value.code == "shutdown"
            await cpu_is_idle()

    asyncio.run(story())


def test_who_leaves_while_the_service_closes_is_no_rejection(published: Small) -> None:
    async def story() -> None:
        async with bench(published, max_running_queries=1) as b:
            running = b.ask(ENDLESS)
            await b.until(lambda: b.running() == 1)
            waiting = b.ask(ENDLESS)
            await b.until(lambda: b.waiting() == 1)
            closing = asyncio.create_task(b.engine.close(PATIENCE_SECONDS))
            await asyncio.sleep(0)
            for left in (waiting, running):
                left.cancel()
            await closing
            assert b.number("bi_engine_rejections_total", reason="shutdown") == 0
            assert b.outcome("cancelled") == 2

    asyncio.run(story())


def test_cursors_are_reused_and_no_more_than_run_at_once(published: Small) -> None:
    async def story() -> None:
        async with bench(published, max_connections=100) as b:
            for _ in range(3):
                await asyncio.gather(*(b.ask("select 1") for _ in range(60)))
            assert 1 <= b.idle_cursors() <= 2

    asyncio.run(story())


def test_plans_of_huge_texts_are_not_remembered(published: Small) -> None:
    async def story() -> None:
        async with bench(published) as b:
            await b.ask("select 1 -- " + "x" * 100_000)
            assert len(b.engine._plans._plans) == 0
            await b.ask("select 1")
            assert len(b.engine._plans._plans) == 1

    asyncio.run(story())


@hypothesis_settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["short", "endless", "wrong", "cancel", "rest"]), st.integers(0, 30)),
        min_size=5,
        max_size=40,
    )
)
def test_whatever_happens_slots_come_back(published: Small, steps: list[tuple[str, int]]) -> None:
    """Any order of questions, faults and departures ends with an idle engine that answers rightly."""

    async def story() -> None:
        async with bench(published, max_connections=6, queue_timeout_seconds=0.5, query_timeout_seconds=60) as b:
            texts = {"short": "select 7", "endless": ENDLESS, "wrong": "select nope"}
            tasks: list[asyncio.Task[Answer]] = []
            for step, which in steps:
                if step in texts:
                    tasks.append(b.ask(texts[step]))
                elif step == "cancel" and tasks:
                    tasks[which % len(tasks)].cancel()
                await asyncio.sleep(which * 0.0002)
                assert b.running() <= 2
                assert b.waiting() <= 4
            for task in tasks:
                task.cancel()
            results: list[Any] = await asyncio.gather(*tasks, return_exceptions=True)
            for result in results:
                assert isinstance(result, (Answer, asyncio.CancelledError, Overloaded, SqlRefused)), result
                if isinstance(result, Answer):
                    assert orjson.loads(result.encoded.body)["rows"] == [[7]]
            await b.until(lambda: b.running() == b.waiting() == 0)
            assert not b.engine._runs()
            assert await b.value("select 7") == 7

    asyncio.run(story())
