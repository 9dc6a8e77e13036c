"""New data reaches every replica while it answers, no old answer follows a new one, and one command goes back."""

from __future__ import annotations

import threading
import time

import httpx

from tests.support.service import wait_until
from tests.support.small import Small
from tests.support.stack import MEASURED, Stack

Seen = list[tuple[str, int]]  # (snapshot id, the version that the data itself names), in the order of the answers


def watch(key: dict[str, str], url: str, path: str, seen: Seen, stop: threading.Event, failures: list[str]) -> None:
    with httpx.Client(base_url=url, headers=key, timeout=10) as client:
        while not stop.is_set():
            answer = client.get(path)
            if answer.status_code == 200:
                table = answer.json()
                names = [column["name"] for column in table["columns"]]
                seen.append((answer.headers["X-Data-Version"], table["rows"][0][names.index("version")]))
            else:
                failures.append(f"{url}{path}: {answer.status_code}")
            stop.wait(0.02)


def test_a_second_publish_reaches_every_replica_and_no_old_answer_follows(stack: Stack, small_data: Small) -> None:
    seen: dict[str, Seen] = {}
    failures: list[str] = []
    stop = threading.Event()
    threads = []
    for url in stack.replicas().values():  # each by itself, cached and computed
        for path in ("/api/v1/queries/shops", "/api/v1/queries/uncached"):
            seen[url + path] = []
            arguments = (stack.key, url, path, seen[url + path], stop, failures)
            threads.append(threading.Thread(target=watch, args=arguments, daemon=True))
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: all(seen.values()), what="a first answer of each replica")
        small_data.write_data(2)
        stack.compose("run", "--rm", "-T", "publish", timeout=120)
        published = time.monotonic()
        wait_until(
            lambda: all(answers[-1][1] == 2 for answers in seen.values()), 20, what="the new data on every replica"
        )
        MEASURED["from published to served by every replica"] = f"{time.monotonic() - published:.1f} s"
        counts = {where: len(answers) for where, answers in seen.items()}
        wait_until(
            lambda: all(len(answers) > counts[where] + 40 for where, answers in seen.items()), what="more answers"
        )
    finally:
        stop.set()
        for thread in threads:
            thread.join(15)
    assert not failures
    for where, answers in seen.items():
        versions = [version for _, version in answers]
        assert versions == sorted(versions), f"{where} gave an old answer after a new one"
        assert set(versions) == {1, 2}
    ids = {version: {i for answers in seen.values() for i, v in answers if v == version} for version in (1, 2)}
    assert len(ids[1]) == len(ids[2]) == 1 and ids[1] != ids[2], "X-Data-Version does not tell what the data is"


def test_publishing_the_same_data_again_changes_nothing(stack: Stack) -> None:
    before = {
        url: stack.get("/api/v1/queries/uncached", url).headers["X-Data-Version"] for url in stack.replicas().values()
    }
    stack.compose("run", "--rm", "-T", "publish", timeout=120)
    after = {url: stack.get("/api/v1/queries/uncached", url).headers["X-Data-Version"] for url in before}
    assert before == after


def test_a_publish_that_fails_leaves_the_old_data_serving(stack: Stack, small_data: Small) -> None:
    broken = small_data.data / "broken.parquet"
    broken.write_bytes(b"this is no Parquet")
    try:
        assert stack.compose("run", "--rm", "-T", "publish", timeout=120, check=False).returncode != 0
        for url in stack.replicas().values():
            assert stack.get("/api/v1/queries/uncached", url).json()["rows"] == [[2]]
    finally:
        broken.unlink()
    assert stack.compose("run", "--rm", "-T", "publish", timeout=120).returncode == 0


def versions(stack: Stack) -> list[int]:
    """The version of the data that each replica answers from."""
    answers = [
        httpx.get(f"{url}/api/v1/queries/uncached", headers=stack.key).json() for url in stack.replicas().values()
    ]
    return [answer["rows"][0][0] for answer in answers]


def test_files_that_arrive_are_published_without_anybody_asking(stack: Stack, small_data: Small) -> None:
    small_data.write_data(3)
    started = time.monotonic()
    wait_until(lambda: versions(stack) == [3, 3], 40, what="the publisher to publish")
    MEASURED["from a file's arrival to served by every replica"] = f"{time.monotonic() - started:.1f} s"


def test_one_command_goes_back_on_every_replica_and_neither_publisher_nor_start_undo_it(
    stack: Stack, small_data: Small
) -> None:
    stack.compose("run", "--rm", "-T", "--no-deps", "publish", "rollback", timeout=60)
    started = time.monotonic()
    wait_until(lambda: versions(stack) == [2, 2], 20, what="both replicas to go back")
    MEASURED["from rollback to served by every replica"] = f"{time.monotonic() - started:.1f} s"
    stack.compose("restart", "publisher", timeout=60)
    stack.compose("up", "-d", "--no-deps", "publish", timeout=60)

    def both_left_it_alone() -> bool:
        return stack.compose("logs", "--no-color", "publisher", "publish").stdout.count("rolled back to snapshot") >= 2

    wait_until(both_left_it_alone, 60, what="publisher and one-shot to have left the rollback alone")
    assert versions(stack) == [2, 2]
    small_data.write_data(2)
    wait_until(lambda: stack.compose("run", "--rm", "-T", "--no-deps", "publish", timeout=60).returncode == 0, 60)
    assert versions(stack) == [2, 2]
