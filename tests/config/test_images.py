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
