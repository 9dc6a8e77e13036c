"""New data reaches every replica while it answers, and no old answer follows a new one."""

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
