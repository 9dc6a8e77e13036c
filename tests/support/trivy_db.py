"""A database of advisories as Trivy downloads it (a bbolt file), with just what a test puts into it.

Layout: https://github.com/etcd-io/bbolt/blob/main/README.md#database-layout and internal/common/page.go there: two pages of
metadata, an empty free list, and the root bucket as one leaf, in which every other bucket lies inline.
"""

from __future__ import annotations

import datetime as dt
import json
import struct
from pathlib import Path
from typing import Any

PAGE_BYTES = 4096
LEAF, META, FREE_LIST = 0x02, 0x04, 0x10
MAGIC, VERSION = 0xED0CDAED, 2
Bucket = dict[str, Any]  # a dict is a bucket of buckets or entries; what a `Value` holds is JSON


class Value(dict[str, Any]):
    """An entry of a bucket."""


def _leaf(bucket: Bucket, page: int) -> bytes:
    """A leaf page with the bucket's entries in order, buckets of its own inline."""
    heads, body = b"", b""
    for index, (key, value) in enumerate(sorted(bucket.items())):
        is_bucket = not isinstance(value, Value)
        data = struct.pack("<QQ", 0, 0) + _leaf(value, 0) if is_bucket else json.dumps(value).encode()
        # From this element's own start to its key: the elements that follow, then what lies before it.
        place = (len(bucket) - index) * 16 + len(body)
        heads += struct.pack("<IIII", int(is_bucket), place, len(key), len(data))
        body += key.encode() + data
    overflow = (16 + len(heads) + len(body) - 1) // PAGE_BYTES
    return struct.pack("<QHHI", page, LEAF, len(bucket), overflow if page else 0) + heads + body


def _meta(page: int, pages: int) -> bytes:
    fields = struct.pack("<IIIIQQQQQ", MAGIC, VERSION, PAGE_BYTES, 0, 3, 0, 2, pages, page)
    checksum = 0xCBF29CE484222325
    for byte in fields:
        checksum = ((checksum ^ byte) * 0x100000001B3) % 2**64
    return struct.pack("<QHHI", page, META, 0, 0) + fields + struct.pack("<Q", checksum)


def write_database(folder: Path, content: Bucket) -> None:
    """Write it into Trivy's cache folder, as one that is up to date."""
    root = _leaf(content, 3)
    pages = 3 + -(-len(root) // PAGE_BYTES)
    free = struct.pack("<QHHI", 2, FREE_LIST, 0, 0)
    parts = [_meta(0, pages), _meta(1, pages), free]
    (folder / "db").mkdir(parents=True)
    blob = b"".join(part.ljust(PAGE_BYTES, b"\0") for part in parts) + root.ljust((pages - 3) * PAGE_BYTES, b"\0")
    (folder / "db/trivy.db").write_bytes(blob)
    now = dt.datetime.now(dt.UTC)
    times = {"UpdatedAt": now, "DownloadedAt": now, "NextUpdate": now + dt.timedelta(days=1)}
    written = {name: time.strftime("%Y-%m-%dT%H:%M:%SZ") for name, time in times.items()}
    (folder / "db/metadata.json").write_text(json.dumps({"Version": 2, **written}))
