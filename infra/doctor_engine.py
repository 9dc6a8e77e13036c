"""The doctor's checks of the engine: versions, memory, disk, ports."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
from pathlib import Path

from findings import Finding, fail, joined, ok, warn
from stack_tools import PROJECT_LABEL, Failure, Json, docker, setting, size

# Older engines refuse health checks with start_interval.
ENGINE = (25, 0)
# Optional env files, and `up --wait` that accepts one-shots which ended well; the overlay's !override.
COMPOSE, COMPOSE_OF_PRODUCTION = (2, 24), (2, 24, 4)
MIB, GIB = 1 << 20, 1 << 30
# Images and a first start. A snapshot's size by its Parquet's: the demo's 35 MB make 104 MB.
ROOM_BYTES, SNAPSHOT_TO_PARQUET = GIB, 3
VARIABLES = {8000: "BI_QUERY_PORT", 9090: "BI_PROMETHEUS_PORT", 9093: "BI_ALERTMANAGER_PORT", 3000: "BI_GRAFANA_PORT",
             80: "BI_HTTP_PORT", 443: "BI_HTTPS_PORT"}  # fmt: skip
INSTALL = "make engine installs it on Debian and Ubuntu (as root); elsewhere see Docker's own manual"
SECONDS = 20


def version(text: str) -> tuple[int, ...]:
    """26.1.5+dfsg1 -> (26, 1, 5); nothing for what is no version."""
    found = re.match(r"v?(\d+(?:\.\d+)*)", text.strip())
    return tuple(int(part) for part in found[1].split(".")) if found else ()


def dotted(parts: tuple[int, ...]) -> str:
    """The other way round."""
    return ".".join(map(str, parts))


def engine() -> list[Finding]:
    """An engine answers, and is new enough."""
    try:
        found = docker("version", "--format", "{{.Server.Version}}", timeout=SECONDS).strip()
    except Failure as failure:
        words = str(failure)
        if "not installed" in words:
            return [fail("engine", "the docker client is not installed", INSTALL)]
        if "permission denied" in words.lower():
            advice = "sudo usermod -aG docker $USER, then log in anew; or run it as root"
            return [fail("engine", "this user may not talk to the engine", advice)]
        return [
            fail(
                "engine",
                f"no engine answers: {words.splitlines()[-1][:200]}",
                f"start it (systemctl start docker); {INSTALL}",
            )
        ]
    if version(found) < ENGINE:
        detail = (
            f"{found or 'of no known version'}; {dotted(ENGINE)} or newer is needed (start_interval of health checks)"
        )
        return [fail("engine", detail, f"upgrade it; {INSTALL}")]
    return [ok("engine", found)]


def compose_version() -> list[Finding]:
    """Compose is there and new enough."""
    try:
        found = docker("compose", "version", "--short", timeout=SECONDS).strip()
    except Failure:
        return [
            fail(
                "compose",
                "docker compose is not installed",
                "install Docker's compose plug-in (docker-compose-plugin); " + INSTALL,
            )
        ]
    needed = COMPOSE_OF_PRODUCTION if "compose.prod.yaml" in setting("COMPOSE_FILE") else COMPOSE
    if version(found) < needed:
        detail = f"{found or 'of no known version'}; {dotted(needed)} or newer is needed"
        return [fail("compose", detail, "upgrade Docker's compose plug-in")]
    return [ok("compose", found)]


def buildx() -> list[Finding]:
    """Buildx, without which the service's image cannot be built."""
    try:
        found = re.search(r"v?\d+\.\d+\S*", docker("buildx", "version", timeout=SECONDS))
    except Failure:
        detail = "docker buildx is missing: images cannot be built here"
        advice = "install Docker's buildx plug-in (docker-buildx-plugin, Debian: docker-buildx)"
        return (
            [fail("buildx", detail, advice)]
            if setting("BI_QUERY_PULL_POLICY", "never") == "never"
            else [warn("buildx", detail, advice)]
        )
    return [ok("buildx", found[0] if found else "there")]


def facts() -> Json:
    """What the engine says of its machine; nothing when it does not."""
    try:
        found: Json = json.loads(docker("info", "--format", "{{json .}}", timeout=SECONDS))
    except (Failure, ValueError):
        return {}
    return found


def limits(services: Json) -> dict[str, int]:
    """Memory limits in bytes of what runs all the time, all replicas together."""
    found = {}
    for name, service in services.items():
        replicas = int((service.get("deploy") or {}).get("replicas", 1))
        if service.get("restart") != "no" and replicas and service.get("mem_limit"):
            found[name] = int(service["mem_limit"]) * replicas
    return found


def memory(services: Json, facts: Json) -> list[Finding]:
    """The limits against what the machine has."""
    there, wanted = int(facts.get("MemTotal", 0)), limits(services)
    total = sum(wanted.values())
    largest = max(wanted, key=lambda name: wanted[name], default="")
    said = f"{size(there)}; the services' limits add up to {size(total)}"
    if not there or not largest:
        return [warn("memory", "the engine does not say how much there is", "look by yourself: docker info")]
    if wanted[largest] > there:
        advice = "a machine with more, or lower BI_QUERY_MEMORY, BI_QUERY_REPLICAS, BI_PUBLISH_MEMORY in .env"
        return [fail("memory", f"{said}; {largest} alone may take {size(wanted[largest])}", advice)]
    if total > there:
        advice = "all busy at once, one is killed: lower BI_QUERY_MEMORY, BI_QUERY_REPLICAS or BI_PUBLISH_MEMORY"
        return [warn("memory", said, advice)]
    return [ok("memory", said)]


def disk(facts: Json, data_bytes: int, prometheus_bytes: int) -> list[Finding]:
    """Free space and inodes where the engine keeps volumes."""
    folder = Path(str(facts.get("DockerRootDir", "")))
    try:
        while not folder.exists():
            folder = folder.parent
        status = os.statvfs(folder)
    except OSError:
        return [warn("disk", f"{folder} cannot be looked at", "look by yourself: docker system df")]
    free = status.f_bavail * status.f_frsize
    snapshot = data_bytes * SNAPSHOT_TO_PARQUET
    needed = ROOM_BYTES + snapshot
    kept = setting("BI_SNAPSHOTS_KEPT", "3")  # what is no number is told elsewhere (doctor_host.settings)
    later = needed + snapshot * int(kept if kept.isdecimal() else 3) + prometheus_bytes
    said = f"{size(free)} free under {folder}"
    if free < needed:
        advice = "docker system df shows what docker itself holds, docker image prune frees some; or a larger disk"
        return [fail("disk", f"{said}; about {size(needed)} are needed for images and one snapshot", advice)]
    if status.f_files and status.f_favail < 10_000:
        return [fail("disk", f"{status.f_favail} inodes free under {folder}", "delete small files nobody needs: df -i")]
    if free < later:
        advice = "lower BI_PROMETHEUS_RETENTION_SIZE or BI_SNAPSHOTS_KEPT in .env, or watch it (alert DiskWillFill)"
        return [warn("disk", f"{said}; kept snapshots and metrics may become {size(later)}", advice)]
    return [ok("disk", said)]


def ports(project: str, services: Json, *, asks_engine: bool) -> list[Finding]:
    """Those the stack publishes are free, or its own."""
    if not os.environ.get("DOCKER_HOST", "unix:").startswith("unix:"):
        return [ok("ports", "not looked at: the engine is on another machine")]
    taken, free = [], []
    for name, service in services.items():
        if (service.get("deploy") or {}).get("replicas", 1) == 0:
            continue
        for port in service.get("ports") or []:
            published, protocol = str(port.get("published") or ""), str(port.get("protocol", "tcp"))
            if not published:  # any that is free
                continue
            if not published.isdecimal():
                advice = "one number, or look by yourself: ss -lnp shows what is taken"
                taken.append(warn("ports", f"{published}, of {name}, is no single port and was not looked at", advice))
                continue
            number = int(published)
            holder = is_taken(str(port.get("host_ip", "")), number, protocol)
            owner = publisher(number, protocol) if holder and asks_engine else ("", "")
            if holder and owner[1] != project:
                who = f"container {owner[0]}" if owner[0] else f"another program (ss -lp 'sport = :{number}' shows it)"
                variable = VARIABLES.get(int(port["target"]), "")
                advice = f"stop that, or set {variable} in .env" if variable else "stop that"
                taken.append(fail("ports", f"{number}/{protocol}, of {name}, is taken by {who}", advice))
            else:
                free.append(f"{number}/{protocol}" + (" (this stack's already)" if holder else ""))
    return joined("ports", taken, f"free: {', '.join(free)}" if free else "none are published")


def is_taken(address: str, number: int, protocol: str) -> bool:
    """Whether somebody listens there. Where this user may not bind a low port, whether somebody answers."""
    kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, kind) as probe:
        if kind == socket.SOCK_STREAM:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, number))
        except PermissionError:
            with contextlib.suppress(OSError):
                socket.create_connection((address or "127.0.0.1", number), 1).close()
                return kind == socket.SOCK_STREAM
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def publisher(number: int, protocol: str) -> tuple[str, str]:
    """Name and project of the container that publishes a port; empty when none does."""
    form = '{{.Names}}\t{{.Label "' + PROJECT_LABEL + '"}}'
    listed = docker("ps", "--filter", f"publish={number}/{protocol}", "--format", form, timeout=SECONDS, check=False)
    name, _, project = listed.strip().partition("\n")[0].partition("\t")
    return name, project
