"""What the rendered rule groups share: numbers, durations, selectors and annotations."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

Rule = dict[str, Any]
Spec = dict[str, Any]


def seconds(duration: str) -> int:
    """Seconds of a Prometheus duration with one unit ("5m"); ValueError for anything else."""
    match = re.fullmatch(r"(\d+)([smhd])", duration)
    if not match:
        raise ValueError(f"not a duration of one unit: {duration!r}")
    return int(match[1]) * UNIT_SECONDS[match[2]]


def plain(value: Decimal) -> str:
    """A number as people write it: no exponent, no trailing zeros."""
    return f"{value.normalize():f}"


def ratio(percent: float) -> Decimal:
    """0..1 of a percentage, exactly; ValueError outside 0..100."""
    value = Decimal(str(percent)) / 100
    if not 0 < value < 1:
        raise ValueError(f"not a percentage between 0 and 100: {percent}")
    return value


def bucket_matcher(threshold: float) -> str:
    """Matches one bucket both as Prometheus 2 stores it (le="2") and as Prometheus 3 does (le="2.0")."""
    value = Decimal(str(threshold)).normalize()
    text = f"{value:f}"
    both = [text, f"{text}.0"] if value == value.to_integral_value() else [text]
    return "|".join(form.replace(".", "[.]") for form in both)


def selector(metric: str, **matchers: str) -> str:
    """A series selector; a value that starts with "~" is a pattern, with "!~" one that must not match."""
    parts = []
    for label, value in matchers.items():
        sign = "!~" if value.startswith("!~") else "=~" if value.startswith("~") else "="
        parts.append(f'{label}{sign}"{value.lstrip("!~")}"')
    return f"{metric}{{{', '.join(parts)}}}"


def api(spec: Spec, metric: str, **matchers: str) -> str:
    """A selector of the API's requests in `metric`."""
    scope = {"job": spec["scope"]["job"], "endpoint": f"~{spec['scope']['endpoints']}"}
    return selector(metric, **scope, **matchers)


def at_least_some(requests: str) -> str:
    """A divisor that is never zero: no failures out of no requests is 0, not NaN."""
    return f"clamp_min({requests}, 1e-9)"


def failed_rate(spec: Spec, window: str) -> str:
    """Failed requests per second: 5xx less those that slo.yaml lays at the client's door."""
    part = spec["availability"]
    status = f"~{part['bad_status']}"
    failed = f"rate({api(spec, 'http_requests_total', status=status)}[{window}])"
    for cause in part["client_caused"]:
        excused = selector("http_requests_total", job=spec["scope"]["job"], **cause)
        failed += f"\n  unless rate({excused}[{window}])"
    return f"sum(\n  {failed}\n)"


def notes(spec: Spec, alert: str, summary: str, description: str, dashboard: str) -> dict[str, str]:
    """The annotations of an alert; `summary` is static, `description` a template."""
    return {
        "summary": summary,
        "description": description,
        "runbook_url": f"{spec['alerting']['runbook_base']}#{alert.lower()}",
        "dashboard_url": dashboard,
    }
