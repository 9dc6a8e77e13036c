"""`make backup` of a running stack, its volumes destroyed, `make restore`: the same answers, keys, certificate, metrics."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from archive import Writer, members, verify
from volumes import held_still

from tests.support.production import ProductionStack
from tests.support.service import wait_until
from tests.support.small import Small, make_small
from tests.support.stack import MEASURED, compose_image, docker, python_in, running_stack, volume_files

from .traffic import traffic

# What the promise needs; publish, secrets-init and Redis come along.
SERVICES = ("edge", "query", "prometheus")
ANSWERS = (
    "/api/v1/queries/shops?limit=3",
    "/api/v1/queries/shops?format=csv",
    "/api/v1/queries/uncached",
    "/api/v1/queries/shops?format=arrow",
)
PROMETHEUS = """
import sys, urllib.parse, urllib.request
data = urllib.parse.urlencode({"query": sys.argv[1], "time": sys.argv[2]}).encode()
print(urllib.request.urlopen("http://prometheus:9090/api/v1/query", data, 10).read().decode())
"""
# A file of another user with a mode of its own, in a volume whose service is not part of this test.
PLANT = """
import os
with open("/v/grafana.db", "wb") as file: file.write(bytes(range(256)) * 64)
os.chmod("/v/grafana.db", 0o640); os.chown("/v/grafana.db", 472, 0); os.chown("/v", 472, 0)
"""
LOOK = """
import hashlib, json, os
found = {}
for folder, folders, files in os.walk("/v"):
    for name in folders + files + [""]:
        path = os.path.join(folder, name); s = os.lstat(path)
        digest = hashlib.sha256(open(path, "rb").read()).hexdigest() if os.path.isfile(path) else "folder"
        found[os.path.relpath(path, "/v")] = [oct(s.st_mode), s.st_uid, s.st_gid, digest]
print(json.dumps(found))
"""


@dataclass
class Before:
    """What the stack said before its volumes were destroyed, and the backup of that."""

    archive: Path
    answers: list[tuple[str, bytes]]
    good_key: str
    revoked_key: str
    metrics: list[object]
    moment: float
    files: dict[str, object]
    certificate: str


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Small:
    root = tmp_path_factory.mktemp("backup")
    for folder in (root, *root.parents[:2]):
        folder.chmod(0o755)
    return make_small(root)


@pytest.fixture(scope="module")
def saved(engine: None, data: Small) -> Iterator[ProductionStack]:
    settings = {
        "BI_DATA_FOLDER": str(data.data),
        "BI_CATALOGUE_FOLDER": str(data.catalogue),
        "BI_RATE_LIMIT": "1000000/minute",
        "BI_QUERY_REPLICAS": "1",
        "BI_DRAIN_SECONDS": "0",
    }
    with running_stack(ProductionStack(data.root, settings), *SERVICES) as running:
        assert isinstance(running, ProductionStack)
        docker(*in_volume(running, "grafana"), "--cap-add", "CHOWN", compose_image("BI_QUERY_IMAGE"), "-c", PLANT)
        yield running


def in_volume(saved: ProductionStack, volume: str) -> list[str]:
    name = f"{saved.project}_{volume}"
    labels = [
        "--label",
        f"com.docker.compose.project={saved.project}",
        "--label",
        f"com.docker.compose.volume={volume}",
    ]
    if name not in docker("volume", "ls", "-q").split():
        docker("volume", "create", *labels, name)
    return ["run", "--rm", "--user", "0", "--network", "none", "-v", f"{name}:/v", "--entrypoint", "python"]


def files(saved: ProductionStack, *volumes: str) -> dict[str, object]:
    """Every file of these volumes: mode, owner, hash."""
    image = compose_image("BI_QUERY_IMAGE")
    return {name: json.loads(docker(*in_volume(saved, name), image, "-c", LOOK)) for name in volumes}


def answers(saved: ProductionStack) -> list[tuple[str, bytes]]:
    with saved.client() as client:
        got = [client.get(path) for path in ANSWERS]
    assert [answer.status_code for answer in got] == [200] * len(ANSWERS)
    return [(answer.headers["X-Data-Version"], answer.content) for answer in got]


def keys(saved: ProductionStack, *commands: str) -> list[str]:
    """Run `bi-query keys` for each of these; the keys that were shown."""
    script = " && ".join(f"bi-query keys {command}" for command in commands)
    said = saved.compose("--profile", "tools", "run", "--rm", "-T", "--entrypoint", "sh", "keys", "-c", script).stdout
    return [word for word in said.split() if word.startswith("bi_")]


def accepted(saved: ProductionStack, key: str) -> int:
    with saved.client(headers={"X-API-Key": key}) as client:
        return client.get("/api/v1/queries").status_code


def metrics(saved: ProductionStack, at: float) -> list[object]:
    """Every sample that Prometheus has of the service and of itself at a moment."""
    replica = saved.inspect("query", running=True)[0]["Id"]
    answer = json.loads(python_in(replica, PROMETHEUS, '{job=~"query|prometheus"}', str(at)))
    return sorted(answer["data"]["result"], key=str)


@pytest.fixture(scope="module")
def before(saved: ProductionStack, data: Small) -> Before:
    """A backup under traffic; what it must bring back."""
    ana, bob = keys(saved, "add ana --role reader", "add bob --role reader", "revoke bob")
    data.write_data(2)  # a second snapshot, which the pointer leads to
    saved.compose("run", "--rm", "-T", "--no-deps", "publish", timeout=120)
    wait_until(lambda: [accepted(saved, key) for key in (ana, bob)] == [200, 401], 20, what="the keys")
    wait_until(lambda: b"2" in answers(saved)[2][1], 20, what="the second snapshot")
    wait_until(lambda: len(metrics(saved, time.time())) > 100, 60, what="Prometheus to have samples")
    moment = time.time()
    with traffic(saved, users=3) as users:
        wait_until(lambda: users.answered > 30, what="traffic")
        done = saved.program("python3", "infra/backup.py", str(data.root / "backups"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert users.failures == [] and set(users.statuses) == {200}
    held = next(line for line in done.stdout.splitlines() if "held still" in line)
    MEASURED["a backup under traffic"] = (
        f"{users.answered} requests, none failed, slowest {users.slowest:.2f} s; {held}"
    )
    (archive,) = (data.root / "backups").iterdir()
    kept = files(saved, "secrets", "keys", "edge", "grafana")
    now = metrics(saved, moment)
    return Before(archive, answers(saved), ana, bob, now, moment, kept, saved.root_certificate())


def containers(saved: ProductionStack) -> set[str]:
    return {f"{container['Id']} {container['State']['StartedAt']}" for container in saved.inspect(running=True)}


def test_a_backup_is_for_its_owners_eyes_alone_and_holds_prometheus_still_no_longer_than_it_must(
    saved: ProductionStack, before: Before
) -> None:
    assert before.archive.stat().st_mode & 0o777 == 0o600
    assert before.archive.parent.stat().st_mode & 0o777 == 0o700
    assert not any(container["State"]["Paused"] for container in saved.inspect())


def test_prometheus_goes_on_when_a_backup_is_ended_while_it_is_held_still(
    saved: ProductionStack, before: Before
) -> None:
    (container,) = saved.inspect("prometheus", running=True)
    with pytest.raises(KeyboardInterrupt), held_still(saved.project, "prometheus"):
        assert saved.inspect("prometheus")[0]["State"]["Paused"]
        raise KeyboardInterrupt
    (after,) = saved.inspect("prometheus", running=True)
    assert (after["Id"], after["State"]["Paused"]) == (container["Id"], False)


def test_a_damaged_backup_is_refused_and_nothing_is_changed(saved: ProductionStack, before: Before) -> None:
    running, content = containers(saved), before.archive.read_bytes()
    half = len(content) // 2
    end = (
        len(content) - 8
    )  # the checksum. Within deflate's own data a byte may change and what it unpacks to stay the same
    damaged = {
        "cut off": content[:half],
        "one byte other": content[:end] + bytes([content[end] ^ 1]) + content[end + 1 :],
        "not a backup": b"PAR1 and no more",
    }
    for what, wrong in damaged.items():
        path = before.archive.with_name("damaged.tar.gz")
        path.write_bytes(wrong)
        done = saved.program("python3", "infra/restore.py", str(path), YES="1")
        assert done.returncode == 1, what
        assert "is damaged or no backup" in done.stderr, done.stderr
    assert containers(saved) == running
    assert files(saved, *before.files) == before.files


def test_a_running_stack_is_not_replaced_without_a_yes(saved: ProductionStack, before: Before) -> None:
    running = containers(saved)
    done = saved.program("python3", "infra/restore.py", str(before.archive))
    assert done.returncode == 1
    assert "nothing was changed; YES=1" in done.stderr
    assert "REPLACES" in done.stdout and "is stopped for some seconds: edge" in done.stdout
    assert containers(saved) == running


def test_volumes_that_were_destroyed_come_back_as_they_were(saved: ProductionStack, before: Before) -> None:
    saved.down(volumes=True)
    assert docker("volume", "ls", "-q", "--filter", f"label=com.docker.compose.project={saved.project}") == ""
    started = time.monotonic()
    done = saved.program("python3", "infra/restore.py", str(before.archive), *SERVICES)
    assert done.returncode == 0, done.stdout + done.stderr
    MEASURED["restore of destroyed volumes, to healthy"] = f"{time.monotonic() - started:.1f} s"
    assert "as at the backup" in done.stdout

    assert answers(saved) == before.answers
    assert [accepted(saved, key) for key in (before.good_key, before.revoked_key)] == [200, 401]
    assert metrics(saved, before.moment) == before.metrics
    assert saved.root_certificate() == before.certificate
    assert files(saved, *before.files) == before.files
    assert len([name for name in volume_files(saved, "snapshots") if name.endswith(".duckdb")]) == 2
    wait_until(lambda: len(metrics(saved, time.time())) > 100, 60, what="Prometheus to go on")


@pytest.fixture(scope="module")
def late(saved: ProductionStack, before: Before) -> str:
    """A key that was made after the backup."""
    (key,) = keys(saved, "add late --role reader")
    wait_until(lambda: accepted(saved, key) == 200, 20, what="the new key")
    return key


def test_a_restore_that_never_turns_healthy_goes_back_to_what_was_there(
    saved: ProductionStack, before: Before, late: str
) -> None:
    there = files(saved, *before.files)
    path = unreadable_keys(before.archive)
    done = saved.program("python3", "infra/restore.py", str(path), *SERVICES, YES="1", BI_UP_SECONDS="20")
    assert done.returncode == 1
    assert "the stack runs on the data of before" in done.stderr, done.stdout + done.stderr
    assert "query | " in done.stderr and "keys" in done.stderr.partition("query | ")[2], "its own words"
    assert accepted(saved, late) == 200
    assert answers(saved) == before.answers
    assert files(saved, *before.files) == there


# What `docker` is to a restore in which something is killed: TRIGGER is in the command line, once, and then ACTION happens.
DOCKER = """#!{python}
import os, signal, sys
line = sys.argv[1:]
if {trigger!r} in " ".join(line) and not os.path.exists({once!r}):
    open({once!r}, "w").close()
    {action}
os.execv({docker!r}, [{docker!r}, *line])
"""
# The agent, killed when it has moved everything in its second volume and nothing in the third.
AGENT_DIES = """
import os, sys
sys.path.insert(0, "/opt/infra")
import volume_agent
plain, calls = volume_agent.wear, []
def wear(*arguments):
    calls.append(arguments)
    if len(calls) == 2: os._exit(137)
    plain(*arguments)
volume_agent.wear = wear
volume_agent.main("exchange")
"""
KILL_AGENT = f"line[-3:] = ['-Ec', {AGENT_DIES!r}]"
KILL_RESTORE = "os.kill(os.getppid(), signal.SIGKILL); sys.exit(1)"
END_RESTORE = "os.kill(os.getppid(), signal.SIG{}); import time; time.sleep(30)"


def with_docker(folder: Path, trigger: str, action: str) -> dict[str, str]:
    """An environment in which that happens."""
    real = shutil.which("docker")
    folder.mkdir()
    shim = folder / "docker"
    shim.write_text(
        DOCKER.format(python=sys.executable, trigger=trigger, once=str(folder / "once"), action=action, docker=real)
    )
    shim.chmod(0o755)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "YES": "1"}


@pytest.mark.parametrize(
    ("trigger", "action"),
    [
        ("volume_agent.py exchange", KILL_AGENT),
        (" up -d ", END_RESTORE.format("TERM")),
        (" up -d ", END_RESTORE.format("HUP")),
    ],
    ids=["the agent is killed between two volumes", "SIGTERM", "SIGHUP"],
)
def test_a_restore_that_is_interrupted_goes_back_to_what_was_there(
    saved: ProductionStack, before: Before, late: str, tmp_path: Path, trigger: str, action: str
) -> None:
    there = files(saved, *before.files)
    environment = with_docker(tmp_path / "bin", trigger, action)
    done = saved.program("python3", "infra/restore.py", str(before.archive), *SERVICES, **environment)
    assert (tmp_path / "bin/once").exists()
    assert done.returncode == 1
    assert "the stack runs on the data of before" in done.stderr, done.stdout + done.stderr
    assert files(saved, *before.files) == there
    assert accepted(saved, late) == 200
    assert answers(saved) == before.answers


def test_after_a_restore_that_was_killed_nothing_is_deleted_and_one_command_leads_back(
    saved: ProductionStack, before: Before, late: str, tmp_path: Path
) -> None:
    there = files(saved, *before.files)
    environment = with_docker(tmp_path / "bin", " up -d ", KILL_RESTORE)
    killed = saved.program("python3", "infra/restore.py", str(before.archive), *SERVICES, **environment)
    assert killed.returncode == -9
    again = saved.program("python3", "infra/restore.py", str(before.archive), *SERVICES, YES="1")
    assert again.returncode == 1
    assert "make restore UNDO=1" in again.stderr and "KEEP=1" in again.stderr
    saving = saved.program("python3", "infra/backup.py", str(tmp_path / "backups"))
    assert saving.returncode == 1 and "a restore has not come to its end" in saving.stderr
    assert list((tmp_path / "backups").iterdir()) == []
    for start in (["infra/up.sh", *SERVICES], ["python3", "infra/deploy.py", "--no-build"]):
        started = saved.program(*start)
        assert started.returncode == 1, start
        assert "make restore UNDO=1 puts them back" in started.stderr and "KEEP=1" in started.stderr, started.stderr
    assert saved.inspect() == [], "something was started"
    undone = saved.program("python3", "infra/restore.py", *SERVICES, UNDO="1")
    assert undone.returncode == 0, undone.stdout + undone.stderr
    assert files(saved, *before.files) == there
    assert accepted(saved, late) == 200
    nothing = saved.program("python3", "infra/restore.py", *SERVICES, UNDO="1")
    assert nothing.returncode == 1 and "no restore was interrupted" in nothing.stderr


def test_one_volume_alone_goes_back_to_the_backup_and_the_others_stay(
    saved: ProductionStack, before: Before, late: str
) -> None:
    there = files(saved, "edge", "grafana", "secrets")
    done = saved.program("python3", "infra/restore.py", str(before.archive), *SERVICES, YES="1", ONLY="kees")
    assert done.returncode == 1 and "kees is not among" in done.stderr
    done = saved.program("python3", "infra/restore.py", str(before.archive), *SERVICES, YES="1", ONLY="keys")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [accepted(saved, key) for key in (late, before.good_key)] == [401, 200]
    assert files(saved, "edge", "grafana", "secrets") == there
    assert files(saved, "keys") == {"keys": before.files["keys"]}


def test_after_a_restore_that_was_killed_the_restored_data_can_be_kept(
    saved: ProductionStack, before: Before, tmp_path: Path
) -> None:
    environment = with_docker(tmp_path / "bin", " up -d ", KILL_RESTORE)
    killed = saved.program("python3", "infra/restore.py", str(before.archive), *SERVICES, **environment)
    assert killed.returncode == -9
    kept = saved.program("python3", "infra/restore.py", KEEP="1")
    assert kept.returncode == 0, kept.stdout + kept.stderr
    assert files(saved, *before.files) == before.files
    done = saved.program("python3", "infra/restore.py", str(before.archive), *SERVICES, YES="1", ONLY="keys")
    assert done.returncode == 0, done.stdout + done.stderr
    assert answers(saved) == before.answers


def test_a_backup_whose_terminal_is_closed_lets_prometheus_go_on_and_leaves_no_file(
    saved: ProductionStack, before: Before, tmp_path: Path
) -> None:
    folder = tmp_path / "backups"
    folder.mkdir()
    (folder / f".{saved.project}-20260101T000000Z.tar.gz.part").write_text("secrets of a backup that was killed")
    pause = f"import subprocess, time; subprocess.run([{shutil.which('docker')!r}, *line]);"
    environment = with_docker(tmp_path / "bin", "pause ", f"{pause} {END_RESTORE.format('HUP')}")
    done = saved.program("python3", "infra/backup.py", str(folder), **environment)
    assert (tmp_path / "bin/once").exists()
    assert done.returncode == 129, done.stdout + done.stderr
    assert [container["State"]["Status"] for container in saved.inspect("prometheus")] == ["running"]
    assert list(folder.iterdir()) == []


def test_a_stack_that_is_stopped_is_backed_up_whole_too(saved: ProductionStack, data: Small, before: Before) -> None:
    saved.compose("stop", timeout=120)
    done = saved.program("python3", "infra/backup.py", str(data.root / "stopped"))
    assert done.returncode == 0, done.stdout + done.stderr
    (archive,) = (data.root / "stopped").iterdir()
    there, wanted = verify(archive)["volumes"], verify(before.archive)["volumes"]
    assert {volume: len(content["files"]) > 0 for volume, content in there.items()} == {
        volume: len(content["files"]) > 0 for volume, content in wanted.items()
    }
    assert any(name.startswith("wal/") for name in there["prometheus"]["files"])


def unreadable_keys(archive: Path) -> Path:
    """A backup that is whole, of a stack whose key file was not."""
    path = archive.with_name("unreadable-keys.tar.gz")
    with Writer(path) as writer:
        for volume, frame, body in members(archive):
            if (volume, frame["path"]) == ("keys", "keys.json"):
                writer.add(volume, {**frame, "bytes": 5}, io.BytesIO(b"[bad]"))
            else:
                writer.add(volume, frame, body or io.BytesIO())
        writer.finish({name: value for name, value in verify(archive).items() if name != "volumes"})
    return path
