"""The stack's volumes, from outside: which of them hold state, and the container that reads or fills them.

No program of this machine touches a volume's files: they are other users', in a place that only the engine knows, on another
machine maybe. A container of the service's image does, without a network, with the few capabilities that takes.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import subprocess
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any, Self

from stack_tools import PROJECT_LABEL, ROOT, Failure, Json, containers, docker
from volume_reading import receive, send

PROGRAMS = ROOT / "infra"
# In the order of a backup; restoring needs none.
KEPT = {
    "snapshots": "snapshots, and the pointer to the current one",
    "keys": "API keys' hashes",
    "secrets": "Redis' and Grafana's passwords, the first API key",
    "audit": "who ran what",
    "edge": "certificates and the ACME account (production)",
    "alertmanager": "silences, and what was sent already",
    "grafana": "Grafana's users, preferences and own dashboards",
    "prometheus": "metrics",
}
LEFT_OUT = {
    "spill": "what running queries do not fit into memory",
    "llm-models": "the local model: llm-pull fetches it again",
    "loadtest-reports": "copied to loadtest/reports by make load",
    "loadtest-keys": "keys of a day",
}
# Whose owner is held still (docker pause) while its files are copied: they change in place.
HELD = {"grafana": "grafana", "prometheus": "prometheus"}
END_SECONDS = 60.0
CAPABILITIES = {
    "weigh": ["DAC_READ_SEARCH"],
    "state": ["DAC_READ_SEARCH"],
    "read": ["DAC_READ_SEARCH"],
    "fill": ["CHOWN", "DAC_OVERRIDE", "FOWNER"],
}


def volumes_of(resolved: Json) -> dict[str, str]:
    """The volumes that hold state, as the engine calls them, by their name in the compose files."""
    declared = resolved.get("volumes", {})
    return {name: str(declared[name]["name"]) for name in KEPT if name in declared}


def existing(volumes: Mapping[str, str]) -> dict[str, str]:
    """Those of them that are there."""
    found = set(docker("volume", "ls", "-q").split())
    return {name: engine_name for name, engine_name in volumes.items() if engine_name in found}


def create(project: str, volumes: Mapping[str, str]) -> None:
    """Make those that are not there, labelled as compose would, so that it takes them for its own."""
    for name in volumes.keys() - existing(volumes).keys():
        labels = (f"{PROJECT_LABEL}={project}", f"com.docker.compose.volume={name}")
        docker("volume", "create", *(flag for label in labels for flag in ("--label", label)), volumes[name])


class Agent:
    """The container beside the volumes, for the length of a `with` block. Raises `Failure` with its words."""

    def __init__(self, image: str, volumes: Mapping[str, str], mode: str) -> None:
        reading = mode in ("weigh", "read", "state")
        mounts = [f"type=volume,source={source},target=/volumes/{name}" for name, source in volumes.items()]
        mounts = [f"{mount},readonly" if reading else mount for mount in mounts]
        mounts.append(f"type=bind,source={PROGRAMS},target=/opt/infra,readonly")
        capabilities = CAPABILITIES.get(mode, CAPABILITIES["fill"])
        self._name = f"bi-volumes-{secrets.token_hex(6)}"
        # Logging `none`: else the engine would write every byte of the volumes into its log, too.
        flags = [
            "--rm",
            "--name",
            self._name,
            "-i",
            "--network",
            "none",
            "--read-only",
            "--user",
            "0:0",
            "--log-driver",
            "none",
            "--pull",
            "never",
        ]
        flags += ["--cap-drop", "ALL", *(flag for name in capabilities for flag in ("--cap-add", name))]
        flags += [
            "--security-opt",
            "no-new-privileges:true",
            *(flag for mount in mounts for flag in ("--mount", mount)),
        ]
        command = ["docker", "run", *flags, "--entrypoint", "python", image, "-Es", "/opt/infra/volume_agent.py", mode]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self._process.stdin and self._process.stdout and self._process.stderr  # noqa: S101 - pipes were asked for
        self.commands: IO[bytes] = self._process.stdin
        self.answers: IO[bytes] = self._process.stdout
        self._errors: IO[bytes] = self._process.stderr

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self.commands, self.answers):
            with contextlib.suppress(OSError):
                stream.close()
        self._end()
        self._errors.close()

    def _end(self) -> None:
        """Not before the container is gone: its client may end, or be killed, before it, and it would work on."""
        try:
            code = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        if code != 0:
            docker("rm", "-f", self._name, check=False)

    def send(self, frame: Json) -> None:
        """One frame to the agent."""
        try:
            send(self.commands, frame)
        except OSError:
            raise Failure(self._last_words()) from None

    def write(self, piece: bytes) -> None:
        """Part of a file to the agent."""
        try:
            self.commands.write(piece)
        except OSError:
            raise Failure(self._last_words()) from None

    def next(self) -> Json:
        """The next frame from the agent."""
        try:
            frame = receive(self.answers)
        except ValueError:
            frame = None
        if frame is None:
            raise Failure(self._last_words())
        if "error" in frame:
            raise Failure(str(frame["error"]))
        return frame

    def _last_words(self) -> str:
        with contextlib.suppress(OSError, ValueError):
            for line in self.answers:
                with contextlib.suppress(ValueError):
                    return str(json.loads(line)["error"])
        with contextlib.suppress(OSError):
            self.commands.close()
        self._end()
        return (
            self._errors.read().decode(errors="replace").strip()[-1500:]
            or "the container beside the volumes ended early"
        )


def ask(image: str, volumes: Mapping[str, str], mode: str) -> Json:
    """The agent's one answer to a mode that takes no commands."""
    with Agent(image, volumes, mode) as agent:
        return agent.next()


def weigh(image: str, volumes: Mapping[str, str]) -> dict[str, Any]:
    """`volumes`: files and bytes of each that is there; `free_bytes` of their disk; `state` as `volume_reading.state`.
    None there: an empty answer.
    """
    there = existing(volumes)
    return ask(image, there, "weigh") if there else {"volumes": {}, "free_bytes": None, "state": {}}


@contextlib.contextmanager
def held_still(project: str, volume: str) -> Iterator[Callable[[], bool]]:
    """The owner of a volume paused, when it runs. Calling what is given, or leaving the block, also by an error or Ctrl-C,
    lets it go on; the call says whether anybody was held.
    """
    service = HELD.get(volume, "")
    owners = [c["Id"] for c in containers(project, service) if not c["State"]["Paused"]] if service else []
    held: list[str] = []

    def let_go() -> bool:
        were_held = bool(held)
        while held:
            owner = held.pop()
            docker("unpause", owner, check=False)
            if docker("inspect", "--format", "{{.State.Paused}}", owner, check=False).strip() == "true":
                raise Failure(f"{service} could not be let go on: docker unpause {owner[:12]}")
        return were_held

    try:
        for owner in owners:
            held.append(owner)
            docker("pause", owner)
        yield let_go
    finally:
        let_go()
