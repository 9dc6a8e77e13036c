"""`make images` with registries that answer, refuse, or are not there; the engine that pulls is the real one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.registry import Registry, registry
from tests.support.service import free_port
from tests.support.stack import ROOT, compose_image, docker, require_engine

from .test_stack_programs import engine_of


class Checkout:
    """The parts of the repository that `images.sh` looks at, with an .env where every image is one that is here."""

    def __init__(self, folder: Path) -> None:
        self.root = folder
        shutil.copytree(ROOT / "infra", folder / "infra", ignore=shutil.ignore_patterns("__pycache__", "local"))
        (folder / "services/query").mkdir(parents=True)
        (folder / "services/query/Dockerfile").write_text("FROM scratch\nLABEL of.a=test\n")
        here = compose_image("BI_QUERY_IMAGE")
        self.settings = {}
        for path in ROOT.glob("compose*.yaml"):
            shutil.copy(path, folder)
            self.settings |= dict.fromkeys(re.findall(r"\$\{(BI_[A-Z_]+_IMAGE):-", path.read_text()), here)
        # A name of its own: nothing that is built here may take another's place.
        self.own = self.settings["BI_QUERY_IMAGE"] = f"bi-test/{folder.name.replace('_', '-')}:0"

    def run(self, *flags: str, **settings: str) -> subprocess.CompletedProcess[str]:
        lines = [f"{name}={value}" for name, value in {**self.settings, **settings}.items()]
        (self.root / ".env").write_text("\n".join(lines) + "\n")
        clean = {name: value for name, value in os.environ.items() if not name.startswith("BI_")}
        command = [self.root / "infra/images.sh", *flags]
        return subprocess.run(command, env=clean, capture_output=True, text=True, timeout=120, check=False)

    @property
    def found(self) -> str:
        path = self.root / ".stack/images.env"
        return path.read_text() if path.exists() else ""


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Checkout]:
    require_engine()
    checkout = Checkout(tmp_path)
    yield checkout
    docker("image", "rm", "-f", checkout.own, check=False)


@pytest.fixture
def answering() -> Iterator[Registry]:
    with registry() as server:
        yield server
        docker("image", "rm", "-f", *(f"{server.host}/{name}:1" for name in ("redis", "bi")), check=False)


REDIS, GRAFANA = "far.test/redis:1", "far.test/grafana:1"


def pulling(folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[Checkout, Path]:
    """A checkout, and an engine that fails to pull with these words, one pull after another; beside what it was asked."""
    (folder / "bin").mkdir()
    for number, said in enumerate(words, start=1):
        (folder / f"bin/{number}").write_text(said)
    pull = (
        f"n=$(grep -c '^pull ' {folder}/bin/asked); [ -f {folder}/bin/$n ] || exit 0; cat {folder}/bin/$n >&2; exit 1"
    )
    monkeypatch.setenv(
        "PATH", engine_of(folder / "bin", "'image inspect far.test'*) exit 1;;", f"'pull '*) {pull};;")["PATH"]
    )
    (folder / "checkout").mkdir()
    return Checkout(folder / "checkout"), folder / "bin/asked"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("manifest for far.test/redis@sha256:0a4290 not found: manifest unknown: 429", "has no such image or tag"),
        ("far.test/redis:1: not found", "has no such image or tag"),
        ("unexpected status from GET /v2/redis/blobs/sha256:0a429bc: 500 Internal Server Error", "the pull failed"),
        ("unexpected status: 429 Too many", "allows no more pulls for now"),
        (
            "pull access denied for redis, repository does not exist or may require 'docker login'",
            "wants a login for it",
        ),
        ("permission denied while trying to connect to the Docker daemon socket", "this user may not ask the engine"),
    ],
)
def test_what_docker_says_of_a_pull_is_put_into_the_right_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, said: str
) -> None:
    checkout, asked = pulling(tmp_path, monkeypatch, words)
    done = checkout.run(BI_REDIS_IMAGE=REDIS)
    assert done.returncode == 1 and said in done.stderr, done.stdout + done.stderr
    assert asked.read_text().count("pull -q") == 1


RESET = (
    'Get "https://far.test/v2/redis/blobs/sha256:00": read tcp 10.0.0.1:1->10.0.0.2:443: read: connection reset by peer'
)


@pytest.mark.parametrize("then", ["unexpected EOF", "dial tcp 10.0.0.2:443: connect: connection refused"])
def test_a_pull_that_breaks_off_twice_is_a_failure_and_no_stand_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    checkout, asked = pulling(tmp_path, monkeypatch, RESET, then)
    done = checkout.run(BI_GRAFANA_IMAGE=GRAFANA)
    assert done.returncode == 1 and "far.test answers, and the pull broke off twice" in done.stderr, done.stdout
    assert asked.read_text().count("pull -q") == 2 and checkout.found == ""


def test_a_pull_that_broke_off_once_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout, _ = pulling(tmp_path, monkeypatch, RESET)
    done = checkout.run(BI_GRAFANA_IMAGE=GRAFANA)
    assert done.returncode == 0 and f"ok: {GRAFANA} (pulled)" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("words", ["EOF", "read: connection reset by peer", "context deadline exceeded"])
def test_a_registry_that_breaks_off_at_the_first_question_cannot_be_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    checkout, asked = pulling(tmp_path, monkeypatch, f'Get "https://far.test/v2/": {words}')
    done = checkout.run(BI_GRAFANA_IMAGE=GRAFANA)
    assert done.returncode == 0 and "GRAFANA IS LEFT OUT" in done.stdout, done.stdout + done.stderr
    assert asked.read_text().count("pull -q") == 1


def test_an_own_image_that_is_refused_is_not_told_to_be_had_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout, _ = pulling(tmp_path, monkeypatch, "manifest unknown")
    done = checkout.run("--own", BI_QUERY_IMAGE="far.test/bi:1", BI_QUERY_PULL_POLICY="missing")
    assert done.returncode == 1 and "correct BI_QUERY_IMAGE" in done.stderr and "BI_OFFLINE" not in done.stderr


def test_an_image_that_a_registry_has_is_pulled(checkout: Checkout, answering: Registry) -> None:
    done = checkout.run(BI_REDIS_IMAGE=f"{answering.host}/redis:1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"ok: {answering.host}/redis:1 (pulled)" in done.stdout
    assert "REDIS" not in checkout.found, "the image that was named is the one that is taken"


@pytest.mark.parametrize(
    ("tag", "said"),
    [
        ("unknown", "has no such image or tag"),
        ("busy", "allows no more pulls for now"),
        ("private", "wants a login for it: docker login"),
    ],
)
def test_an_image_that_a_registry_refuses_is_a_failure_and_no_stand_in(
    checkout: Checkout, answering: Registry, tag: str, said: str
) -> None:
    done = checkout.run(BI_REDIS_IMAGE=f"{answering.host}/redis:{tag}", BI_GRAFANA_IMAGE=f"{answering.host}/redis:1")
    assert done.returncode == 1, done.stdout
    assert f"{answering.host}/redis:{tag}: {answering.host}" in done.stderr and said in done.stderr
    assert "docker's words: " in done.stdout and "stands in for" not in done.stdout
    assert f"ok: {answering.host}/redis:1 (pulled)" in done.stdout, "the registry was asked no more"
    assert checkout.found == ""


def test_what_a_registry_has_that_cannot_be_reached_the_stack_does_without(checkout: Checkout) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    done = checkout.run(BI_GRAFANA_IMAGE=f"{nobody}/grafana:1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{nobody} cannot be reached" in done.stdout and "connection refused" in done.stdout
    assert "BI_GRAFANA_REPLICAS=0" in checkout.found and "GRAFANA IS LEFT OUT" in done.stdout


def test_a_registry_is_not_asked_when_the_user_said_so(checkout: Checkout, answering: Registry) -> None:
    done = checkout.run(BI_GRAFANA_IMAGE=f"{answering.host}/grafana:1", BI_OFFLINE="true")
    assert (done.returncode, answering.asked) == (0, [])


@pytest.mark.parametrize("flags", [(), ("--own",)], ids=["images", "up"])
def test_an_own_image_of_a_registry_is_pulled_and_never_built_over(
    checkout: Checkout, answering: Registry, flags: tuple[str, ...]
) -> None:
    image = f"{answering.host}/bi:1"
    done = checkout.run(*flags, BI_QUERY_IMAGE=image, BI_QUERY_PULL_POLICY="missing")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"ok: {image} (pulled)" in done.stdout and "building" not in done.stdout
    asked = len(answering.asked)
    again = checkout.run("--own", BI_QUERY_IMAGE=image, BI_QUERY_PULL_POLICY="missing")
    assert (again.returncode, len(answering.asked)) == (0, asked), "it is here already"
    assert "of.a" not in docker("image", "inspect", image)


def test_an_own_image_that_cannot_be_pulled_is_a_failure(checkout: Checkout, answering: Registry) -> None:
    image = f"{answering.host}/bi:unknown"
    done = checkout.run("--own", BI_QUERY_IMAGE=image, BI_QUERY_PULL_POLICY="missing")
    assert done.returncode == 1 and "has no such image or tag" in done.stderr
    nobody = f"127.0.0.1:{free_port()}/bi:1"
    done = checkout.run("--own", BI_QUERY_IMAGE=nobody, BI_QUERY_PULL_POLICY="always")
    assert done.returncode == 1 and "it is not built here" in done.stderr


def test_an_own_image_of_no_registry_is_built(checkout: Checkout) -> None:
    done = checkout.run("--own")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "of.a" in docker("image", "inspect", checkout.own)
