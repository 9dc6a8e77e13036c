#!/usr/bin/env python3
"""`make restore FILE=backups/....tar.gz`: the stack as it was when that backup was made.

    python3 infra/restore.py FILE [SERVICE ...]     brings up these services, all when none is named
    python3 infra/restore.py --unfinished           1 when a restore is under way or was killed: nothing may start then

YES=1 does not ask; ONLY="keys audit" restores these volumes alone. After one that was killed, and told so: UNDO=1 puts the
old data back, KEEP=1 keeps the restored ones; without a FILE.

1. All of the file is read and checked before anything else happens.
2. It says what it replaces and asks, unless nothing runs and nothing is there.
3. The data are put beside the old ones while the stack runs on. A full disk, say, ends it here: nothing has changed.
4. The stack is stopped, old and new change places by renaming, the stack is started.
5. When it is healthy the old data are deleted; when not, or when it is interrupted, they come back and the stack is started
   with them. Nothing of them is deleted before the stack is healthy.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import exchange as exchanging
from archive import members, verify
from exchange import Stack, refuse_interrupted, unfinished
from stack_tools import (
    ROOT,
    SERVICE_LABEL,
    Failure,
    Json,
    Progress,
    alone,
    configuration,
    containers,
    docker,
    end_by_exception,
    size,
)
from volume_reading import CHUNK
from volumes import KEPT, Agent, ask, create, existing, volumes_of, weigh

voice = exchanging.voice
POINTER = "/var/lib/bi/snapshots/current.json"


def main(arguments: list[str]) -> int:
    """Restore; 0 when the stack is healthy on the restored data."""
    end_by_exception()
    if arguments == ["--unfinished"]:
        refuse_unfinished()
        return 0
    way = next((way for way in ("UNDO", "KEEP") if os.environ.get(way) == "1"), "")
    if way:
        project, image, every = stack()
        with alone(project, "restore"):
            exchanging.end_interrupted(Stack(project, image, existing(every), arguments, was_there=True), way)
        return 0
    path, services = find(arguments), arguments[1:]
    progress = Progress(voice, "checking", path.stat().st_size)
    manifest = verify(path, progress.at)
    progress.done(f"{path.name} is whole")
    project, image, every = stack()
    with alone(project, "restore"):
        refuse_interrupted(image, every)
        volumes = chosen(manifest, every, os.environ.get("ONLY", "").split())
        was_there = tell(manifest, project, image, volumes)
        create(project, volumes)
        place(path, manifest, image, volumes)
        exchanging.exchange(Stack(project, image, volumes, services, was_there))
        if "snapshots" in volumes:
            tell_current(project, manifest)
    voice.say("done: every service is healthy on the restored data")
    return 0


def refuse_unfinished() -> None:
    """For who is about to start the stack. Raises `Failure` while its data are of two times, or change places now."""
    project, image, every = stack()
    if unfinished(image, every):
        with alone(project, "start"):
            refuse_interrupted(image, every)


def stack() -> tuple[str, str, dict[str, str]]:
    """Name, image and volumes. Raises `Failure` when the image, which reads and writes them, is not here."""
    resolved = configuration()
    image = str(resolved["services"]["query"]["image"])
    if not docker("image", "ls", "-q", image).strip():
        raise Failure(
            f"nothing was changed: the image {image} is not here, which is needed to write the data (make images)"
        )
    return str(resolved["name"]), image, volumes_of(resolved)


def find(arguments: list[str]) -> Path:
    """The archive that was named. Raises `Failure` with those there are."""
    if arguments and (path := ROOT / arguments[0]).is_file():
        return path
    there = sorted(ROOT.glob("backups/*.tar.gz"), reverse=True)
    known = "".join(f"\n  make restore FILE={path.relative_to(ROOT)}" for path in there[:5])
    problem = f"{arguments[0]} is no file" if arguments else "say which backup"
    raise Failure(f"{problem}; the newest in backups/:{known}" if known else f"{problem}; backups/ holds none")


def chosen(manifest: Json, declared: Mapping[str, str], only: list[str]) -> dict[str, str]:
    """The volumes to restore. Raises `Failure` for one that is named and not in the backup or not in this stack."""
    there = {name: declared[name] for name in manifest["volumes"] if name in declared}
    for name in only:
        if name not in there:
            raise Failure(f"nothing was changed: {name} is not among {', '.join(there)} (ONLY)")
    return {name: there[name] for name in only or there}


def tell(manifest: Json, project: str, image: str, volumes: Mapping[str, str]) -> bool:
    """Say what comes and what goes, and have it confirmed; whether there was anything. Raises `Failure` without a yes."""
    voice.say(f"backup of the stack {manifest['project']!r}, made {manifest['made_at']}, release {manifest['release']}")
    running = sorted({str(c["Config"]["Labels"][SERVICE_LABEL]) for c in containers(project)})
    weights = weigh(image, volumes)["volumes"]
    for name in manifest["volumes"]:
        files = manifest["volumes"][name]["files"]
        if name not in volumes:
            voice.say(f"  {name}: left out (this stack has no such volume, or ONLY does not name it)")
            continue
        old = weights.get(name, {"files": 0, "bytes": 0})
        goes = f"; REPLACES {old['files']} files, {size(old['bytes'])}" if old["files"] else ""
        new = f"{len(files)} files, {size(sum(file['bytes'] for file in files.values()))}"
        voice.say(f"  {name} ({KEPT[name]}): {new}{goes}")
    other = {service: about["image"] for service, about in manifest["images"].items()}
    for container in containers(project):
        service, now = container["Config"]["Labels"][SERVICE_LABEL], container["Config"]["Image"]
        if other.get(service, now) != now:
            voice.say(f"  {service} was {other[service]} then, is {now} now: older programs may refuse newer data")
    was_there = bool(running) or any(weight["files"] for weight in weights.values())
    if was_there:
        if running:
            voice.say(f"  the stack runs and is stopped for some seconds: {', '.join(running)}")
        voice.say(
            f"  keys made or revoked since {manifest['made_at']} are as they were then: revoke anew what must not come back"
        )
        confirm(project)
    return was_there


def confirm(project: str) -> None:
    """Ask for the stack's name. Raises `Failure` when it is not given."""
    if os.environ.get("YES") == "1":
        return
    if not sys.stdin.isatty():
        raise Failure("nothing was changed; YES=1 make restore FILE=... does it without asking")
    if input(f"Type the stack's name ({project}) to replace its data: ").strip() != project:
        raise Failure("nothing was changed")


def place(path: Path, manifest: Json, image: str, volumes: Mapping[str, str]) -> None:
    """The archive's files beside those in the volumes. Raises `Failure`; then nothing has changed."""
    total = sum(file["bytes"] for name in volumes for file in manifest["volumes"][name]["files"].values())
    free = weigh(image, volumes)["free_bytes"]
    if total > free:
        raise Failure(
            f"nothing was changed: the data need {size(total)} beside the old ones, {size(free)} are free where docker keeps"
            " volumes"
        )
    progress = Progress(voice, "writing beside the old data", path.stat().st_size)
    try:
        with Agent(image, volumes, "fill") as agent:
            for volume, frame, body in members(path, progress.at):
                if volume not in volumes:
                    continue
                agent.send({"volume": volume, **frame})
                while body and (piece := body.read(CHUNK)):
                    agent.write(piece)
            agent.send({"end": True})
            agent.next()
    except Failure as failure:
        with contextlib.suppress(Failure):  # the agent has, mostly, and the next restore does
            ask(image, volumes, "discard")
        raise Failure(f"nothing was changed: {failure}") from failure
    progress.done(f"{size(total)} are beside the old data")


def tell_current(project: str, manifest: Json) -> None:
    """Say so when other data than the backup's are served: those of the data folder, which the start has published."""
    wanted = manifest["taken"].get("snapshots", {}).get("current")
    for replica in containers(project, "query")[:1]:
        read = f"import json; print(json.load(open('{POINTER}'))['snapshot_id'])"
        current = docker("exec", replica["Id"], "python", "-ISc", read, check=False).strip()
        if not current:
            voice.say("which snapshot is served could not be asked: make snapshots")
        elif not wanted:
            voice.say(f"served is snapshot {current}; the backup was made before there was a current one")
        elif current != wanted:
            voice.say(
                f"served is snapshot {current}, newly published: the data folder holds other data than at the backup."
                f" To the backup's: make rollback ID={wanted}"
            )
        else:
            voice.say(f"served is snapshot {current}, as at the backup")


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Failure as failure:
        voice.fail(str(failure))
