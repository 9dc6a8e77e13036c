"""`make deploy`: another release under traffic, and one that is no good."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import deploy
import httpx
import mounted
import pytest
import stack_tools
from volumes import volumes_of

from tests.support.production import ProductionStack
from tests.support.service import wait_until
from tests.support.stack import MEASURED, PROJECT_LABEL, SERVICE_LABEL, compose_image, docker

from .traffic import traffic

USERS = 6
DEPLOY = ("python3", "infra/deploy.py", "--no-build")
# Serves nothing, says nothing, and does not end: what a release is like that waits for something that never comes.
HANGS = r"""printf '#!/bin/sh\n[ "$1" = publish ] && exit 0\nexec sleep 600\n' > /opt/bi/bin/bi-query"""
FAILS_TO_PUBLISH = r"""printf '#!/bin/sh\necho cannot publish; exit 4\n' > /opt/bi/bin/bi-query"""
# A program that reads its settings once, as Prometheus does.
READS_ONCE = "cat /etc/one.conf /etc/folder/* > /tmp/read; exec sleep 600"
ENDS = HANGS.replace("exec sleep 600", "echo no such setting; exit 3")


@pytest.fixture(scope="module")
def release(production: ProductionStack) -> Iterator[str]:
    """The name of an image to deploy; what is built under it goes at the end."""
    name = f"bi-solution/{production.project}:2.0"
    yield name
    docker("image", "rm", "-f", name, check=False)


def build(image: str, folder: Path, *, base: str, step: str = "true") -> str:
    (folder / "Dockerfile").write_text(
        f"FROM {base}\nUSER 0:0\nRUN {step}\nUSER 10001:10001\nLABEL test.release={image}\n"
    )
    docker("build", "-q", "-t", image, str(folder), timeout=120)
    return docker("image", "inspect", "--format", "{{.Id}}", image).strip()


def ask(client: httpx.Client, number: int) -> httpx.Response:
    """Hits, misses, and POST, which nobody may send twice."""
    if number % 3 == 0:
        return client.post("/api/v1/query", json={"sql": f"select count(*) as n, {number % 500} as k from sales"})
    if number % 3 == 1:
        return client.get("/api/v1/queries/uncached")
    return client.get("/api/v1/queries/shops", params={"limit": number % 20 + 1})


def images(production: ProductionStack) -> list[str]:
    return [container["Image"] for container in production.inspect("query", running=True)]


def test_a_new_release_replaces_the_old_one_and_no_request_fails(
    production: ProductionStack, release: str, tmp_path: Path
) -> None:
    (name,) = {container["Config"]["Image"] for container in production.inspect("query", running=True)}
    before = set(production.replicas())
    others = {c["Id"]: c["Name"] for c in production.inspect(running=True) if c["Config"]["Image"] != name}
    new = build(release, tmp_path, base=name)
    with traffic(production, ask, users=USERS) as users:
        wait_until(lambda: users.answered > 200, what="traffic")
        done = production.program(*DEPLOY, BI_QUERY_IMAGE=release)
        after = users.answered
        wait_until(lambda: users.answered > after + 200, 30, what="traffic on the new release")
    assert done.returncode == 0, done.stdout + done.stderr
    MEASURED["requests during a deploy of two replicas"] = (
        f"{users.answered}, {len(users.failures)} of them failed; slowest {users.slowest:.2f} s"
    )
    assert users.failures == [] and set(users.statuses) == {200}
    assert images(production) == [new, new]
    assert [c["Image"] for c in production.inspect("publisher", running=True)] == [new], (
        "it runs the service's image, too"
    )
    assert not before & {c["Id"] for c in production.inspect("query")}, "an old replica was left behind"
    running = {c["Id"] for c in production.inspect(running=True)}
    assert [name for one, name in others.items() if one not in running] == [], "replaced, and had not changed"


@pytest.mark.parametrize(("step", "reason"), [(HANGS, "not healthy within 8 s"), (ENDS, "no such setting")])
def test_a_release_that_never_turns_healthy_leaves_the_old_one_serving(
    production: ProductionStack, release: str, tmp_path: Path, step: str, reason: str
) -> None:
    serving = production.inspect("query", running=True)
    name = serving[0]["Config"]["Image"]
    (old,) = set(images(production))
    # Under the name that serves, as a build of the service is: afterwards the name must mean the old one again.
    build(name, tmp_path, base=name, step=step)
    try:
        with traffic(production, ask, users=USERS) as users:
            done = production.program(*DEPLOY, BI_QUERY_IMAGE=name, BI_DEPLOY_SECONDS="8")
            after = users.answered
            wait_until(lambda: users.answered > after + 50, 30, what="traffic")
        assert done.returncode == 1
        assert reason in done.stdout and "the old release serves on" in done.stderr
        assert users.failures == [] and set(users.statuses) == {200}
        assert {c["Id"] for c in production.inspect("query")} == {c["Id"] for c in serving}
        assert docker("image", "inspect", "--format", "{{.Id}}", name).strip() == old
    finally:
        docker("tag", old, name)


def test_a_release_whose_publish_fails_replaces_nothing_and_leaves_the_name_to_the_old_one(
    production: ProductionStack, release: str, tmp_path: Path
) -> None:
    serving = production.inspect("query", running=True)
    name = serving[0]["Config"]["Image"]
    (old,) = set(images(production))
    build(name, tmp_path, base=name, step=FAILS_TO_PUBLISH)
    try:
        done = production.program(*DEPLOY, BI_QUERY_IMAGE=name)
        assert done.returncode == 1
        assert "cannot publish" in done.stdout and "the old release serves on" in done.stderr, done.stdout + done.stderr
        assert {c["Id"] for c in production.inspect("query")} == {c["Id"] for c in serving}
        assert docker("image", "inspect", "--format", "{{.Id}}", name).strip() == old
    finally:
        docker("tag", old, name)


def started(production: ProductionStack) -> dict[str, str]:
    return {
        c["Config"]["Labels"][SERVICE_LABEL]: c["State"]["StartedAt"]
        for c in production.inspect(running=True)
        if c["Config"]["Labels"][SERVICE_LABEL] != "query"
    }


AGED = ("prometheus", "edge")


@pytest.fixture
def aged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Some containers started long before any file here was changed, and nobody has noted on what they run."""

    def containers(*arguments: str) -> list[stack_tools.Json]:
        found = stack_tools.containers(*arguments)
        for container in found:
            if container["Config"]["Labels"][SERVICE_LABEL] in AGED:
                container["State"]["StartedAt"] = "2000-01-01T00:00:00Z"
        return found

    monkeypatch.setattr(mounted, "containers", containers)
    monkeypatch.setattr(mounted, "STATE", tmp_path)


def test_a_deploy_restarts_the_services_whose_mounted_files_changed_and_no_other(
    production: ProductionStack, aged: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMPOSE_PROJECT_NAME", production.project)
    monkeypatch.setenv("BI_ENV_FILE", str(production.env))
    (image,) = {container["Config"]["Image"] for container in production.inspect("query", running=True)}
    monkeypatch.setenv("BI_QUERY_IMAGE", image)
    before, resolved = started(production), stack_tools.configuration()
    assert deploy.deploy(production.project, resolved["services"], volumes_of(resolved), build=False) == 0
    said = capsys.readouterr().out
    assert "restarting prometheus: alerts/rules, infra/prometheus/prometheus.yaml changed" in said
    assert "the edge has read its files anew" in said
    after = started(production)
    assert [name for name in after if after[name] != before[name]] == ["prometheus"]
    mounted.read_anew(production.project, deploy.voice)
    assert capsys.readouterr().out == "", "they run on the new files already"


@pytest.fixture
def reader(tmp_path: Path, engine: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A service that has read `tmp_path`'s files when it started; the project it is of."""
    monkeypatch.setattr(mounted, "STATE", tmp_path / "state")
    project = f"bi-test-{uuid.uuid4().hex[:8]}"
    (tmp_path / "folder").mkdir()
    (tmp_path / "one.conf").write_text("old\n")
    (tmp_path / "folder/rules").write_text("old rules\n")
    labels = {PROJECT_LABEL: project, SERVICE_LABEL: "reader", stack_tools.ONE_OFF_LABEL: "False"}
    flags = [flag for name, value in labels.items() for flag in ("--label", f"{name}={value}")]
    for name in ("one.conf", "folder"):
        flags += ["-v", f"{tmp_path}/{name}:/etc/{name}:ro"]
    flags += ["--restart", "unless-stopped", "--health-cmd", "test -s /tmp/read", "--health-start-interval", "0.2s"]
    flags += ["--health-start-period", "30s", "--stop-timeout", "0", "--entrypoint", "sh"]
    container = docker("run", "-d", *flags, compose_image("BI_REDIS_IMAGE"), "-c", READS_ONCE).strip()
    try:
        stack_tools.wait_healthy(container, 30)
        yield project
    finally:
        docker("rm", "-f", container)


def read_by(project: str) -> str:
    (container,) = stack_tools.containers(project)
    return docker("exec", container["Id"], "cat", "/tmp/read")


def replace(path: Path, text: str) -> None:
    """As git and editors do: another file takes the name."""
    path.with_name("new").write_text(text)
    path.with_name("new").rename(path)


def test_a_service_reads_a_mounted_file_that_was_replaced_by_renaming(
    reader: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mounted.read_anew(reader, stack_tools.Voice("test"), [tmp_path])
    assert capsys.readouterr().out == "", "nothing had changed"
    # An old time of its own, as a file out of an archive has.
    replace(tmp_path / "one.conf", "new\n")
    os.utime(tmp_path / "one.conf", (1, 1))
    mounted.read_anew(reader, stack_tools.Voice("test"), [tmp_path])
    assert read_by(reader) == "new\nold rules\n"
    assert f"restarting reader: {tmp_path}/one.conf changed" in capsys.readouterr().out
    mounted.read_anew(reader, stack_tools.Voice("test"), [tmp_path])
    assert capsys.readouterr().out == "", "restarted again, for nothing"


def test_a_service_reads_its_mounted_folder_when_a_file_in_it_came_or_went(reader: str, tmp_path: Path) -> None:
    (tmp_path / "folder/more").write_text("more\n")
    mounted.read_anew(reader, stack_tools.Voice("test"), [tmp_path])
    assert read_by(reader) == "old\nmore\nold rules\n"
    (tmp_path / "folder/rules").unlink()
    mounted.read_anew(reader, stack_tools.Voice("test"), [tmp_path])
    assert read_by(reader) == "old\nmore\n"


def test_a_change_of_modes_restarts_nothing(reader: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mounted.read_anew(reader, stack_tools.Voice("test"), [tmp_path])
    (tmp_path / "one.conf").chmod(0o640)
    mounted.read_anew(reader, stack_tools.Voice("test"), [tmp_path])
    assert capsys.readouterr().out == ""


def test_a_service_that_would_not_start_on_its_new_files_runs_on_with_the_old_ones_and_is_named(
    reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(mounted.CHECKS, "reader", ("sh", "-c", "! grep broken /etc/one.conf"))
    replace(tmp_path / "one.conf", "broken\n")
    for _ in range(2):  # said again as long as it is so
        with pytest.raises(stack_tools.Failure, match=r"reader: it runs on its old files: .*\n.*broken"):
            mounted.read_anew(reader, stack_tools.Voice("test"), [tmp_path])
    assert read_by(reader) == "old\nold rules\n"
    replace(tmp_path / "one.conf", "good\n")
    mounted.read_anew(reader, stack_tools.Voice("test"), [tmp_path])
    assert read_by(reader) == "good\nold rules\n"


def test_folders_that_are_the_users_own_restart_nothing(reader: str, tmp_path: Path) -> None:
    replace(tmp_path / "one.conf", "new\n")
    mounted.read_anew(reader, stack_tools.Voice("test"), [tmp_path / "elsewhere"])
    assert read_by(reader) == "old\nold rules\n"
