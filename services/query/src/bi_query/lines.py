"""Text that stays on its line: what others wrote, in a log or on a terminal, ends no line and commands nothing."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

import orjson

# JSON escapes what is below U+0020. Readers that split lines at more than "\n", terminals that obey C1 controls and eyes
# that trust the order of characters need these escaped, too.
_UNSAFE = re.compile("[\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")

_FLUSH_SECONDS = 0.1
_FLUSH_BYTES = 32_768


class Lines:
    """Documents as lines of JSON, handed to `write` a few at a time and at most `_FLUSH_SECONDS` late (event loop only)."""

    def __init__(self, write: Callable[[bytearray, int], object]) -> None:
        """`write` is given whole lines, and how many they are."""
        self._write = write
        # One piece of memory, soon let go: hundreds of lines kept one by one cost more in page faults than in writing.
        self._text = bytearray()
        self._count = 0

    def __call__(self, document: Any) -> None:
        """Add a line."""
        if not self._text:
            asyncio.get_running_loop().call_later(_FLUSH_SECONDS, self.flush)
        self._text += json_line(document) + b"\n"
        self._count += 1
        if len(self._text) >= _FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what has gathered."""
        if self._text:
            text, count = self._text, self._count
            self._text, self._count = bytearray(), 0
            self._write(text, count)


def shown(text: object) -> str:
    """`text` with everything escaped that does not print."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in str(text))


def json_line(document: Any) -> bytes:
    """`document` as JSON on one line, without its end."""
    try:
        line = orjson.dumps(document, default=str)
    except TypeError:  # half of a surrogate pair: a file name that is no UTF-8, say
        return json.dumps(document, default=str).replace("\x7f", "\\u007f").encode("ascii")
    if line.isascii() and b"\x7f" not in line:
        return line
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", line.decode()).encode()


def cause(error: BaseException) -> str:
    """The first line of an error's text, safe to show: a file's own words may be in it."""
    text = str(error).strip()
    return shown(text.splitlines()[0]) if text else type(error).__name__
