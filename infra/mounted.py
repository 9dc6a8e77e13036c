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
import uuid
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

from stack_tools import (
    ROOT,
    SERVICE_LABEL,
    STATE,
    Ended,
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
CHECK_SECONDS = 60
PRODUCTION = "/etc/caddy/production.caddy"
RELOAD_EDGE = ("caddy", "reload", "--config", PRODUCTION, "--adapter", "caddyfile",
               "--address", "unix//tmp/caddy-admin.sock")  # fmt: skip
# What a service itself says of its files. One that has no such word starts on whatever there is.
CHECKS: dict[str, tuple[str, ...]] = {
    "prometheus": ("promtool", "check", "config", "/etc/prometheus/prometheus.yaml"),
    "edge": ("caddy", "adapt", "--config", "/etc/caddy/Caddyfile", "--adapter", "caddyfile"),
    "llm-gate": ("caddy", "adapt", "--config", "/etc/caddy/llm-gate.caddy", "--adapter", "caddyfile"),
    "alertmanager": ("/bin/sh", "/etc/alertmanager/entrypoint.sh", "--render"),
    "blackbox": ("/bin/blackbox_exporter", "--config.check", "--config.file=/etc/blackbox/blackbox.yaml"),
}

# From here on docker's own codes, or a signal's: the checker has not come to say anything of the files.
NO_VERDICT = 125


class RunsOnOldFiles(Failure):
    """It goes on as it was; nothing was restarted."""


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
        try:
            content = digest(sources)
            changed = changed_since_start(container, sources)
            if changed and record.seen(container) != content:
                renew(container, changed, voice)
            record.note(container, content)
        except (Failure, OSError) as failure:
            if not isinstance(failure, Failure) or isinstance(failure, RunsOnOldFiles):
                record.keep(container)
            failures.append(f"{container['Config']['Labels'][SERVICE_LABEL]}: {failure}")
    record.write()
    if failures:
        raise Failure("\n".join(failures))


def renew(container: Json, changed: Sequence[str], voice: Voice) -> None:
    """Have a container read its files. Raises `RunsOnOldFiles`, or `Failure` when it was restarted and is not healthy."""
    if is_production_edge(container):
        try:
            docker("exec", container["Id"], *RELOAD_EDGE)
        except Failure as failure:
            raise RunsOnOldFiles(f"it runs on its old files: {failure}") from failure
        voice.say("the edge has read its files anew")
        return
    name = str(container["Config"]["Labels"][SERVICE_LABEL])
    if name in CHECKS:
        check(container, CHECKS[name])
    voice.say(f"restarting {name}: {', '.join(changed)} changed after it started")
    docker("restart", container["Id"])
    wait_healthy(container["Id"], RESTART_SECONDS)


def check(container: Json, command: Sequence[str]) -> None:
    """Run a service's own checker on its files as they are now, in a container beside it. Raises `RunsOnOldFiles` in its
    words, or in docker's when it came to no verdict within a minute.
    """
    name = f"bi-check-{uuid.uuid4().hex[:12]}"
    try:
        flags = ["--name", name, *confined_like(container), "--entrypoint", command[0]]
        docker("run", *flags, container["Image"], *command[1:], timeout=CHECK_SECONDS)
    except Ended as ended:
        verdict = "it would not start on the new ones" if ended.code < NO_VERDICT else "its check failed"
        raise RunsOnOldFiles(f"it runs on its old files: {verdict}:\n{ended.words}") from ended
    except Failure as failure:
        raise RunsOnOldFiles(f"it runs on its old files: its check failed: {failure}") from failure
    finally:
        with contextlib.suppress(Failure):  # a client that was given up leaves its container running
            docker("rm", "-f", name, timeout=CHECK_SECONDS, check=False)


def confined_like(container: Json) -> list[str]:
    """Flags for a container with the image's user, settings and bind mounts of this one, which can do nothing but read."""
    config, host = container["Config"], container["HostConfig"]
    flags = ["--rm", "--pull", "never", "--network", "none", "--read-only", "--tmpfs", "/tmp", "--memory", "256m"]  # noqa: S108
    flags += ["--security-opt", "no-new-privileges", "--user", config["User"] or "0", "--cap-drop", "ALL"]
    # Caddy's program carries a capability as a file, and does not start where that is not to be had.
    flags += [flag for capability in host["CapAdd"] or [] for flag in ("--cap-add", capability)]
    for mount in container["Mounts"]:
        if mount["Type"] == "bind":  # by --mount: -v would make a source that is gone, as root
            words = ("type=bind", f"source={mount['Source']}", f"target={mount['Destination']}", "readonly")
            flags += ["--mount", ",".join('"' + word.replace('"', '""') + '"' for word in words)]
    return flags + [flag for variable in config["Env"] or [] for flag in ("-e", variable)]


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
    Raises `OSError`.
    """
    started = datetime.fromisoformat(container["State"]["StartedAt"]).timestamp()
    return sorted(
        str(source.relative_to(ROOT) if source.is_relative_to(ROOT) else source)
        for source in sources
        if any(path.lstat().st_ctime > started for path in [source, *source.rglob("*")] if path.exists())
    )


def digest(sources: Iterable[Path]) -> str:
    """Of the names and the content of all files in them. Raises `OSError`, when one is gone, too."""
    hashed = hashlib.sha256()
    for source in sorted(sources):
        source.lstat()
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
        with contextlib.suppress(OSError, ValueError, TypeError):
            self._before = dict(json.loads(self._path.read_text(encoding="utf-8")))

    def seen(self, container: Json) -> str | None:
        """The digest that was noted, if any."""
        return self._before.get(container["Id"])

    def note(self, container: Json, content: str) -> None:
        """It runs on this."""
        self._now[container["Id"]] = content

    def keep(self, container: Json) -> None:
        """It runs on what it ran on before."""
        if before := self.seen(container):
            self.note(container, before)

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
