#!/usr/bin/env python3
"""`make backup`: what the running stack could not make anew, in one file; nobody is kept waiting.

    python3 infra/backup.py [FOLDER]     writes FOLDER/<project>-<time>.tar.gz (backups/ when not named), mode 0600

How each volume is consistent while its owner works:

- snapshots never change once they have their name; the pointer is read before them.
- keys, secrets, certificates, silences are replaced by renaming, never changed in place.
- the audit log is appended to: whole lines up to the moment it was opened.
- Prometheus and Grafana write in place. They are held still (`docker pause`) for the copy of what can change: for
  Prometheus write-ahead log and head, for its blocks never change; for Grafana its database. What is copied is what a
  crash at that moment leaves, which both are made to recover from. Prometheus' snapshot API would need its admin API,
  with which whoever reaches its port, replicas among them, may delete all metrics.

Not in it: Redis (a cache, in memory), spill, and what is a file of yours already: .env, data, catalogue, certificates and
alert secrets in folders you named.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from archive import PART, Writer, verify
from stack_tools import (
    ROOT,
    SERVICE_LABEL,
    Failure,
    Json,
    Progress,
    Voice,
    alone,
    configuration,
    containers,
    docker,
    end_by_exception,
    run,
    size,
)
from volume_reading import CHUNK
from volumes import HELD, Agent, existing, held_still, volumes_of, weigh

voice = Voice("backup")


def main(arguments: list[str]) -> int:
    """Make a backup; 0 when it is complete and was read back."""
    end_by_exception()  # so that what is held still is let go
    resolved = configuration()
    project = str(resolved["name"])
    image = str(resolved["services"]["query"]["image"])
    with alone(project, "backup"):
        volumes = existing(volumes_of(resolved))
        if not {"snapshots", "keys"} <= volumes.keys():
            raise Failure(f"the stack {project!r} has no data here: start it first (make up)")
        folder = ROOT / (arguments[0] if arguments else "backups")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in folder.glob(f".{project}-*{PART}"):  # of one that was killed: no use, and the secrets are in it
            left.unlink()
        path = folder / f"{project}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.tar.gz"
        about = {"project": project, "made_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **versions(project)}
        manifest = write(path, project, image, volumes, about)
    files = sum(len(content["files"]) for content in manifest["volumes"].values())
    voice.say(f"{path}: {size(path.stat().st_size)}, {files} files of {len(volumes)} volumes")
    voice.say(
        "it holds the stack's secrets and keys' hashes: keep it where nobody else reads it, and not on this machine alone"
    )
    return 0


def versions(project: str) -> Json:
    """What ran when the backup was made."""
    images = {
        str(container["Config"]["Labels"][SERVICE_LABEL]): {
            "image": str(container["Config"]["Image"]),
            "id": str(container["Image"]),
        }
        for container in containers(project)
    }
    return {
        "release": run("git", "describe", "--always", "--dirty", check=False).strip() or "unknown",
        "engine": docker("version", "--format", "{{.Server.Version}}").strip(),
        "images": images,
    }


def write(path: Path, project: str, image: str, volumes: Mapping[str, str], about: Json) -> Json:
    """All volumes into a new archive; its manifest. Raises `Failure`; then there is no archive."""
    weighed = weigh(image, volumes)
    if any(weighed["state"][left] for left in ("replaced", "unknown")):
        raise Failure("a restore has not come to its end, the data are of two times: make restore says what to do")
    weights = weighed["volumes"]
    try:
        with Agent(image, volumes, "read") as agent, Writer(path) as writer:
            taken = {volume: copy(agent, writer, project, volume, weights[volume]["bytes"]) for volume in volumes}
            return writer.finish({**about, "taken": taken}, read_back)
    except OSError as error:
        raise Failure(f"{path} could not be written: {error}; nothing of it is left") from error


def read_back(draft: Path) -> None:
    """All of what was written, from the disk. Raises `Failure` when it is anything else."""
    progress = Progress(voice, "reading it back", draft.stat().st_size)
    verify(draft, progress.at)
    progress.done("read back: every file is what was written")


def copy(agent: Agent, writer: Writer, project: str, volume: str, expected: int) -> Json:
    """One volume; when it was, and what had to be left out."""
    progress = Progress(voice, volume, expected)
    amount, moment, held, spooling = 0, time.time(), "", volume in HELD
    # What is copied while its owner is held still is compressed after it has been let go. Nameless, and of mode 0600.
    with tempfile.TemporaryFile(dir=writer.folder) as spool, held_still(project, volume) as let_go:
        started, spooled = time.monotonic(), list[Json]()
        agent.send({"copy": volume})
        while "done" not in (frame := agent.next()):
            if "taken" in frame:
                moment = time.time()
                if let_go():
                    held = f"; {HELD[volume]} was held still for {time.monotonic() - started:.1f} s"
                spool.seek(0)
                for one in spooled:
                    writer.add(volume, one, spool)
                spooling = False
                continue
            if spooling:
                spooled.append(frame)
                copy_bytes(agent.answers, spool, frame["bytes"] or 0)
            else:
                writer.add(volume, frame, agent.answers)
            amount += frame["bytes"] or 0
            progress.at(amount)
    progress.done(f"{volume}: {len(writer.volumes[volume]['files'])} files, {size(amount)}{held}")
    for path in frame["left_out"]:
        voice.say(f"LEFT OUT of {volume}: {json.dumps(path)} is neither a file nor a folder")
    return {"at": moment, "left_out": frame["left_out"], "current": frame["current"]}


def copy_bytes(source: IO[bytes], target: IO[bytes], amount: int) -> None:
    """So many bytes. Raises `OSError` when there are fewer."""
    while amount:
        piece = source.read(min(CHUNK, amount))
        if not piece:
            raise OSError("unexpected end of data")
        target.write(piece)
        amount -= len(piece)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Failure as failure:
        voice.fail(str(failure))
