"""What the cache stores: keys that say everything an answer depends on, and entries that survive a hostile store.

An entry's wire form is `magic | crc32 | header length | header (JSON) | body (zstd when that helps)`. It is never pickled,
and anything that does not check out, for whatever reason, decodes to `CorruptEntry`, not to an answer.
"""

from __future__ import annotations

import base64
import struct
import sys
import zlib
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import orjson
import zstandard

from .formats import Format

_MAGIC = b"BIQ1"
_HEAD = struct.Struct(">4sII")
_COMPRESS_FROM_BYTES = 4096
DEFAULT_MAX_BODY_BYTES = 256 * 1024 * 1024
"""What a body may unpack to, where nothing is known of the largest result."""
_MAX_LABEL_CHARS = 400
_OVERHEAD_BYTES = 1024
_CLOCKS_DIFFER_SECONDS = 2.0
"""By how much the clocks of replicas may differ without their answers being refused."""
# A type that JSON has no other way to write; bool is an int to Python and must not pass for one.
_HEADER_TYPES: dict[str, tuple[type, ...]] = {
    "query": (str,),
    "label": (str,),
    "created_at": (float, int),
    "fresh_until": (float, int),
    "stale_until": (float, int),
    "etag": (str,),
    "row_count": (int,),
    "truncated": (bool,),
    "engine_seconds": (float, int),
    "compressed": (bool,),
}


class CorruptEntry(Exception):
    """Bytes from the store that are not an entry of this key."""


@dataclass(frozen=True)
class CacheKey:
    """Identity of an answer. `label` (`query/params/format`) is what invalidation patterns match."""

    snapshot: str
    scope: str
    query: str
    params: str
    fmt: Format
    digest: str
    label: str = field(init=False)
    text: str = field(init=False)

    def __post_init__(self) -> None:
        params = self.params
        if len(params) > _MAX_LABEL_CHARS:
            params = "sha-" + base64.b32encode(blake2b(params.encode(), digest_size=20).digest()).decode().lower()
        object.__setattr__(self, "label", f"{self.query}/{params}/{self.fmt}")
        object.__setattr__(self, "text", f"{self.snapshot}:{self.scope}:{self.digest}:{self.label}")


def label_of(key_text: str) -> str:
    """The label in a key's text."""
    return key_text.split(":", 3)[-1]


@dataclass(frozen=True)
class Entry:
    """A cached answer. Times are seconds since the epoch; `body` may be compressed, `raw()` never is."""

    query: str
    label: str
    created_at: float
    fresh_until: float
    stale_until: float
    etag: str
    row_count: int
    truncated: bool
    engine_seconds: float
    compressed: bool
    body: bytes

    def is_fresh(self, now: float) -> bool:
        """Whether it answers without a refresh at `now` (seconds since the epoch)."""
        return self._is_made(now) and now < self.fresh_until

    def is_usable(self, now: float) -> bool:
        """Whether it answers at all at `now`, be it stale."""
        return self._is_made(now) and now < self.stale_until

    def _is_made(self, now: float) -> bool:
        # One from the future was made before this clock was set back, or under another that is ahead: its times mean
        # nothing here, and it would stay fresh that much longer.
        return self.created_at <= now + _CLOCKS_DIFFER_SECONDS

    @property
    def cost_bytes(self) -> int:
        """What the entry takes of the memory tier's budget: body, texts (its key holds the label again), the rest."""
        return len(self.body) + 2 * sys.getsizeof(self.label) + _OVERHEAD_BYTES

    @property
    def raw_bytes(self) -> int:
        """The answer's length in bytes."""
        return len(self.body) if not self.compressed else zstandard.frame_content_size(self.body)

    def raw(self, max_bytes: int | None = None) -> bytes:
        """The answer's bytes. Raises `CorruptEntry`, also for more than `max_bytes` (None: it was checked before)."""
        if not self.compressed:
            return self.body
        try:
            named_bytes = zstandard.frame_content_size(self.body)  # -1 when it is not named
            limit_bytes = named_bytes if max_bytes is None else max_bytes
            # A frame that names its size is decompressed to that size, whatever max_output_size says. One that does not is
            # none of ours, and would take what it may take before its first byte is looked at.
            if not 0 <= named_bytes <= limit_bytes:
                raise CorruptEntry("body is larger than any answer, or does not say how large it is")
            return zstandard.ZstdDecompressor().decompress(self.body, max_output_size=named_bytes)
        except zstandard.ZstdError as error:
            raise CorruptEntry("body does not decompress") from error

    def dump(self, key: CacheKey) -> bytes:
        """The wire form, bound to `key`."""
        header = orjson.dumps(
            {
                "key": key.text,
                "query": self.query,
                "label": self.label,
                "created_at": self.created_at,
                "fresh_until": self.fresh_until,
                "stale_until": self.stale_until,
                "etag": self.etag,
                "row_count": self.row_count,
                "truncated": self.truncated,
                "engine_seconds": self.engine_seconds,
                "compressed": self.compressed,
            }
        )
        rest = header + self.body
        return _HEAD.pack(_MAGIC, zlib.crc32(rest), len(header)) + rest

    @classmethod
    def load(cls, key: CacheKey, data: bytes, max_body_bytes: int = DEFAULT_MAX_BODY_BYTES) -> Entry:
        """Inverse of `dump`. Raises `CorruptEntry` for anything else than what was stored under `key`.

        A body that would unpack to more than `max_body_bytes` is not unpacked.
        """
        try:
            magic, checksum, header_length = _HEAD.unpack_from(data)
            rest = data[_HEAD.size :]
            if magic != _MAGIC or zlib.crc32(rest) != checksum:
                raise CorruptEntry("bad magic or checksum")
            header: dict[str, Any] = orjson.loads(rest[:header_length])
            if header.pop("key") != key.text:
                raise CorruptEntry("stored under another key")
            entry = cls(**header, body=rest[header_length:])
        except (struct.error, ValueError, TypeError, KeyError, AttributeError) as error:
            raise CorruptEntry(str(error)) from error
        entry._check(key, max_body_bytes)
        return entry

    def _check(self, key: CacheKey, max_body_bytes: int) -> None:
        """Whether this can be an answer to `key`: right types, right names, and the bytes its tag was made of."""
        for name, types in _HEADER_TYPES.items():
            value = getattr(self, name)
            if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
                raise CorruptEntry(f"{name} is {type(value).__name__}")
        if (self.query, self.label) != (key.query, key.label):
            raise CorruptEntry("names another query")
        if make_etag(self.raw(max_body_bytes)) != self.etag:
            raise CorruptEntry("the body is not what its tag was made of")


@dataclass(frozen=True)
class Packed:
    """An answer's bytes as they are stored: their tag, and the body, compressed where that helps."""

    etag: str
    body: bytes
    compressed: bool


def pack(raw: bytes) -> Packed:
    """Tag and compress. For a worker thread: hashing lets go of the interpreter, and the loop would wait to have it back."""
    return Packed(make_etag(raw), *compress(raw))


def make_etag(body: bytes) -> str:
    """A strong entity tag: equal bytes, equal tag, on every replica."""
    return '"' + blake2b(body, digest_size=12).hexdigest() + '"'


def compress(body: bytes) -> tuple[bytes, bool]:
    """The body as stored, and whether it is compressed."""
    if len(body) < _COMPRESS_FROM_BYTES:
        return body, False
    try:
        smaller = zstandard.ZstdCompressor(level=3).compress(body)
    except (MemoryError, zstandard.ZstdError):  # the answer is there; to keep it small is a wish
        return body, False
    return (smaller, True) if len(smaller) < len(body) else (body, False)
