"""`make audit` and `make sbom` as programs, in the environment of their own; and an advisory service of the tests' own."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-audit/bin/python"
CLEAN, FOUND, BROKEN, UNDONE = range(4)
LOCKED_TRIVY_IS_FOR = ("linux", "x86_64")  # its line of infra/supply/requirements.in


@cache
def _tools() -> str:
    done = subprocess.run(
        ["make", ".venv-audit/.ready"], cwd=ROOT, capture_output=True, text=True, timeout=500, check=False
    )
    if done.returncode != 0:
        return f"the audit's tools cannot be installed: {(done.stdout + done.stderr)[-600:]}"
    return ""


def _trivy_is_missing(part: str | Path) -> bool:
    """Whether a part of the audit needs Trivy and has none; pip-audit alone looks at locks."""
    return part != "locks" and not os.environ.get("BI_TRIVY") and not PYTHON.with_name("trivy").exists()


@dataclass(frozen=True)
class Audited:
    """How a run ended: exit code, what it printed, its report (empty when it failed)."""

    code: int
    output: str
    report: dict[str, Any]

    @property
    def findings(self) -> list[dict[str, str]]:
        """What was found and is not accepted."""
        found: list[dict[str, str]] = self.report["findings"]
        return found

    def skip_what_was_not_done(self) -> None:
        """End the test as skipped, with what was not done, where an advisory source is out of reach."""
        if self.report["undone"]:
            pytest.skip(f"NOT DONE here: {'; '.join(self.report['undone'])[:900]}")


def audit(folder: Path, *arguments: str | Path, settings: Mapping[str, str] | None = None) -> Audited:
    """Run infra/audit.py, its tools installed first; skips where they cannot be, but under CI. `folder` takes the report.

    Skips under CI too where Trivy is needed and the lock has none for this kind of machine.
    """
    trouble = _tools()
    if not trouble and _trivy_is_missing(arguments[0]):
        if (sys.platform, platform.machine()) != LOCKED_TRIVY_IS_FOR:
            pytest.skip("the lock has Trivy for Linux on x86_64 alone (BI_TRIVY names another)")
        trouble = "Trivy was not installed"
    if trouble:
        pytest.fail(trouble) if os.environ.get("CI") == "true" else pytest.skip(trouble)
    path = folder / "report.json"
    path.unlink(missing_ok=True)
    done = subprocess.run(
        [PYTHON, ROOT / "infra/audit.py", *arguments, "--json", path],
        cwd=ROOT, capture_output=True, text=True, timeout=500, check=False, env={**os.environ, **(settings or {})},
    )  # fmt: skip
    report = json.loads(path.read_text()) if path.exists() else {}
    return Audited(done.returncode, done.stdout + done.stderr, report)


class _Advisories(BaseHTTPRequestHandler):
    """OSV's query call, for what is known of one package's one release."""

    known: ClassVar[dict[tuple[str, str], list[dict[str, Any]]]] = {}
    asked: ClassVar[set[tuple[str, str]]] = set()

    def do_POST(self) -> None:  # the base class's name
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        release = (query["package"]["name"], query["version"])
        self.asked.add(release)
        known = self.known.get(release, [])
        body = json.dumps({"vulns": known} if known else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextmanager
def advisory_service(
    known: dict[tuple[str, str], list[dict[str, Any]]], asked: set[tuple[str, str]] | None = None
) -> Iterator[dict[str, str]]:
    """The setting that sends the audit to a service which knows just that, and notes what it is asked."""
    handler = type("Advisories", (_Advisories,), {"known": known, "asked": asked if asked is not None else set()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield {"BI_AUDIT_OSV_URL": f"http://127.0.0.1:{server.server_port}/v1/query"}
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
