"""The snapshots' disk full, a corrupt snapshot published, the newest one deleted: the data that was served is served on."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.support.production import ProductionStack
from tests.support.service import wait_until
from tests.support.small import Small
from tests.support.stack import compose_image, docker

from .conftest import CUT_BY_A_KILL, Chaos
from .hosts import kill, metric

FILL = """
import os, pathlib
with open("/v/filler", "wb") as file:
    try:
        while True:
            file.write(bytes(65536)); file.flush()
    except OSError as error:
        print(error.errno)
"""
CORRUPT = """
import json, os, pathlib, time
pathlib.Path("/v/deadbeefdeadbeef.duckdb").write_bytes(os.urandom(100_000))
pathlib.Path("/v/new").write_text(json.dumps({"snapshot_id": "deadbeefdeadbeef", "published_at": time.time()}))
os.replace("/v/new", "/v/current.json")
"""
POINTER_GARBAGE = "import pathlib; pathlib.Path('/v/current.json').write_bytes(b'{\\x00 no pointer')"
DELETE_NEWEST = """
import json, pathlib
pathlib.Path(f"/v/{json.loads(pathlib.Path('/v/current.json').read_bytes())['snapshot_id']}.duckdb").unlink()
"""


def on_the_disk(stack: ProductionStack, code: str) -> str:
    """Run Python on the snapshots' volume, as the publisher's user."""
    flags = ["run", "--rm", "--user", "10001:10001", "--network", "none", "-v", f"{stack.project}_snapshots:/v"]
    return docker(*flags, "--entrypoint", "python", compose_image("BI_QUERY_IMAGE"), "-c", code)


def publish(stack: ProductionStack) -> int:
    return stack.compose("run", "--rm", "-T", "publish", timeout=120, check=False).returncode


def publish_is_told_to_fail(stack: ProductionStack) -> bool:
    """What the alert PublishFailing looks at."""
    return all(metric(url, "bi_publish_last_success") == 0 for url in stack.replicas().values())


def served(stack: ProductionStack) -> set[str]:
    """The snapshots that the replicas answer from."""
    answers = [httpx.get(f"{url}/health/ready", timeout=10) for url in stack.replicas().values()]
    return {answer.json()["snapshot_id"] if answer.status_code == 200 else "none" for answer in answers}


def test_the_snapshots_disk_is_full_when_new_data_is_published(
    chaos: Chaos, stack: ProductionStack, small_data: Small
) -> None:
    before = served(stack)
    with chaos.fault("snapshot volume full during publish") as ordeal:
        assert on_the_disk(stack, FILL).strip() == "28", "the disk is not full"
        small_data.write_data(2)
        try:
            assert publish(stack) != 0
            ordeal.users.more(200)
            assert served(stack) == before
            wait_until(lambda: publish_is_told_to_fail(stack), 20, what="the replicas to report the failed publish")
        finally:
            small_data.write_data(1)  # first: the publisher tries by itself as soon as there is room
            on_the_disk(stack, "import pathlib; pathlib.Path('/v/filler').unlink()")
        ordeal.heals(lambda: publish(stack) == 0, "a publish that works")
    assert served(stack) == before


@pytest.fixture
def no_publisher(stack: ProductionStack) -> Iterator[None]:
    """It would put right what a test breaks, before anybody misses it. Not paused: it might hold the folder's lock."""
    publisher = stack.inspect("publisher", running=True)[0]["Id"]
    docker("stop", publisher)
    try:
        yield
    finally:
        docker("start", publisher)


def test_a_corrupt_snapshot_is_published(chaos: Chaos, stack: ProductionStack, no_publisher: None) -> None:
    before = served(stack)
    with chaos.fault("a corrupt snapshot published") as ordeal:
        on_the_disk(stack, CORRUPT)
        ordeal.fires("SnapshotLoadFailing")
        assert served(stack) == before
        on_the_disk(stack, POINTER_GARBAGE)
        ordeal.users.more(200)
        assert served(stack) == before
        ordeal.heals(lambda: publish(stack) == 0 and served(stack) == before, "the good snapshot")


def test_the_newest_snapshot_deleted_and_a_replica_killed(
    chaos: Chaos, stack: ProductionStack, no_publisher: None
) -> None:
    """Who holds it open serves on; who starts without it is not asked until it is there again."""
    before = served(stack)
    victim = stack.inspect("query", running=True)[0]
    with chaos.fault("the newest snapshot deleted, a replica killed", may_cut=CUT_BY_A_KILL) as ordeal:
        on_the_disk(stack, DELETE_NEWEST)
        ordeal.users.more(100)
        assert served(stack) == before
        kill(victim["State"]["Pid"])
        wait_until(lambda: "none" in served(stack), 30, what="the killed replica to be up, with nothing to serve")
        ordeal.users.more(200)
        ordeal.heals(lambda: publish(stack) == 0 and served(stack) == before, "every replica to serve it again")
