"""The whole stack as containers, for tests: testcontainers' DockerCompose with what it lacks.

It lacks a time-out, a project name, scaling and an explanation when a service does not become healthy; without a name
of its own a test would run on, and at its end delete, the volumes of the stack that a person uses.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import pytest
from testcontainers.compose import DockerCompose

from .service import free_port

ROOT = Path(__file__).resolve().parents[2]
IMAGES_ENV = ROOT / ".stack" / "images.env"
UP_SECONDS = 300
BUILD_SECONDS = 600
# The first test of a tier waits for the image to be built and for the stack to come up, before it begins.
STACK_TEST_SECONDS = BUILD_SECONDS + UP_SECONDS + 600
PROJECT_LABEL = "com.docker.compose.project"
SERVICE_LABEL = "com.docker.compose.service"
PUBLISHED = ("QUERY", "PROMETHEUS", "ALERTMANAGER", "GRAFANA")
READ_ALL = """
import json, pathlib
print(json.dumps({p.name: p.read_bytes().hex() for p in pathlib.Path("/v").iterdir() if p.is_file()}))
"""
MEASURED: dict[str, str] = {}  # what the tier reports at its end, by what was measured

Json = dict[str, Any]


def docker(*arguments: str, timeout: float = 60, check: bool = True) -> str:
    """Run the docker client; its standard output. Raises `AssertionError` with its own words when it fails."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=timeout, check=False)
    if check and done.returncode != 0:
        raise AssertionError(f"docker {' '.join(arguments)}: {done.stderr.strip()[-2000:]}")
    return done.stdout


def image_setting(name: str, default: str = "") -> str:
    """A line of what `make images` found (.stack/images.env), or the default."""
    lines = IMAGES_ENV.read_text().splitlines() if IMAGES_ENV.exists() else []
    found = [line.partition("=")[2] for line in lines if line.startswith(f"{name}=")]
    return found[-1] if found else default


def compose_image(variable: str) -> str:
    """The image behind `variable`: as `make images` found it, else as compose.yaml names it."""
    text = (ROOT / "compose.yaml").read_text()
    default = text.partition("${" + variable + ":-")[2].partition("}")[0]
    return image_setting(variable, default)


def has_grafana() -> bool:
    """Whether Grafana is part of the stack here: not where its image could be neither found nor pulled."""
    return image_setting("BI_GRAFANA_REPLICAS", "1") != "0"


def require_engine() -> None:
    """Skip with a reason where containers cannot be started; under CI that is a failure."""
    reason = _missing()
    if reason and os.environ.get("CI") == "true":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


def _missing() -> str:
    for what, command in {
        "no Docker engine answers (make engine)": ["docker", "version"],
        "docker compose is not installed (make engine)": ["docker", "compose", "version"],
        "the service's image is not built (make images)": [
            "docker",
            "image",
            "inspect",
            compose_image("BI_QUERY_IMAGE"),
        ],
    }.items():
        try:
            if subprocess.run(command, capture_output=True, timeout=60, check=False).returncode != 0:
                return what
        except FileNotFoundError:
            return "docker is not installed (make engine)"
    return ""


def own_image() -> None:
    """Skip without an engine; else have the service's image made of the source as it is now (seconds when unchanged)."""
    require_engine()
    done = subprocess.run(
        [ROOT / "infra/images.sh", "--own"], capture_output=True, text=True, timeout=BUILD_SECONDS, check=False
    )
    if done.returncode != 0 and os.environ.get("CI") != "true" and not IMAGES_ENV.exists():
        pytest.skip(
            "the service's image cannot be built here: its base can be neither found nor pulled (run make images)"
        )
    assert done.returncode == 0, done.stdout + done.stderr


class Stack(DockerCompose):
    """One project of compose.yaml, under a name and on ports of its own."""

    def __init__(self, folder: Path, settings: Mapping[str, str], *, scale: Mapping[str, int] | None = None) -> None:
        self.project = f"bi-test-{uuid.uuid4().hex[:8]}"
        self.scale = dict(scale or {})
        self.ports = {name: free_port() for name in PUBLISHED}
        ports = {f"BI_{name}_PORT": str(port) for name, port in self.ports.items()}
        urls = {f"BI_{n}_URL": f"http://127.0.0.1:{p}" for n, p in self.ports.items() if n != "QUERY"}
        lines = [f"{name}={value}" for name, value in {**ports, **urls, **settings}.items()]
        env = folder / f"{self.project}.env"
        env.write_text("\n".join(lines) + "\n")
        found = [str(IMAGES_ENV)] if IMAGES_ENV.exists() else []
        super().__init__(context=ROOT, env_file=[*found, str(env)])

    @cached_property
    def compose_command_property(self) -> list[str]:  # the name is testcontainers'
        """Compose's command with this project's name, which no variable of the environment can change."""
        return ["docker", "compose", *self._env_flags(), "-p", self.project]

    def _env_flags(self) -> list[str]:
        return [flag for file in self.env_file or [] for flag in ("--env-file", file)]

    def start(self) -> None:
        """All of it, healthy. What testcontainers calls on entering."""
        self.up()

    def up(self, *services: str, recreate: Iterable[str] = ()) -> float:
        """Start and wait until healthy; the seconds it took. Explains itself when a service is not."""
        scale = [flag for name, count in self.scale.items() for flag in ("--scale", f"{name}={count}")]
        flags = ["--force-recreate"] if recreate else []
        started = time.monotonic()
        done = self.compose(
            "up", "-d", "--no-build", "--wait", "--wait-timeout", str(UP_SECONDS), *scale, *flags, *services, *recreate,
            timeout=UP_SECONDS + 60, check=False,
        )  # fmt: skip
        # Compose 2.26 ends with 0 when the time is over, whatever is not healthy yet.
        named = {*services, *recreate}
        is_late = any(
            c["State"].get("Health", {}).get("Status") == "starting"
            for c in self.inspect(running=True)
            if not named or c["Config"]["Labels"][SERVICE_LABEL] in named
        )
        if done.returncode != 0 or is_late:
            raise AssertionError(f"the stack did not become healthy: {done.stderr.strip()[-800:]}\n{self.explain()}")
        return time.monotonic() - started

    def stop(self, down: bool = True) -> None:
        """Take it down with its volumes. What testcontainers calls on leaving."""
        self.down(volumes=down)

    def down(self, *, volumes: bool) -> None:
        """Remove the containers and networks of this project, and its volumes when asked to."""
        # Unpaused first, for a paused container cannot be stopped and would be waited for.
        self.compose("unpause", check=False)
        self.compose("down", "--timeout", "20", *(["--volumes"] if volumes else []), timeout=180)

    def compose(self, *arguments: str, timeout: float = 120, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run compose on this project. Raises `AssertionError` with its own words when `check` and it fails."""
        command = [*self.compose_command_property, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, cwd=ROOT)
        if check and done.returncode != 0:
            raise AssertionError(f"compose {' '.join(arguments)}: {done.stderr.strip()[-2000:]}")
        return done

    def inspect(self, service: str | None = None, *, running: bool = False) -> list[Json]:
        """What the engine knows of the containers, of one service or of all; exited ones too unless `running`."""
        labels = [f"label={PROJECT_LABEL}={self.project}"] + ([f"label={SERVICE_LABEL}={service}"] if service else [])
        flags = [flag for label in labels for flag in ("--filter", label)]
        ids = docker("ps", "-q", *([] if running else ["-a"]), *flags).split()
        found: list[Json] = json.loads(docker("inspect", *ids)) if ids else []
        return found

    def replicas(self) -> dict[str, str]:
        """Address of each running replica of the service (as this machine reaches it), by container id."""
        return {c["Id"]: f"http://{address(c)}:8000" for c in self.inspect("query", running=True)}

    def url(self, name: str) -> str:
        """Address of a published service: QUERY, PROMETHEUS, ALERTMANAGER, GRAFANA."""
        return f"http://127.0.0.1:{self.ports[name]}"

    @cached_property
    def key(self) -> dict[str, str]:
        """The header with the first API key, an administrator's."""
        return {"X-API-Key": volume_files(self, "secrets")["api-key"].decode()}

    def get(self, path: str, url: str = "", **headers: str) -> httpx.Response:
        """GET as that administrator, through the edge or from the replica at `url`."""
        return httpx.get(f"{url or self.url('QUERY')}{path}", headers={**self.key, **headers}, timeout=30)

    def client(self) -> httpx.Client:
        """A client of the edge, with that administrator's key."""
        return httpx.Client(base_url=self.url("QUERY"), headers=self.key, timeout=30)

    def explain(self) -> str:
        """Status of each service, and of those that are not well the last health check and log lines."""
        parts = []
        for container in self.inspect():
            state, service = container["State"], container["Config"]["Labels"][SERVICE_LABEL]
            health = state.get("Health", {})
            parts.append(f"{service}: {state['Status']} {health.get('Status', '')} exit code {state['ExitCode']}")
            if health.get("Status") == "healthy" or (state["Status"] == "exited" and state["ExitCode"] == 0):
                continue
            checks = [entry["Output"].strip() for entry in health.get("Log") or []]
            parts.append(f"  last health check: {checks[-1] if checks else 'none yet'}")
            logs = subprocess.run(
                ["docker", "logs", "--tail", "15", container["Id"]],
                capture_output=True,
                text=True,
                check=False,
                timeout=30,
            )
            parts += [f"  | {line}" for line in (logs.stdout + logs.stderr).splitlines()]
        return "\n".join(parts)


def address(container: Json) -> str:
    """An address of a container that this machine reaches: of any network but an internal one."""
    networks: Json = container["NetworkSettings"]["Networks"]
    found = [net["IPAddress"] for name, net in sorted(networks.items()) if not name.endswith(("_cache", "_models"))]
    assert found and found[0], f"{container['Name']} has no address: is it running?"
    return str(found[0])


def python_in(container: str, code: str, *arguments: str) -> str:
    """Run Python in a running container of the service."""
    return docker("exec", container, "python", "-c", code, *arguments)


def python_beside(container: str, code: str, *arguments: str) -> str:
    """Run Python in the network of any running container, whose own image need not have any tool."""
    flags = ["run", "--rm", "--network", f"container:{container}", "--read-only", "--cap-drop", "ALL"]
    return docker(*flags, "--entrypoint", "python", compose_image("BI_QUERY_IMAGE"), "-c", code, *arguments)


def volume_files(stack: Stack, volume: str) -> dict[str, bytes]:
    """Each file of a project's volume, by name."""
    image = compose_image("BI_QUERY_IMAGE")
    flags = ["run", "--rm", "--user", "0", "--network", "none", "-v", f"{stack.project}_{volume}:/v:ro"]
    text = docker(*flags, "--entrypoint", "python", image, "-c", READ_ALL)
    return {name: bytes.fromhex(content) for name, content in json.loads(text).items()}


class Prometheus:
    """A live Prometheus' API."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=20)

    def query(self, expr: str, at: float | None = None) -> list[Json]:
        """The samples of an instant query, now or at a time. Raises `AssertionError` with Prometheus' own words."""
        data = {"query": expr} | ({"time": str(at)} if at else {})
        answer = self._client.post("/api/v1/query", data=data).json()
        assert answer["status"] == "success", f"{expr}: {answer.get('error')}"
        result = answer["data"]["result"]
        return [{"metric": {}, "value": result}] if answer["data"]["resultType"] == "scalar" else list(result)

    def numbers(self, expr: str, at: float | None = None) -> list[float]:
        """The values alone, NaN left out."""
        values = [float(sample["value"][1]) for sample in self.query(expr, at)]
        return [value for value in values if value == value]

    def get(self, path: str) -> Json:
        """The data of another call: targets, rules, alertmanagers, alerts."""
        answer: Json = self._client.get(f"/api/v1/{path}").json()
        assert answer["status"] == "success", answer
        data: Json = answer["data"]
        return data


@contextlib.contextmanager
def running_stack(stack: Stack, *services: str) -> Iterator[Stack]:
    """The stack (or some services of it) up and healthy for the length of a block; its volumes go with it."""
    try:
        MEASURED[f"from up to healthy ({', '.join(services) or 'the whole stack'})"] = f"{stack.up(*services):.1f} s"
        yield stack
    finally:
        stack.stop()
