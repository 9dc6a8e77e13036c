"""Which packages of an image have a newer version in Debian's security suite: what apt alone can tell, without any hub.

apt runs in an image that has it (the Python base), on a made-up status file with the packages of the image in question.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

from stack_tools import ROOT, Failure, Json, run, setting

from .findings import Finding, Report
from .inventory import Image, found_setting

APT_SECONDS = 300
CODENAMES = {"12": "bookworm", "13": "trixie", "14": "forky"}
_PENDING = re.compile(r"^(\S+?)/(\S+) (\S+) (\S+) \[upgradable from: (\S+)\]", re.MULTILINE)
_HOST = re.compile(r"^(Acquire::(?:http|https)::(?:[^:]*::)?Proxy|Acquire::Check-(?:Valid-Until|Date)) ")

# Reads the host's settings and the statuses from standard input: nothing of this machine is mounted.
_IN_THE_IMAGE = r"""
set -eu
umask 022
mkdir -p /tmp/q
tar -x -C /tmp/q
printf 'APT::Sandbox::User "root";\n' | cat - /tmp/q/host.conf > /etc/apt/apt.conf.d/99audit
targets() { apt-get indextargets --no-release-info --format '$(REPO_URI) $(RELEASE)' 'Identifier: Packages'; }
uri=$(targets | awk -v suite="$1-security" '$2 == suite { print $1; exit }')
[ -n "$uri" ] || uri=$(targets | awk '$1 ~ /\/debian\/*$/ { sub("/debian/*$", "/debian-security/", $1); print $1; exit }')
[ -n "$uri" ] || { echo "the sources of this image name no Debian mirror" >&2; exit 1; }
rm -rf /etc/apt/sources.list.d/* /var/lib/apt/lists/*
echo "deb $uri $1-security main" > /etc/apt/sources.list
apt-get update -qq -o APT::Update::Error-Mode=any
for status in /tmp/q/*.status; do
  echo "== $(basename "$status" .status)"
  apt list --upgradable -o Dir::State::status="$status" 2> /dev/null
done
"""


def packages_of(report: Json) -> tuple[str, list[Json]]:
    """Release and packages of a Debian image, from its scan; nothing for another system."""
    system = report["Metadata"].get("OS") or {}
    if system.get("Family") != "debian":
        return "", []
    found = [
        entry for result in report["Results"] if result["Class"] == "os-pkgs" for entry in result.get("Packages", [])
    ]
    return str(system["Name"]).partition(".")[0], found


def status_file(packages: list[Json]) -> str:
    """What dpkg would have written: name, architecture and full version are all that apt compares."""
    return "".join(
        f"Package: {p['Name']}\nStatus: install ok installed\nArchitecture: {p['Arch']}\n"
        f"Maintainer: nobody\nDescription: -\nVersion: {_version(p)}\n\n"
        for p in packages
    )


def _version(package: Json) -> str:
    epoch, release = package.get("Epoch"), package.get("Release")
    return (f"{epoch}:" if epoch else "") + str(package["Version"]) + (f"-{release}" if release else "")


def pending(scanned: list[tuple[Image, Json]], report: Report) -> None:
    """Add to the report each package of each Debian image that the security suite has a newer version of."""
    by_release: dict[str, dict[str, str]] = {}
    for image, scan in scanned:
        release, packages = packages_of(scan)
        if release in CODENAMES:
            by_release.setdefault(CODENAMES[release], {})[image.name] = status_file(packages)
        else:
            system = (scan["Metadata"].get("OS") or {}).get("Family", "no distribution")
            report.notes.append(f"{image.name}: {system}, so nothing to ask Debian's security suite about")
    for codename, statuses in sorted(by_release.items()):
        try:
            report.findings += read_list(list(statuses), _ask(codename, list(statuses.values())))
        except Failure as failure:
            names = ", ".join(sorted(statuses))
            report.undone.append(f"pending security updates of {codename} in {names} ({failure})")


def _ask(codename: str, statuses: list[str]) -> str:
    base = found_setting("BI_PYTHON_IMAGE", _python_base())
    command = [
        "docker",
        "run",
        "--rm",
        "-i",
        "--user",
        "0",
        "--entrypoint",
        "sh",
        base,
        "-c",
        _IN_THE_IMAGE,
        "sh",
        codename,
    ]
    sent = _tar(_host_files() | {f"{number}.status": text.encode() for number, text in enumerate(statuses)})
    try:
        done = subprocess.run(command, input=sent, capture_output=True, timeout=APT_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise Failure(f"apt took longer than {APT_SECONDS} s") from error
    if done.returncode != 0:
        raise Failure(" ".join(done.stderr.decode(errors="replace").split())[-300:])
    return done.stdout.decode()


def read_list(names: list[str], text: str) -> list[Finding]:
    """The findings in what apt listed, image by image. Raises `Failure` when an image is missing in it."""
    sections = {int(number): listed for number, _, listed in (part.partition("\n") for part in text.split("== ")[1:])}
    if sorted(sections) != list(range(len(names))):
        raise Failure(f"apt answered for {len(sections)} of {len(names)} images")
    findings = []
    for number, listed in sections.items():
        for package, suite, version, _architecture, old in _PENDING.findall(listed):
            if version == old:  # the status made up here lacks what tells apt that it is the very same build
                continue
            advice = "Pull or build the image anew (a stand-in: infra/images.sh --refresh)"
            what = f"{package} {old}, newer in {suite}"
            findings.append(Finding(f"image {names[number]}", f"{package}={version}", "update", what, advice))
    return findings


def _python_base() -> str:
    text = (ROOT / "services/query/Dockerfile").read_text(encoding="utf-8")
    found = re.search(r"^ARG PYTHON_IMAGE=(\S+)$", text, re.MULTILINE)
    return setting("BI_PYTHON_IMAGE", found.group(1) if found else "")


def _host_files() -> dict[str, bytes]:
    """What apt needs of this host to get out: its proxy, its trust, how it takes old lists."""
    lines: list[str] = []
    if shutil.which("apt-config"):
        dump = run("apt-config", "dump", timeout=30)
        lines = [line for line in dump.splitlines() if _HOST.match(line)]
    candidates = [os.environ.get(name, "") for name in ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE")]
    bundle = next(
        (Path(c) for c in [*candidates, "/etc/ssl/certs/ca-certificates.crt"] if c and Path(c).is_file()), None
    )
    if bundle is None:
        return {"host.conf": "\n".join(lines).encode() + b"\n"}
    lines.append('Acquire::https::CAInfo "/tmp/q/ca.pem";')
    return {"host.conf": "\n".join(lines).encode() + b"\n", "ca.pem": bundle.read_bytes()}


def _tar(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return packed.getvalue()
