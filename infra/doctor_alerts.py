"""The doctor's check of where alerts go: that the receiver has all it needs, and in production that there is one."""

from __future__ import annotations

from pathlib import Path

from doctor_files import named_secret
from findings import Finding, fail, joined, warn
from stack_tools import Json

SECRETS = "/run/alert-secrets"
# Alertmanager's user.
READER = 65534
# What each receiver cannot do without; infra/alertmanager/entrypoint.sh refuses to start on the same.
NEEDED = {
    "none": (),
    "webhook": ("WEBHOOK_URL_FILE",),
    "slack": ("SLACK_URL_FILE", "SLACK_CHANNEL"),
    "email": ("EMAIL_TO", "EMAIL_FROM", "SMTP_HOST"),
}


def alerts(services: Json) -> list[Finding]:
    """Of the receiver and the heartbeat."""
    manager = services.get("alertmanager") or {}
    environment = {
        name.removeprefix("ALERT_"): value or "" for name, value in (manager.get("environment") or {}).items()
    }
    receiver = environment.get("RECEIVER")
    if receiver is None:
        return []
    if receiver not in NEEDED:
        return [fail("alerts", f"BI_ALERT_RECEIVER={receiver} is unknown", f"one of {', '.join(NEEDED)}")]
    folder = next((Path(m["source"]) for m in manager.get("volumes", []) if m["target"] == SECRETS), Path())
    found = [
        fail(
            "alerts", f"BI_ALERT_RECEIVER={receiver} needs BI_ALERT_{name}", "set it in .env (.env.example explains it)"
        )
        for name in NEEDED[receiver]
        if not environment.get(name)
    ]
    files = [
        name for name in (*NEEDED[receiver], "HEARTBEAT_URL_FILE") if name.endswith("_FILE") and environment.get(name)
    ]
    if receiver == "email" and environment.get("SMTP_USER"):
        files.append("SMTP_PASSWORD_FILE")
    for name in files:
        found += named_secret("alerts", f"BI_ALERT_{name}", environment.get(name, ""), SECRETS, folder, READER)
    if is_production(services):
        found += silence(receiver, environment.get("HEARTBEAT_URL_FILE", ""))
    return joined(
        "alerts", found, f"to {receiver}" if receiver != "none" else "to nobody; they are seen in Alertmanager"
    )


def is_production(services: Json) -> bool:
    """The overlay is on."""
    return "EDGE_TLS" in (services.get("edge", {}).get("environment") or {})


def silence(receiver: str, heartbeat: str) -> list[Finding]:
    """What nobody would hear of."""
    found = []
    if receiver == "none":
        advice = "BI_ALERT_RECEIVER=webhook, slack or email, with its lines (docs/operations.md, Production)"
        found.append(warn("alerts", "BI_ALERT_RECEIVER=none: nobody is told when something fails", advice))
    if not heartbeat:
        advice = "BI_ALERT_HEARTBEAT_URL_FILE: what expects the Watchdog elsewhere (docs/operations.md, Production)"
        found.append(warn("alerts", "no heartbeat: nobody is told when this machine or its monitoring dies", advice))
    return found
