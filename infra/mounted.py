#!/usr/bin/env python3
"""Files that services mount and read only at their start: who runs on older ones reads them anew (make up, make deploy).

`compose up` compares settings and images, not what is in a mounted file; and a file that was replaced by renaming, as git
does, is inside a running container the old one still, so that no signal would help.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

from stack_tools import (
    ROOT,
    SERVICE_LABEL,
    STATE,
    Failure,
    Json,
    Voice,
    configuration,
    containers,
    docker,
    wait_healthy,
)

OF_THE_RELEASE = (ROOT / "infra", ROOT / "alerts")
OF_THIS_MACHINE = ROOT / "infra" / "local"  # services look into these folders by themselves
RESTART_SECONDS = 300
PRODUCTION = "/etc/caddy/production.caddy"
RELOAD_EDGE = ("caddy", "reload", "--config", PRODUCTION, "--adapter", "caddyfile",
               "--address", "unix//tmp/caddy-admin.sock")  # fmt: skip
# What a service itself says of its files. One that has no such word starts on whatever there is.
CHECKS: dict[str, tuple[str, ...]] = {
    "prometheus": ("promtool", "check", "config", "/etc/prometheus/prometheus.yaml"),
    "edge": ("caddy", "adapt", "--config", "/etc/caddy/Caddyfile", "--adapter", "caddyfile"),
    "alertmanager": ("/bin/sh", "/etc/alertmanager/entrypoint.sh", "--render"),
    "blackbox": ("/bin/blackbox_exporter", "--config.check", "--config.file=/etc/blackbox/blackbox.yaml"),
}


def read_anew(project: str, voice: Voice, folders: Sequence[Path] = OF_THE_RELEASE) -> None:
    """Restart what runs on files older than those here, one by one; production's edge reloads, so that nobody is cut off.

    Raises `Failure`, when all have had their turn, naming those that would not start on the new ones and so run on the old
    ones still, and those that did not become healthy.
    """
    record, failures = Record(project), []
    for container in containers(project):
        sources = mounted(container, folders)
        # A one-shot reads them at its next run.
        if not sources or container["HostConfig"]["RestartPolicy"]["Name"] in ("", "no"):
            continue
        content = digest(sources)
        changed = changed_since_start(container, sources)
        if changed and record.seen(container) != content:
            try:
                renew(container, changed, voice)
            except Failure as failure:
                failures.append(f"{container['Config']['Labels'][SERVICE_LABEL]}: {failure}")
                continue
        record.note(container, content)
    record.write()
    if failures:
        raise Failure("\n".join(failures))


def renew(container: Json, changed: Sequence[str], voice: Voice) -> None:
    """Have a container read its files. Raises `Failure`."""
    if is_production_edge(container):
        docker("exec", container["Id"], *RELOAD_EDGE)  # refuses what it cannot run, and goes on as it was
        voice.say("the edge has read its files anew")
        return
    name = str(container["Config"]["Labels"][SERVICE_LABEL])
    if name in CHECKS:
        check(container, CHECKS[name])
    voice.say(f"restarting {name}: {', '.join(changed)} changed after it started")
    docker("restart", container["Id"])
    wait_healthy(container["Id"], RESTART_SECONDS)


def check(container: Json, command: Sequence[str]) -> None:
    """Run a service's own checker on its files as they are now, in a container beside it. Raises `Failure` in its words."""
    config = container["Config"]
    flags = ["--rm", "--network", "none", "--tmpfs", "/tmp", "--user", config["User"] or "0"]  # noqa: S108 - the container's
    for mount in container["Mounts"]:
        flags += ["-v", f"{mount['Source']}:{mount['Destination']}:ro"] if mount["Type"] == "bind" else []
    for variable in config["Env"] or []:
        flags += ["-e", variable]
    try:
        docker("run", *flags, "--entrypoint", command[0], container["Image"], *command[1:], timeout=60)
    except Failure as failure:
        words = str(failure).partition("failed:\n")[2] or str(failure)
        raise Failure(f"it runs on its old files: it would not start on the new ones:\n{words}") from failure


def mounted(container: Json, folders: Iterable[Path]) -> list[Path]:
    """What it mounts of these folders, but for what is this machine's own."""
    binds = [Path(mount["Source"]).resolve() for mount in container["Mounts"] if mount["Type"] == "bind"]
    return [
        path
        for path in binds
        if any(path.is_relative_to(folder) for folder in folders) and not path.is_relative_to(OF_THIS_MACHINE)
    ]


def changed_since_start(container: Json, sources: Iterable[Path]) -> list[str]:
    """Those in which something is newer than the container's start.

    By the time of the last change of the file itself (ctime), which nobody can set: an unpacked archive brings old mtimes.
    """
    started = datetime.fromisoformat(container["State"]["StartedAt"]).timestamp()
    return sorted(
        str(source.relative_to(ROOT) if source.is_relative_to(ROOT) else source)
        for source in sources
        if any(path.lstat().st_ctime > started for path in [source, *source.rglob("*")] if path.exists())
    )


def digest(sources: Iterable[Path]) -> str:
    """Of the names and the content of all files in them."""
    hashed = hashlib.sha256()
    for source in sorted(sources):
        for path in sorted(path for path in [source, *source.rglob("*")] if path.is_file()):
            content = path.read_bytes()
            hashed.update(f"{path.relative_to(source.parent)}\0{len(content)}\0".encode())
            hashed.update(content)
    return hashed.hexdigest()


class Record:
    """With what content each container was last seen to run: a change of modes (chmod) or a second reload is no news."""

    def __init__(self, project: str) -> None:
        self._path = STATE / f"mounted-{project}.json"
        self._before: dict[str, str] = {}
        self._now: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError):
            self._before = dict(json.loads(self._path.read_text(encoding="utf-8")))

    def seen(self, container: Json) -> str | None:
        """The digest that was noted, if any."""
        return self._before.get(container["Id"])

    def note(self, container: Json, content: str) -> None:
        """It runs on this."""
        self._now[container["Id"]] = content

    def write(self) -> None:
        """Keep it for the next time. Without it a restart too many may happen, and no worse."""
        with contextlib.suppress(OSError):
            STATE.mkdir(exist_ok=True)
            self._path.write_text(json.dumps(self._now, indent=1), encoding="utf-8")


def is_production_edge(container: Json) -> bool:
    """Production's edge can be told to read its files anew; the other has no door for that."""
    return PRODUCTION in (container["Config"]["Cmd"] or [])


if __name__ == "__main__":
    try:
        read_anew(str(configuration()["name"]), Voice("up"))
    except Failure as failure:
        sys.exit(f"up: {failure}")
