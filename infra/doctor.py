#!/usr/bin/env python3
"""`make doctor`: can the stack start here, and will it do what .env means? Looks only, changes nothing, asks no network.

    python3 infra/doctor.py [--json | --quiet]     --quiet shows only what is not well

Python 3.11's standard library alone, so that it runs before anything is installed. The exit code is 1 when a check failed.
"""

from __future__ import annotations

import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import doctor_engine as engine
import doctor_host as host
from doctor_alerts import alerts
from findings import Finding, as_json, fail, text
from stack_tools import ROOT, Failure, Json, configuration, env_file

DATA_TARGET = "/data"


def examine() -> list[Finding]:
    """Every check, those of the engine at the same time as those of the files."""
    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(check) for check in (engine.engine, engine.compose_version, engine.buildx)]
        resolving: Future[Json] = pool.submit(configuration)
        files = [
            pool.submit(host.settings, env_file(), ROOT / ".env.example"),
            pool.submit(host.clock, [env_file(), Path(__file__), *host.PACKAGE_DATABASES]),
            pool.submit(host.file_limits, Path("/proc")),
        ]
        engine_answers = found[0].result()[0].status == "ok"
        facts = pool.submit(engine.facts) if engine_answers else None
        findings = [finding for check in found for finding in check.result()]
        try:
            resolved = resolving.result()
        except Failure as failure:
            findings.append(_unresolved(failure, findings))
            resolved = {}
        if resolved:
            findings += of_the_stack(resolved, facts.result() if facts else {})
        return findings + [finding for check in files for finding in check.result()]


def _unresolved(failure: Failure, findings: list[Finding]) -> Finding:
    if any(finding.status == "FAIL" for finding in findings):
        return fail("stack", "cannot be looked at without docker compose", "mend what is above, then ask again")
    words = str(failure).strip().splitlines()[-1]
    return fail(
        "stack", f"compose refuses it: {words[:300]}", f"correct {env_file().name} (.env.example names every variable)"
    )


def of_the_stack(resolved: Json, facts: Json) -> list[Finding]:
    """What depends on the settings as compose resolves them."""
    services = resolved["services"]
    mounts = services.get("publish", {}).get("volumes", [])
    folder = next((Path(mount["source"]) for mount in mounts if mount["target"] == DATA_TARGET), ROOT / "data")
    data, data_bytes = host.data_folder(folder)
    findings = engine.memory(services, facts) if facts else []
    findings += engine.disk(facts, data_bytes, prometheus_bytes(services)) if facts else []
    findings += engine.ports(str(resolved["name"]), services, asks_engine=bool(facts))
    return findings + data + host.certificates(services) + host.model(services) + alerts(services)


def prometheus_bytes(services: Json) -> int:
    """How large the metrics may become."""
    flags = services.get("prometheus", {}).get("command") or []
    size = next((str(flag).partition("=")[2] for flag in flags if "retention.size=" in str(flag)), "0")
    return host.bytes_of(size)


def main(arguments: list[str]) -> int:
    """Examine and tell; 1 when something failed."""
    findings = examine()
    shown = [finding for finding in findings if finding.status != "ok"] if "--quiet" in arguments else findings
    if "--json" in arguments:
        print(as_json(findings))
    elif shown:
        print(text(shown))
    failed = sum(finding.status == "FAIL" for finding in findings)
    warned = sum(finding.status == "warn" for finding in findings)
    if not {"--json", "--quiet"} & set(arguments):
        print(f"doctor: {len(findings)} checks, {failed} failed, {warned} warnings")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
