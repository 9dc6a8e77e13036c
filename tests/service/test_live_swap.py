"""New data under running queries: none fails, none mixes two snapshots, nothing old stays open; bad data changes nothing."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import httpx
import pytest

from tests.support.service import Service, wait_until
from tests.support.small import Small

ASKERS = 16
PUBLISHES = 6
# `sales` holds i * version: both tables must be of one snapshot for `of_sales` to equal `version`.
JOINED = (
    "select v.version as version, (select max(amount) / 999 from sales)::bigint as of_sales, count(*) as n "
    "from versions v cross join sales s group by v.version"
)


def open_snapshots(service: Service) -> list[str]:
    """Names of snapshot files the service holds open."""
    names = []
    for descriptor in Path(f"/proc/{service.process.pid}/fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except FileNotFoundError:
            continue
        if ".duckdb" in target:
            names.append(Path(target.removesuffix(" (deleted)")).stem)
    return sorted(set(names))


def descriptors(service: Service) -> int:
    return len(list(Path(f"/proc/{service.process.pid}/fd").iterdir()))


def resident_bytes(service: Service) -> int:
    pages = int(Path(f"/proc/{service.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def ask_until(service: Service, stop: threading.Event, number: int) -> list[tuple[str, int, int]]:
    """(data version, version, version as the sales have it) of each answer."""
    seen = []
    with httpx.Client(base_url=service.url, timeout=60) as client:
        turn = number
        while not stop.is_set():
            turn += 1
            if turn % 2:
                sql = f"{JOINED} -- {number} {turn % 40}"
                response = client.post("/api/v1/query", json={"sql": sql})
                assert response.status_code == 200, response.text
                version, of_sales, _ = response.json()["rows"][0]
            else:
                response = client.get("/api/v1/queries/shops", params={"limit": turn % 100 + 1})
                assert response.status_code == 200, response.text
                top = response.json()["rows"][0]
                version, of_sales = top[2], int(top[1]) // 125250
            seen.append((response.headers["x-data-version"], int(version), int(of_sales)))
    return seen


def test_no_query_fails_or_mixes_snapshots_while_data_is_published(small: Small, serve: Callable[..., Service]) -> None:
    service = serve(snapshot_poll_seconds=0.05, max_connections=100, queue_timeout_seconds=60)
    stop = threading.Event()
    ids = {small.publish().snapshot_id: 1}
    with ThreadPoolExecutor(ASKERS) as pool:
        askers = [pool.submit(ask_until, service, stop, number) for number in range(ASKERS)]
        try:
            for version in range(2, PUBLISHES + 2):
                current = small.publish(version, snapshots_kept=1).snapshot_id
                ids[current] = version
                wait_until(lambda current=current: service.metric("bi_snapshot_info", snapshot_id=current) == 1)
        finally:
            stop.set()
        answers = [answer for asker in askers for answer in asker.result()]
    assert len(ids) == PUBLISHES + 1
    assert {(ids[data], version, of_sales) for data, version, of_sales in answers} <= {
        (version, version, version) for version in ids.values()
    }
    assert {version for _, version, _ in answers} == set(ids.values()), "every snapshot answered something"
    assert service.metric("bi_snapshot_swaps_total") == PUBLISHES
    assert service.metric("bi_snapshot_load_failures_total") == 0
    assert service.metric("bi_engine_queries_total", outcome="error") == 0
    wait_until(lambda: open_snapshots(service) == [current], 30, what="the old snapshots to be closed")


def test_an_old_snapshot_stays_open_exactly_until_its_last_query_ends(
    small: Small, serve: Callable[..., Service]
) -> None:
    service = serve(snapshot_poll_seconds=0.05)
    old = open_snapshots(service)
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(httpx.get, f"{service.url}/api/v1/queries/slow", params={"size": 60}, timeout=60)
        wait_until(lambda: service.metric("bi_engine_running_queries") == 1)
        new = small.publish(2).snapshot_id
        wait_until(lambda: service.metric("bi_snapshot_info", snapshot_id=new) == 1)
        assert service.query("quick").json()["rows"] == [[2, 2]]
        assert set(open_snapshots(service)) == {*old, new} or long.done()
        assert long.result().status_code in (200, 504)
        assert long.result().headers.get("x-data-version", old[0]) == old[0]
    wait_until(lambda: open_snapshots(service) == [new], 30, what="the old snapshot to be closed")


def test_memory_and_descriptors_do_not_grow_with_publishes(small: Small, serve: Callable[..., Service]) -> None:
    service = serve(snapshot_poll_seconds=0.02)

    def publish_and_see(version: int) -> None:
        small.publish(version)
        wait_until(lambda: service.sql("select version from versions").json()["rows"] == [[version]])

    for version in range(2, 8):
        publish_and_see(version)
    wait_until(lambda: len(open_snapshots(service)) == 1, 30)
    bytes_before, files_before = resident_bytes(service), descriptors(service)
    for version in range(8, 24):
        publish_and_see(version)
    wait_until(lambda: len(open_snapshots(service)) == 1, 30)
    assert resident_bytes(service) - bytes_before < 80 * 2**20
    assert descriptors(service) <= files_before + 3


def test_a_quick_way_back_works_while_the_first_snapshot_is_still_open(
    small: Small, serve: Callable[..., Service]
) -> None:
    service = serve(snapshot_poll_seconds=0.02)
    for version in (2, 1, 2, 1, 3, 1):
        small.publish(version)
        wait_until(lambda version=version: service.sql("select version from versions").json()["rows"] == [[version]])
    assert service.metric("bi_snapshot_load_failures_total") == 0
    wait_until(lambda: len(open_snapshots(service)) == 1, 30)
    assert service.sql(JOINED).json()["rows"] == [[1, 1, 1000]], "the one gone back to was not closed with the others"


def _missing(small: Small, newer: Path) -> None:
    newer.unlink()


def _rubbish(small: Small, newer: Path) -> None:
    newer.chmod(0o644)
    newer.write_bytes(b"rubbish" * 1000)


def _cut_off(small: Small, newer: Path) -> None:
    newer.chmod(0o644)
    os.truncate(newer, newer.stat().st_size // 2)


def _another(small: Small, newer: Path) -> None:
    newer.unlink()
    duckdb.connect(str(newer)).close()


def _pointer(content: bytes) -> Callable[[Small, Path], None]:
    return lambda small, newer: (small.snapshots / "current.json").write_bytes(content) and None


DAMAGE: dict[str, Callable[[Small, Path], None]] = {
    "a missing snapshot": _missing,
    "rubbish": _rubbish,
    "a cut off snapshot": _cut_off,
    "a database of something else": _another,
    "an empty pointer": _pointer(b""),
    "a pointer that is no object": _pointer(b"[1]"),
    "a pointer to elsewhere": _pointer(b'{"snapshot_id": "../../etc/passwd", "published_at": 1}'),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_bad_new_data_is_counted_and_the_old_keeps_serving_until_good_data_comes(
    small: Small, serve: Callable[..., Service], tmp_path: Path, damage: Callable[[Small, Path], None]
) -> None:
    service = serve(snapshot_poll_seconds=0.05)
    os.kill(service.process.pid, 19)  # the service must not see the pointer before the damage is done
    try:
        newer = small.publish(2)
        damage(small, small.snapshots / f"{newer.snapshot_id}.duckdb")
    finally:
        os.kill(service.process.pid, 18)
    wait_until(lambda: service.metric("bi_snapshot_load_failures_total") >= 1)
    answer = service.sql("select version from versions")
    assert (answer.status_code, answer.json()["rows"]) == (200, [[1]])
    assert service.get("/health/ready").status_code == 200
    small.publish(3)
    wait_until(lambda: service.sql("select version from versions").json()["rows"] == [[3]])


def test_a_snapshot_that_is_copied_after_its_pointer_is_loaded_when_it_is_there(
    small: Small, serve: Callable[..., Service], tmp_path: Path
) -> None:
    service = serve(snapshot_poll_seconds=0.05)
    elsewhere = Small(tmp_path / "elsewhere")
    elsewhere.root.mkdir()
    shutil.copytree(small.catalogue, elsewhere.catalogue)
    newer = elsewhere.publish(2).snapshot_id
    shutil.copy(elsewhere.snapshots / "current.json", small.snapshots / "current.json")
    wait_until(lambda: service.metric("bi_snapshot_load_failures_total") >= 1)
    content = (elsewhere.snapshots / f"{newer}.duckdb").read_bytes()
    target = small.snapshots / f"{newer}.duckdb"
    target.write_bytes(content[: len(content) // 2])
    wait_until(lambda: service.metric("bi_snapshot_load_failures_total") >= 2)
    target.write_bytes(content)
    wait_until(lambda: service.sql("select version from versions").json()["rows"] == [[2]])


def test_a_lasting_fault_is_retried_ever_more_seldom(small: Small, serve: Callable[..., Service]) -> None:
    service = serve(snapshot_poll_seconds=0.02)
    (small.snapshots / "current.json").write_bytes(b"rubbish")
    wait_until(lambda: service.metric("bi_snapshot_load_failures_total") == 2)  # at once, then after 2 s
    lines = [line for line in service.errors().splitlines() if "not a usable pointer" in line]
    assert len(lines) == 2


def test_the_outcome_of_a_publish_is_shown_by_the_service(small: Small, serve: Callable[..., Service]) -> None:
    service = serve(snapshot_poll_seconds=0.05)
    assert service.metric("bi_publish_last_success") == 1
    succeeded_at = service.metric("bi_publish_last_success_timestamp_seconds")
    (small.data / "sales.parquet").write_bytes(b"half a file")
    with pytest.raises(Exception, match=r"sales\.parquet"):
        small.publish()
    wait_until(lambda: service.metric("bi_publish_last_success") == 0)
    assert service.metric("bi_publish_last_success_timestamp_seconds") == succeeded_at
    assert service.metric("bi_publish_last_attempt_timestamp_seconds") > succeeded_at
    assert service.sql("select count(*) from sales").json()["rows"] == [[1000]]


def test_serving_only_reads_the_snapshot_folder(small: Small, serve: Callable[..., Service], tmp_path: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in small.snapshots.iterdir()}
    service = serve(spill_dir=tmp_path / "spill", engine_memory_bytes=80 * 2**20, max_running_queries=1)
    spilling = "select count(*) from (select hash(i)::varchar || repeat('x', 40) t from range(2000000) r(i) order by t)"
    answer: Any = service.sql(spilling + " where t > '0'")
    assert answer.status_code == 200, answer.text
    assert {path.name: path.stat().st_mtime_ns for path in small.snapshots.iterdir()} == before


def test_what_a_killed_service_spilled_is_removed_by_the_next(
    small: Small, serve: Callable[..., Service], tmp_path: Path
) -> None:
    spill = tmp_path / "spill"
    first = serve(spill_dir=spill, engine_memory_bytes=80 * 2**20, max_running_queries=1)
    sql = "select count(*) from (select hash(i)::varchar || repeat('x', 40) t from range(80000000) r(i) order by t)"
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(first.sql, sql + " where t > '0'")
        wait_until(lambda: list(spill.glob("*/*")), 30, what="something spilled")
        first.process.kill()
        first.process.wait(10)
        assert isinstance(asked.exception(), httpx.HTTPError)
    assert list(spill.glob("*/*"))
    serve(spill_dir=spill)
    wait_until(lambda: not list(spill.glob("*/*")), what="the dead one's spill to be removed")
