"""Keys that hold all an answer depends on, and entries that a hostile store cannot turn into a wrong answer."""

from __future__ import annotations

import dataclasses
import random
import re
import struct
import zlib
from pathlib import Path

import orjson
import pytest
import zstandard
from bi_query.entries import CacheKey, CorruptEntry, Entry, compress, label_of, make_etag

KEY = CacheKey("snap1", "all", "shops", "limit=10&shop=north", "json", "d1")


def entry_of(raw: bytes, key: CacheKey = KEY) -> Entry:
    body, compressed = compress(raw)
    return Entry(key.query, key.label, 1.0, 2.0, 3.0, make_etag(raw), 7, False, 0.25, compressed, body)


def wire(header: dict[str, object], body: bytes) -> bytes:
    packed = orjson.dumps(header)
    rest = packed + body
    return struct.pack(">4sII", b"BIQ1", zlib.crc32(rest), len(packed)) + rest


def header_of(data: bytes) -> dict[str, object]:
    length = struct.unpack_from(">4sII", data)[2]
    found: dict[str, object] = orjson.loads(data[12 : 12 + length])
    return found


@pytest.mark.parametrize(
    "change",
    [
        {"snapshot": "snap2"},
        {"scope": "finance"},
        {"query": "stores"},
        {"params": "limit=11&shop=north"},
        {"fmt": "csv"},
        {"digest": "d2"},
    ],
)
def test_keys_differ_by_everything_an_answer_depends_on(change: dict[str, str]) -> None:
    fields = {"snapshot": "snap1", "scope": "all", "query": "shops", "params": "limit=10&shop=north"}
    fields |= {"fmt": "json", "digest": "d1"}
    assert CacheKey(**fields).text == KEY.text  # type: ignore[arg-type]
    assert CacheKey(**{**fields, **change}).text != KEY.text  # type: ignore[arg-type]


def test_a_key_of_long_parameters_is_short_and_still_its_own() -> None:
    one, other = (CacheKey("s", "all", "shops", "shop=" + "x" * 5000 + last, "json", "d") for last in "ab")
    assert len(one.text) < 500
    assert one.text != other.text
    assert one.label.startswith("shops/sha-")
    assert one.label.endswith("/json")


def test_parameters_up_to_400_characters_can_be_read_in_the_label() -> None:
    params = "shop=" + "x" * 395
    assert CacheKey("s", "all", "shops", params, "json", "d").label == f"shops/{params}/json"
    assert "sha-" in CacheKey("s", "all", "shops", params + "y", "json", "d").label


def test_the_label_is_found_in_a_keys_text() -> None:
    assert label_of(KEY.text) == KEY.label == "shops/limit=10&shop=north/json"
    assert label_of(CacheKey("s", "all", "ad_hoc", "a:b:c", "csv", "").text) == "ad_hoc/a:b:c/csv"


@pytest.mark.parametrize("raw", [b"", b"x", "São Paulo 🛒".encode(), b"row," * 5000, random.Random(1).randbytes(9000)])
def test_what_is_dumped_loads_again(raw: bytes) -> None:
    entry = entry_of(raw)
    assert Entry.load(KEY, entry.dump(KEY)) == entry
    assert Entry.load(KEY, entry.dump(KEY)).raw() == raw


def test_large_bodies_are_compressed_and_small_or_random_ones_are_not() -> None:
    assert entry_of(b"row," * 5000).compressed
    assert len(entry_of(b"row," * 5000).body) < 200
    assert not entry_of(b"row,").compressed
    assert not entry_of(random.Random(1).randbytes(9000)).compressed


def test_any_single_damaged_byte_is_noticed() -> None:
    data = entry_of(b"amount," * 1000).dump(KEY)
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0x41
        with pytest.raises(CorruptEntry):
            Entry.load(KEY, bytes(damaged))


def test_an_entry_cut_short_anywhere_is_noticed() -> None:
    data = entry_of(b"amount," * 1000).dump(KEY)
    for length in range(len(data)):
        with pytest.raises(CorruptEntry):
            Entry.load(KEY, data[:length])


def test_another_keys_entry_is_refused() -> None:
    other = dataclasses.replace(KEY, params="limit=11")
    with pytest.raises(CorruptEntry):
        Entry.load(KEY, entry_of(b"other", other).dump(other))


@pytest.mark.parametrize(
    "rubbish", [b"", b"\0" * 12, b"BIQ1", b"OK", b"\x80\x04K\x01.", b"{}", 5, [b"a"], "text", True]
)
def test_rubbish_is_refused_and_never_anything_else(rubbish: object) -> None:
    with pytest.raises(CorruptEntry):
        Entry.load(KEY, rubbish)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fresh_until", "tomorrow"),
        ("stale_until", None),
        ("created_at", []),
        ("row_count", 1.5),
        ("row_count", True),
        ("truncated", 0),
        ("compressed", "yes"),
        ("etag", 5),
        ("etag", '"other"'),
        ("label", "stores/limit=10/json"),
        ("query", "stores"),
        ("key", "elsewhere"),
        ("surprise", 1),
    ],
)
def test_a_well_formed_entry_that_says_nonsense_is_refused(name: str, value: object) -> None:
    good = header_of(entry_of(b"body").dump(KEY))
    assert Entry.load(KEY, wire(good, b"body")).raw() == b"body"
    with pytest.raises(CorruptEntry):
        Entry.load(KEY, wire({**good, name: value}, b"body"))


def test_a_body_that_does_not_decompress_or_claims_to_be_huge_is_refused() -> None:
    header = header_of(entry_of(b"row," * 5000).dump(KEY))
    parameters = zstandard.ZstdCompressionParameters.from_level(1)
    huge = bytearray(zstandard.ZstdCompressor(compression_params=parameters).compress(b"0" * 70_000))
    assert huge[4] >> 6 == 2, "the frame holds its size in four bytes"
    at = 5 if huge[4] & 0x20 else 6
    huge[at : at + 4] = (4_000_000_000).to_bytes(4, "little")
    for body in (b"not zstd", b"", bytes(huge)):
        with pytest.raises(CorruptEntry):
            Entry.load(KEY, wire(header, body))


def test_nothing_is_ever_unpickled() -> None:
    for path in (Path(__file__).parents[2] / "services" / "query" / "src").rglob("*.py"):
        assert not re.search(
            r"^\s*(import|from)\s+(pickle|marshal|shelve|dill|joblib)\b", path.read_text(), re.MULTILINE
        ), path
