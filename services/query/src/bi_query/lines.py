"""Text that stays on its line: what others wrote, in a log or on a terminal, ends no line and commands nothing."""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

# JSON escapes what is below U+0020. Readers that split lines at more than "\n", terminals that obey C1 controls and eyes
# that trust the order of characters need these escaped, too.
_UNSAFE = re.compile("[\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")


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
