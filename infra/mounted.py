#!/usr/bin/env python3
"""Files that services mount and read only at their start: who runs on older ones reads them anew (make up, make deploy).

`compose up` compares settings and images, not what is in a mounted file; and a file that was replaced by renaming, as git
does, is inside a running container the old one still, so that no signal would help.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

from stack_tools import ROOT, SERVICE_LABEL, Failure, Json, Voice, configuration, containers, docker, wait_healthy

OF_THE_RELEASE = (ROOT / "infra", ROOT / "alerts")
OF_THIS_MACHINE = ROOT / "infra" / "local"  # services look into these folders by themselves
RESTART_SECONDS = 300
PRODUCTION = "/etc/caddy/production.caddy"
RELOAD_EDGE = ("caddy", "reload", "--config", PRODUCTION, "--adapter", "caddyfile",
               "--address", "unix//tmp/caddy-admin.sock")  # fmt: skip


def read_anew(project: str, voice: Voice, folders: Sequence[Path] = OF_THE_RELEASE) -> None:
    """Restart what runs on files older than those here, one by one; production's edge reloads, so that nobody is cut off.

    Raises `Failure` when a service does not become healthy on the new ones.
    """
    for container in containers(project):
        changed = sorted(changed_since_start(container, folders))
        if not changed or container["HostConfig"]["RestartPolicy"]["Name"] in (
            "",
            "no",
        ):  # a one-shot reads them at its next run
            continue
        name = str(container["Config"]["Labels"][SERVICE_LABEL])
        if is_production_edge(container):
            docker("exec", container["Id"], *RELOAD_EDGE)
            voice.say("the edge has read its files anew")
            continue
        voice.say(f"restarting {name}: {', '.join(changed)} changed after it started")
        docker("restart", container["Id"])
        wait_healthy(container["Id"], RESTART_SECONDS)


def changed_since_start(container: Json, folders: Iterable[Path]) -> Iterator[str]:
    """The mounted sources under these folders in which something is newer than the container's start.

    By the time of the last change of the file itself (ctime), which nobody can set: an unpacked archive brings old mtimes.
    """
    started = datetime.fromisoformat(container["State"]["StartedAt"]).timestamp()
    for mount in container["Mounts"]:
        source = Path(mount.get("Source", "")).resolve()
        if mount["Type"] != "bind" or source.is_relative_to(OF_THIS_MACHINE):
            continue
        if not any(source.is_relative_to(folder) for folder in folders):
            continue
        if any(path.lstat().st_ctime > started for path in [source, *source.rglob("*")] if path.exists()):
            yield str(source.relative_to(ROOT) if source.is_relative_to(ROOT) else source)


def is_production_edge(container: Json) -> bool:
    """Production's edge can be told to read its files anew; the other has no door for that."""
    return PRODUCTION in (container["Config"]["Cmd"] or [])


if __name__ == "__main__":
    try:
        read_anew(str(configuration()["name"]), Voice("up"))
    except Failure as failure:
        sys.exit(f"up: {failure}")
