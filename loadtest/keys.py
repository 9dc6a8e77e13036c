"""API keys: each person has their own, so that the service's rate limit per client does not decide the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

# Left over when moving to the next key: tiles of a dashboard are asked together, and their answers tell of the past.
RESERVE = 12


def read_keys(path: Path) -> list[str]:
    """The keys in a file, one a line. Raises `ValueError` where there is none or a line is something else, `OSError`."""
    keys = []
    for number, line in enumerate(path.read_text(errors="backslashreplace").splitlines(), 1):
        words = line.split()
        if len(words) > 1 or not line.isascii():
            raise ValueError(f"{path}, line {number}: not an API key; the file has one key a line and nothing else")
        keys += words
    if not keys:
        raise ValueError(f"{path}: no API key in it; it has one key a line (make -s keys ARGS=... > {path})")
    return keys


class KeyRing:
    """One person's keys. At full speed a person asks more than a client may: then the next key is taken.

    (The brief's 100 a minute for each client, times its 30 users, is half of its throughput objective.) Keys given by the
    operator are used in turn; without any, keys are made up, which a service without a key file accepts.
    """

    def __init__(self, person: str, given: Sequence[str] = (), first: int = 0) -> None:
        self._person = person
        self._given = given
        self._number = first

    @property
    def key(self) -> str:
        """The key to send."""
        if self._given:
            return self._given[self._number % len(self._given)]
        return f"{self._person}-{self._number}"

    def answered(self, key: str, remaining: str | None) -> None:
        """Take the next key when an answer to `key` says (RateLimit-Remaining) that its quota runs out."""
        if remaining is not None and remaining.isdecimal() and int(remaining) <= RESERVE and key == self.key:
            self._number += 1
