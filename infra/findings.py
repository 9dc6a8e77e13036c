"""What the doctor says: one finding a check, and how it is shown."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """`advice` says what to do; findings that are `ok` have none."""

    check: str
    status: Literal["ok", "warn", "FAIL"]
    detail: str
    advice: str = ""


def ok(check: str, detail: str) -> Finding:
    """Nothing to do."""
    return Finding(check, "ok", detail)


def warn(check: str, detail: str, advice: str) -> Finding:
    """It starts, and this may hurt later."""
    return Finding(check, "warn", detail, advice)


def fail(check: str, detail: str, advice: str) -> Finding:
    """It does not start like this, or not as meant."""
    return Finding(check, "FAIL", detail, advice)


def joined(check: str, found: Sequence[Finding], otherwise: str) -> list[Finding]:
    """What was found, else one line that says that all is well."""
    return list(found) or [ok(check, otherwise)]


def text(findings: Iterable[Finding]) -> str:
    """A line a finding, and below those that are not ok a line of advice."""
    lines = []
    for one in findings:
        lines.append(f"{one.status:<5} {one.check:<10} {one.detail}")
        lines += [f"{'':<16} -> {one.advice}"] if one.advice else []
    return "\n".join(lines)


def as_json(findings: Iterable[Finding]) -> str:
    """A list of objects with the members of `Finding`."""
    return json.dumps([dataclasses.asdict(one) for one in findings], indent=1)
