"""Which labels a glob means, alike in every tier, and which of them were invalidated when. A leaf.

In a glob `*` is any run of characters, `?` is any one, and every other character stands for itself (`[`, `]`, `^` and
`\\` too). Redis' own globs differ (classes, escapes, bytes for characters), so there they only narrow a scan down.
"""

from __future__ import annotations

import re
import time
from collections import deque

_REMEMBERED = 1000

Glob = re.Pattern[str]


def compile_glob(pattern: str) -> Glob:
    """`pattern` as a regular expression that matches whole labels in time linear in their length.

    Each piece between stars is an atomic group: its first place is as good as any later one, so nothing backtracks, and
    a hostile pattern of two hundred stars costs no more than a plain one.
    """
    head, *rest = re.sub(r"\*+", "*", pattern).split("*")
    if not rest:
        return re.compile(_literal(head), re.DOTALL)
    *middle, tail = rest
    pieces = "".join(f"(?>.*?{_literal(piece)})" for piece in middle)
    return re.compile(f"{_literal(head)}{pieces}.*{_literal(tail)}", re.DOTALL)


def _literal(text: str) -> str:
    return "".join("." if character == "?" else re.escape(character) for character in text)


def literal_prefix(pattern: str) -> str:
    """What every label that matches begins with."""
    return re.split(r"[*?]", pattern, maxsplit=1)[0]


class Invalidations:
    """The recent ones, so that an answer begun before one is not stored after it. Event loop only."""

    def __init__(self) -> None:
        self._recent: deque[tuple[float, Glob | None]] = deque(maxlen=_REMEMBERED)
        self._forgotten_until = 0.0

    def add(self, glob: Glob | None) -> None:
        """Note one, of all labels when `glob` is None, as of now."""
        if len(self._recent) == _REMEMBERED:
            self._forgotten_until = self._recent[0][0]
        self._recent.append((time.monotonic(), glob))

    def since(self, started: float, label: str) -> bool:
        """Whether `label` was (or may have been) invalidated at or after `started` (monotonic seconds)."""
        for when, glob in reversed(self._recent):
            if when < started:
                return False
            if glob is None or glob.fullmatch(label):
                return True
        return self._forgotten_until >= started
