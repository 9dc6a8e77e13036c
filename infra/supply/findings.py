"""What an audit found, what of it is accepted, and what it could not look at: never the one for the other."""

from __future__ import annotations

import datetime as dt
import tomllib
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from stack_tools import Failure

Kind = Literal["vulnerability", "update", "secret"]
KINDS = ("vulnerability", "update", "secret")
_ENTRY = {"kind": str, "id": str, "where": str, "reason": str}


class Exit(IntEnum):
    """Exit codes. Something found outweighs something left undone."""

    CLEAN = 0
    FOUND = 1
    BROKEN = 2  # the audit itself: wrong use, a tool that fails
    UNDONE = 3  # nothing found, but not everything could be looked at


@dataclass(frozen=True, order=True)
class Finding:
    """One thing known against a package, or one secret.

    `where` names the file or image; `id` the advisory, the pending version or the rule.
    """

    where: str
    id: str
    kind: Kind
    what: str
    advice: str

    def __str__(self) -> str:
        return f"{self.kind} {self.id} in {self.where}: {self.what}. {self.advice}"


@dataclass(frozen=True)
class Accepted:
    """A finding that is known and borne: for a reason, and (secrets excepted, which do not age) until a date."""

    kind: str
    id: str
    where: str  # a glob: `*` is any text
    reason: str
    expires: dt.date | None

    def covers(self, finding: Finding) -> bool:
        """Whether this entry is about that finding."""
        same = (self.kind, self.id) == (finding.kind, finding.id)
        return same and fnmatchcase(finding.where, self.where)


def load_accepted(path: Path) -> tuple[Accepted, ...]:
    """The entries of the file. Raises `Failure` with the entry's number for one that is not complete."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise Failure(f"{path}: {error}") from error
    if set(document) - {"accepted"}:
        raise Failure(f"{path}: only [[accepted]] entries belong here, not {sorted(set(document) - {'accepted'})}")
    return tuple(_entry(path, n, raw) for n, raw in enumerate(document.get("accepted", []), start=1))


def _entry(path: Path, number: int, raw: dict[str, Any]) -> Accepted:
    here = f"{path}, entry {number}"
    wrong = [name for name, type_ in _ENTRY.items() if not isinstance(raw.get(name), type_) or not raw[name].strip()]
    if wrong:
        raise Failure(f"{here}: {', '.join(wrong)} must be given, as text")
    if set(raw) - set(_ENTRY) - {"expires"}:
        raise Failure(f"{here}: unknown {sorted(set(raw) - set(_ENTRY) - {'expires'})}")
    if raw["kind"] not in KINDS:
        raise Failure(f"{here}: kind is one of {', '.join(KINDS)}")
    expires = raw.get("expires")
    if type(expires) is not dt.date and (expires is not None or raw["kind"] != "secret"):
        raise Failure(f"{here}: expires must be a date such as 2027-03-31 (only secrets may go without)")
    return Accepted(**{name: raw[name] for name in _ENTRY}, expires=expires)


@dataclass
class Report:
    """What one run gathered."""

    findings: list[Finding] = field(default_factory=list)
    accepted: list[tuple[Finding, Accepted]] = field(default_factory=list)
    undone: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def settle(self, entries: tuple[Accepted, ...], today: dt.date) -> None:
        """Set the accepted findings apart; what an expired entry covered stays a finding, and says so."""
        open_: list[Finding] = []
        for finding in sorted(set(self.findings)):
            entry = next((entry for entry in entries if entry.covers(finding)), None)
            if entry is None:
                open_.append(finding)
            elif entry.expires and entry.expires < today:
                late = f"It was accepted until {entry.expires} ({entry.reason}): decide anew. {finding.advice}"
                open_.append(Finding(finding.where, finding.id, finding.kind, finding.what, late))
            else:
                self.accepted.append((finding, entry))
        self.findings = open_

    @property
    def exit_code(self) -> Exit:
        """Found before undone before clean."""
        if self.findings:
            return Exit.FOUND
        return Exit.UNDONE if self.undone else Exit.CLEAN

    def lines(self) -> list[str]:
        """For a person, the verdict last."""
        lines = [f"note: {note}" for note in self.notes]
        lines += [f"accepted: {f.kind} {f.id} in {f.where}: {entry.reason}" for f, entry in self.accepted]
        lines += [f"NOT DONE: {undone}" for undone in self.undone]
        lines += [f"FOUND: {finding}" for finding in self.findings]
        verdict = {
            Exit.FOUND: f"{len(self.findings)} found",
            Exit.UNDONE: "nothing found, but NOT EVERYTHING WAS LOOKED AT",
        }
        return [*lines, verdict.get(self.exit_code, "nothing found") + f" (exit code {int(self.exit_code)})"]

    def document(self) -> dict[str, Any]:
        """For a program."""
        accepted = [{**asdict(f), "reason": e.reason, "expires": str(e.expires or "")} for f, e in self.accepted]
        return {
            "exit_code": int(self.exit_code),
            "findings": [asdict(finding) for finding in self.findings],
            "accepted": accepted,
            "undone": self.undone,
            "notes": self.notes,
        }
