"""Secrets of the stack: made once, each for one reader; and the rights they give in a real Redis."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from bi_query.keys import KeyFile, is_key
from redis.exceptions import NoPermissionError

ROOT = Path(__file__).parents[2]
READERS = {
    "api-key": 10001,
    "grafana-admin-password": 472,
    "grafana-secret-key": 472,
    "redis-admin-password": 999,
    "redis-exporter.json": 59000,
    "redis-password": 10001,
    "redis-users.acl": 999,
}


def make(folder: Path) -> str:
    if os.geteuid() != 0:
        pytest.skip("giving files to other users needs root (in the stack a container does it)")
    return subprocess.run(
        [sys.executable, str(ROOT / "infra/secrets/init.py")],
        env={**os.environ, "BI_SECRETS_FOLDER": str(folder), "BI_KEYS_FOLDER": f"{folder}-keys"},
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_each_secret_is_readable_by_its_one_reader(tmp_path: Path) -> None:
    make(tmp_path)
    found = {path.name: path.stat() for path in tmp_path.iterdir()}
    assert {name: status.st_uid for name, status in found.items()} == READERS
    assert {stat.S_IMODE(status.st_mode) for status in found.values()} == {0o400}


def test_a_second_start_changes_nothing(tmp_path: Path) -> None:
    make(tmp_path)
    first = contents(tmp_path)
    assert make(tmp_path) == "secrets: all there\n"
    assert contents(tmp_path) == first


def test_the_first_key_is_an_administrators_and_its_file_the_services(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    make(folder)
    file = KeyFile(Path(f"{folder}-keys") / "keys.json")
    [entry] = file.read()
    assert entry.role == "admin" and is_key((folder / "api-key").read_bytes(), entry)
    assert {path.stat().st_uid for path in (file.path, file.path.parent)} == {10001}


def test_a_lost_key_file_is_made_anew_with_a_key_that_fits_it(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    make(folder)
    before = (folder / "api-key").read_text()
    shutil.rmtree(f"{folder}-keys")
    assert make(folder) == "secrets: made api-key\n"
    [entry] = KeyFile(Path(f"{folder}-keys") / "keys.json").read()
    assert is_key((folder / "api-key").read_bytes(), entry) and (folder / "api-key").read_text() != before


def test_no_two_stacks_share_a_secret(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    make(one)
    make(other)
    assert not set(contents(one).values()) & set(contents(other).values())


def test_what_is_printed_holds_no_secret(tmp_path: Path) -> None:
    printed = make(tmp_path)
    assert not [value for name, value in contents(tmp_path).items() if name != "redis-users.acl" and value in printed]


def test_a_half_restored_set_of_redis_users_is_made_anew_and_whole(tmp_path: Path) -> None:
    make(tmp_path)
    before = contents(tmp_path)
    (tmp_path / "redis-users.acl").unlink()
    make(tmp_path)
    after = contents(tmp_path)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"redis-users.acl", "redis-password", "redis-admin-password", "redis-exporter.json"}


def test_redis_itself_is_given_no_password_only_hashes(tmp_path: Path) -> None:
    make(tmp_path)
    assert (tmp_path / "redis-password").read_text() not in (tmp_path / "redis-users.acl").read_text()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """Redis with the stack's own configuration and users; yields its port and the folder of secrets."""
    program = shutil.which("redis-server")
    if program is None:
        message = "redis-server is not installed (Debian package: redis-server)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    folder = tmp_path_factory.mktemp("secrets")
    make(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    process = subprocess.Popen(
        [program, str(ROOT / "infra/redis/redis.conf"), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder),
         "--aclfile", str(folder / "redis-users.acl"), "--maxmemory", "64mb"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, process.stdout and process.stdout.read()
            time.sleep(0.05)
    yield port, folder
    process.terminate()
    process.wait(10)


def service(server: tuple[int, Path]) -> Any:
    port, folder = server
    return redis.Redis(port=port, password=(folder / "redis-password").read_text(), decode_responses=True)


def test_the_service_may_do_what_a_cache_and_a_rate_limit_need(server: tuple[int, Path]) -> None:
    client = service(server)
    assert client.set("bi:a", "1", px=10_000, nx=True)
    assert client.eval("return redis.call('incr', KEYS[1])", 1, "bi:count") == 1
    assert list(client.scan_iter(match="bi:a")) == ["bi:a"]
    assert client.unlink("bi:a") == 1
    listener = client.pubsub()
    listener.subscribe("bi:invalidate")
    assert client.publish("bi:invalidate", "x") >= 0
    listener.close()


@pytest.mark.parametrize(
    "command",
    ["FLUSHALL", "FLUSHDB", "KEYS *", "CONFIG GET *", "CONFIG SET dir /", "SHUTDOWN NOSAVE", "ACL LIST", "MONITOR", "SAVE",
     "REPLICAOF 10.0.0.1 6379", "MODULE LIST", "DEBUG SLEEP 0", "CLIENT KILL TYPE normal"],
)  # fmt: skip
def test_the_service_may_not_touch_the_server_itself(command: str, server: tuple[int, Path]) -> None:
    with pytest.raises(redis.ResponseError):
        service(server).execute_command(*command.split())


def test_the_exporter_sees_numbers_and_no_data(server: tuple[int, Path]) -> None:
    port, folder = server
    (password,) = json.loads((folder / "redis-exporter.json").read_text()).values()
    client: Any = redis.Redis(port=port, username="exporter", password=password, decode_responses=True)
    assert client.info("memory")["maxmemory"] == 64 * 1024 * 1024
    assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "allkeys-lfu"}
    for command in ("GET bi:count", "SET bi:count 2", "SCAN 0", "CONFIG SET maxmemory 1"):
        with pytest.raises(NoPermissionError):
            client.execute_command(*command.split())


def test_nobody_gets_in_without_a_password(server: tuple[int, Path]) -> None:
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(port=server[0]).ping()


def test_redis_keeps_nothing_on_disk(server: tuple[int, Path]) -> None:
    port, folder = server
    password = (folder / "redis-admin-password").read_text()
    client = redis.Redis(port=port, username="admin", password=password, decode_responses=True)
    settings = client.config_get("save", "appendonly")
    assert settings == {"save": "", "appendonly": "no"}
