"""Trivy, confined: without network (where the kernel lets us take it away), without this environment's secrets.

It looks into files that others made, as the user who runs the audit, so it gets what it needs and no more. Only
`fetch_database` lets it out, and then it sees none of the files. `BI_TRIVY` names another program than the one installed
from `requirements.lock`, which is the makers' build repackaged by a third party and held by its hash.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from stack_tools import STATE, Failure, Json

CACHE = Path(os.environ.get("TRIVY_CACHE_DIR") or STATE / "trivy").resolve()
SECRET_RULES = Path(__file__).with_name("secrets.yaml")
SCAN_SECONDS = 600
_QUIET = ("--quiet", "--skip-version-check", "--disable-telemetry", "--cache-dir", str(CACHE))
_OFFLINE = ("--offline-scan",)
# A distribution's signed package lists: public, and the largest text files of an image.
_NOT_LOOKED_INTO = ("--skip-dirs", "var/lib/apt/lists")
_OUTSIDE = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")


def program() -> str:
    """The program that is run. Raises `Failure` where it is not installed."""
    found = os.environ.get("BI_TRIVY", "") or str(Path(sys.executable).with_name("trivy"))
    if not os.access(found, os.X_OK):
        raise Failure(f"{found} cannot be run: no wheel of Trivy for this machine? Install it and name it in BI_TRIVY")
    return found


@cache
def confinement() -> tuple[str, ...]:
    """The command that takes the network away; nothing where the kernel does not let this user do that."""
    command = ("unshare", "--map-root-user", "--net")
    try:
        done = subprocess.run([*command, "true"], capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return command if done.returncode == 0 else ()


def _run(command: list[str], environment: dict[str, str], seconds: float) -> str:
    CACHE.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="bi-trivy-") as folder:
        known = {"HOME": folder, "TMPDIR": folder, "PATH": os.defpath}
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
                cwd=folder,
                env=known | environment,
            )
        except subprocess.TimeoutExpired as error:
            raise Failure(f"Trivy took longer than {seconds:g} s") from error
    if done.returncode != 0:
        raise Failure(f"Trivy: {done.stderr.strip()[-600:] or f'exit code {done.returncode}'}")
    return done.stdout


def confined(*arguments: str) -> Json:
    """Run it without network. Its JSON."""
    answer: Json = json.loads(_run([*confinement(), program(), *arguments], {}, SCAN_SECONDS))
    return answer


def fetch_database(seconds: float = 300) -> None:
    """Get or renew its database of advisories. Raises `Failure` with its words where that cannot be reached."""
    outside = {
        name: value for name, value in os.environ.items() if name.upper() in _OUTSIDE or name.startswith("TRIVY_")
    }
    _run([program(), "image", "--download-db-only", *_QUIET], outside, seconds)


def scan_image(archive: Path, *, vulnerabilities: bool = False) -> Json:
    """Packages and secrets of every layer and of the configuration; vulnerabilities too when the database is there."""
    scanners = ("vuln,secret", "--skip-db-update", "--skip-java-db-update") if vulnerabilities else ("secret",)
    return confined(
        "image", "--input", str(archive), "--scanners", *scanners, "--image-config-scanners", "secret", "--list-all-pkgs",
        "--secret-config", str(SECRET_RULES), "--format", "json", *_NOT_LOOKED_INTO, *_OFFLINE, *_QUIET,
    )  # fmt: skip


def scan_secrets(folder: Path) -> Json:
    """Secrets in the files of a folder."""
    return confined(
        "filesystem", "--scanners", "secret", "--secret-config", str(SECRET_RULES), "--format", "json",
        *_OFFLINE, *_QUIET, str(folder),
    )  # fmt: skip


def locked_packages(folder: Path) -> Json:
    """The packages that the lock files in a folder name, as CycloneDX."""
    return confined("filesystem", "--format", "cyclonedx", *_OFFLINE, *_QUIET, str(folder))


def cyclonedx(scan: Json) -> Json:
    """The packages of an image's scan as CycloneDX."""
    with TemporaryDirectory(prefix="bi-audit-") as folder:
        path = Path(folder) / "scan.json"
        path.write_text(json.dumps(scan), encoding="utf-8")
        return confined("convert", "--format", "cyclonedx", "--quiet", str(path))
