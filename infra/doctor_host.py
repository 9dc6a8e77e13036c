"""The doctor's checks of this machine's files: .env, data folder, certificates; the clock and the limits on open files."""

from __future__ import annotations

import difflib
import re
import shlex
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from doctor_files import allowed, named_secret, secret_file
from findings import Finding, fail, joined, ok, warn
from stack_tools import Json, assignments

# What scripts of this repository read beside the compose files.
OF_SCRIPTS = {"BI_UP_SECONDS", "BI_DEPLOY_SECONDS", "BI_PULL_SECONDS", "BI_OFFLINE", "BI_ENV_FILE"}
UNIT = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)i?b?", re.IGNORECASE)
# What a value looks like, by what the default of the same name in .env.example looks like.
SHAPES = (
    ("a number", re.compile(r"\d+(\.\d+)?")),
    ("true or false", re.compile(r"true|false")),
    ("a size with a unit, as 512m", re.compile(r"\d+(\.\d+)?\s?([kmgtp]i?b?|b)", re.IGNORECASE)),
    ("a time with a unit, as 30s", re.compile(r"(\d+(\.\d+)?(ms|[smhdwy]))+")),
)
PACKAGE_DATABASES = [Path("/var/lib/dpkg/status"), Path("/var/lib/rpm"), Path("/lib/apk/db/installed")]
AHEAD_SECONDS = 120.0
# The edge holds a file for each connection, and is tested with 10,000 idle ones.
OPEN_FILES = 16_384
MAGIC, SMALLEST_BYTES = b"PAR1", 12
LOOK_SECONDS = 1.0
# The service's and the publisher's user, and the edge's.
READER, EDGE_READER = 10001, 65534
# The hosts that the service can ask for a model, by the profile that starts them.
MODEL_PROFILES = {"llm": "llm", "llm-gate": "llm-outside"}
MODEL_SECRETS = "/run/llm-secrets"
SHOWN = 5


def settings(env: Path, example: Path) -> list[Finding]:
    """Names that nothing reads, and values of another kind than their default."""
    if not env.is_file():
        return [ok("settings", f"no {env.name}: every default holds")]
    known, found, seen = dict(assignments(example)), [], set()
    for name, value in assignments(env):
        if name in seen:
            found.append(
                warn("settings", f"{name} is set twice in {env.name}", "the last line counts; delete the other")
            )
        seen.add(name)
        if name.startswith("BI_") and name not in known and name not in OF_SCRIPTS:
            near = difflib.get_close_matches(name, known, 1, 0.6)
            advice = f"did you mean {near[0]}? (.env.example names all)" if near else ".env.example names all there are"
            found.append(warn("settings", f"{name} is no setting and has no effect", advice))
        elif value and (wanted := mismatch(name, value, known.get(name, ""))):
            found.append(fail("settings", f"{name}={value}: must be {wanted}", f"correct it in {env.name}"))
    return joined("settings", found, f"{len(seen)} in {env.name}")


def mismatch(name: str, value: str, default: str) -> str:
    """What a value should be and is not; empty when it may be right."""
    if not default and name.endswith(("_BYTES", "_SECONDS")):
        default = "0"
    if "${" in value:
        return ""
    fitting = [(words, shape) for words, shape in SHAPES if shape.fullmatch(default)]
    if not fitting or any(shape.fullmatch(value) for _, shape in fitting):
        return ""
    is_plain_size = fitting[0][0].startswith("a size") and SHAPES[0][1].fullmatch(value)
    return "" if is_plain_size else " or ".join(words for words, _ in fitting)


def bytes_of(text: str) -> int:
    """8GB -> 8000000000; 0 for what is no size."""
    found = UNIT.fullmatch(text.strip())
    return int(float(found[1]) * 1000 ** " kmgtp".index(found[2].lower() or " ")) if found else 0


def data_folder(folder: Path) -> tuple[list[Finding], int]:
    """It is there, the publisher may read it, every Parquet file is complete; and the bytes of them all."""
    if not folder.is_dir():
        problem = "is no folder" if folder.exists() else "does not exist"
        advice = "set BI_DATA_FOLDER in .env to your Parquet files' folder, or make it: empty, it means the demo data"
        return [fail("data", f"{folder} {problem}", advice)], 0
    found: list[Finding] = []
    files = total = 0
    deadline, looked_at = time.monotonic() + LOOK_SECONDS, 0
    try:
        for path in parquet_files(folder):
            files += 1
            total += path.stat().st_size
            if time.monotonic() < deadline:
                looked_at += 1
                found += wrong_with(path, folder)
    except OSError as error:
        return [
            fail(
                "data", f"{error.filename}: {error.strerror}", "make it readable for you and the publisher: chmod o+rX"
            )
        ], 0
    if not allowed(folder, 0o5, READER):
        found.insert(0, not_readable(str(folder), f"chmod o+rx {shlex.quote(str(folder))}"))
    if len(found) > SHOWN:
        found = [*found[:SHOWN], fail("data", f"and {len(found) - SHOWN} more files of that kind", found[SHOWN].advice)]
    some = "" if looked_at == files else f", the first {looked_at} looked at"
    said = f"{files} Parquet files{some}, all complete, in {folder}" if files else f"{folder} is empty: the demo data"
    return joined("data", found, said), total


def parquet_files(folder: Path) -> Iterator[Path]:
    """What the publisher takes: not what is hidden, nor what writers keep for themselves."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or (path.name.startswith("_") and "=" not in path.name):
            continue
        if path.is_dir():
            yield from parquet_files(path)
        elif path.suffix.lower() == ".parquet":
            yield path


def wrong_with(path: Path, folder: Path) -> list[Finding]:
    """What keeps the publisher from reading one file."""
    name = str(path.relative_to(folder))
    for parent in path.relative_to(folder).parents[:-1]:
        if not allowed(folder / parent, 0o5, READER):
            return [not_readable(str(parent), f"chmod o+rx {shlex.quote(str(folder / parent))}")]
    if not allowed(path, 0o4, READER):
        return [not_readable(name, f"chmod o+r {shlex.quote(str(path))}")]
    with path.open("rb") as file:
        head = file.read(4)
        end = file.seek(0, 2)
        file.seek(max(0, end - 4))
        tail = file.read(4)
    if head == tail == MAGIC and end >= SMALLEST_BYTES:
        return []
    advice = "let its writer finish, copy it again, or take it out of the folder"
    return [fail("data", f"{name} is no complete Parquet file ({end:,} bytes)", advice)]


def not_readable(name: str, advice: str) -> Finding:
    """For the publisher."""
    return fail("data", f"{name} may not be read by user {READER}", advice)


def model(services: Json) -> list[Finding]:
    """Of the chat's model, where one is named: that it can be reached, and that its key can be read."""
    query = services.get("query", {})
    environment = query.get("environment") or {}
    url = environment.get("BI_LLM_BASE_URL") or ""
    if not url:
        return []
    found = []
    host = urlsplit(url).hostname or ""
    if host not in MODEL_PROFILES:
        advice = "http://llm:11434/v1 or http://llm-gate:8080/v1, with their profile (docs/chat.md, A model elsewhere)"
        found.append(warn("model", f"BI_LLM_BASE_URL={url}: the service has no way there", advice))
    elif host not in services:
        found.append(warn("model", f"{host} does not run", f"COMPOSE_PROFILES={MODEL_PROFILES[host]} in .env"))
    elif host == "llm-gate":
        to = urlsplit((services[host].get("environment") or {}).get("GATE_TO") or "")
        if to.scheme not in ("http", "https") or not to.hostname or to.path:
            said = f"BI_LLM_OUTSIDE_URL={to.geturl()}: the gate leads nowhere"
            found.append(fail("model", said, "scheme and host, no path: https://api.example.com"))
    return joined("model", found + model_key(query), f"asked at {url}")


def model_key(query: Json) -> list[Finding]:
    """The key's file, where one is named, is in the folder that is mounted and may be read."""
    name = (query.get("environment") or {}).get("BI_LLM_API_KEY_FILE") or ""
    if not name:
        return []
    folder = next((Path(m["source"]) for m in query.get("volumes", []) if m["target"] == MODEL_SECRETS), Path())
    return named_secret("model", "BI_LLM_API_KEY_FILE", name, MODEL_SECRETS, folder, READER)


def certificates(services: Json) -> list[Finding]:
    """Of the production overlay: what BI_TLS needs is there."""
    edge = services.get("edge", {})
    kind = (edge.get("environment") or {}).get("EDGE_TLS")
    if kind is None:
        return []
    if kind not in ("acme", "files", "internal"):
        return [fail("tls", f"BI_TLS={kind} is unknown", "acme, files or internal")]
    if kind == "internal":
        return [
            warn(
                "tls",
                "BI_TLS=internal: an authority of its own, trusted by nobody",
                "for trials only; else acme or files",
            )
        ]
    folder = next((Path(m["source"]) for m in edge.get("volumes", []) if m["target"] == "/certs"), Path())
    needed = {"cert.pem": "CERTIFICATE", "key.pem": "PRIVATE KEY"}
    because, said = "BI_TLS=files needs cert.pem and key.pem", f"cert.pem and key.pem in {folder}"
    if kind == "acme":
        root = edge["environment"].get("EDGE_ACME_CA_ROOT", "").removeprefix("acme_ca_root /certs/")
        needed = {root: "CERTIFICATE"} if root else {}
        because, said = "BI_ACME_CA_ROOT names a file", f"acme, for {edge['environment'].get('EDGE_DOMAIN')}"
    found = []
    for name, marker in needed.items():
        found += secret_file("tls", folder / name, EDGE_READER, f"{because} in BI_TLS_FOLDER", holds=marker)
    return joined("tls", found, said)


def clock(witnesses: Sequence[Path]) -> list[Finding]:
    """Not before what was written here already, and kept in step where the system says so."""
    now = time.time()
    newest = max((path for path in witnesses if path.exists()), key=lambda path: path.stat().st_mtime, default=None)
    said = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(now))
    if newest is not None and newest.stat().st_mtime > now + AHEAD_SECONDS:
        written = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(newest.stat().st_mtime))
        detail = f"it is {said} here, and {newest} was written at {written}"
        return [
            fail("clock", detail, "set the clock (timedatectl set-ntp true): keys, certificates and alerts go by it")
        ]
    try:
        asked = ["timedatectl", "show", "--property", "NTPSynchronized", "--value"]
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=2, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        answer = ""
    if answer == "no":
        return [warn("clock", f"{said}, kept in step by nothing", "timedatectl set-ntp true, or an NTP service")]
    return [ok("clock", said + (", in step (NTP)" if answer == "yes" else ""))]


def file_limits(proc: Path) -> list[Finding]:
    """What the engine's containers inherit, and what the kernel has left."""
    found = []
    for limits in proc.glob("[0-9]*/limits"):
        try:
            name = (limits.parent / "comm").read_text().strip()
            soft = (
                re.search(r"Max open files\s+(\d+)", limits.read_text()) if name in ("dockerd", "containerd") else None
            )
        except OSError:
            continue
        if soft and int(soft[1]) < OPEN_FILES:
            detail = f"{name} gives its containers {soft[1]} open files; {OPEN_FILES} carry 10,000 connections"
            found.append(warn("files", detail, f"LimitNOFILE=1048576 in {name}'s systemd unit, then restart it"))
    try:
        used, _, most = (int(number) for number in (proc / "sys/fs/file-nr").read_text().split())
        if used > 0.9 * most:
            found.append(
                fail(
                    "files",
                    f"{used} of the kernel's {most} open files are in use",
                    "sysctl fs.file-max, or end what leaks",
                )
            )
    except (OSError, ValueError):
        pass
    return joined("files", found, "enough open files")
