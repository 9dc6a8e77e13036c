"""Hostile Parquet at publish: a clear error that names the file, within bounds, or a snapshot; the old one stays."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bi_query.errors import PublishError
from bi_query.parquet_files import is_whole
from bi_query.settings import load_settings
from bi_query.snapshot_files import read_pointer, snapshot_path
from bi_query.sources import discover
from bi_query.watch import Watcher, look

from tests.support.small import Small, make_small

MIB = 1024 * 1024
ONE = pa.table({"n": [1]})
FUZZED_FILES = 60


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Small:
    small = make_small(tmp_path_factory.mktemp("template"))
    small.publish()
    return small


def state(small: Small) -> dict[str, bytes]:
    """What readers see, and what a failed publish must not leave."""
    return {
        path.name: path.read_bytes()
        for path in small.snapshots.iterdir()
        if path.name not in ("publish.json", "fingerprints.json", ".publish.lock")
    }


def rows(small: Small, sql: str) -> list[Any]:
    pointer = read_pointer(small.snapshots)
    assert pointer is not None
    with duckdb.connect(str(snapshot_path(small.snapshots, pointer.snapshot_id)), read_only=True) as connection:
        return connection.execute(sql).fetchall()


# --- files that are refused


def nested(depth: int, make: Callable[[pa.DataType], pa.DataType]) -> pa.Table:
    kind: pa.DataType = pa.int8()
    for _ in range(depth):
        kind = make(kind)
    return pa.table({"n": pa.array([None], kind)})


def footer_of(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Rewrite a file's footer, with its right length behind it."""
    content = path.read_bytes()
    (length,) = struct.unpack("<I", content[-8:-4])
    footer = change(content[-8 - length : -8])
    path.write_bytes(content[: -8 - length] + footer + struct.pack("<I", len(footer)) + b"PAR1")


def many_columns_claimed(count: int) -> Callable[[Path], None]:
    """A schema list that says it has `count` elements; the footer ends long before."""

    def make(path: Path) -> None:
        pq.write_table(ONE, path)
        varint = b""
        left = count
        while left > 127:
            varint += bytes([left & 127 | 128])
            left >>= 7
        assert path.read_bytes().count(b"PAR1") == 2
        # version: i32 (2 bytes), then a list of structs: 0x19, and its size and type in one byte
        footer_of(path, lambda footer: footer[:3] + b"\xfc" + varint + bytes([left]) + footer[4:])

    return make


def patched(change: Callable[[bytearray], object]) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        pq.write_table(pa.table({"n": list(range(1000)), "t": [str(i) for i in range(1000)]}), path)
        content = bytearray(path.read_bytes())
        change(content)
        path.write_bytes(content)

    return make


def footer_length(length: int) -> Callable[[Path], None]:
    return patched(lambda content: content.__setitem__(slice(-8, -4), struct.pack("<I", length)))


def encrypted(content: bytearray) -> None:
    content[:4] = content[-4:] = b"PARE"


def columns(count: int) -> pa.Table:
    return pa.table([pa.array([1], pa.int8())] * count, names=[f"c{i}" for i in range(count)])


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut off in the middle": (patched(lambda content: content.__delitem__(slice(500, None))), "not a complete Parquet file"),
    "no byte": (Path.touch, "not a complete Parquet file (0 bytes)"),
    "the magic alone": (lambda path: path.write_bytes(b"PAR1PAR1"), "not a complete Parquet file"),
    "another magic": (patched(lambda content: content.__setitem__(slice(0, 4), b"ORC\0")), "not a complete Parquet file"),
    "encrypted": (patched(encrypted), "encrypted"),
    "a footer of 4 GB": (footer_length(2**32 - 1), "longer than the file"),
    "a footer of 2 GB": (footer_length(2**31 - 1), "longer than the file"),
    "a footer longer than the file": (footer_length(100_000), "longer than the file"),
    "a footer of nothing": (footer_length(0), ""),
    "two thousand million columns claimed": (many_columns_claimed(2_000_000_000), "footer cannot be read"),
    "a million columns claimed": (many_columns_claimed(1_000_000), "footer cannot be read"),
    "lists 28 deep": (lambda path: pq.write_table(nested(28, pa.list_), path), "nested deeper than 16 lists"),
    "lists 60 deep": (lambda path: pq.write_table(nested(60, pa.list_), path), "nested deeper than 16 lists"),
    "maps 20 deep": (
        lambda path: pq.write_table(nested(20, lambda kind: pa.map_(pa.string(), kind)), path),
        "nested deeper than 16 lists",
    ),
    "structs 120 deep": (
        lambda path: pq.write_table(nested(120, lambda kind: pa.struct([("a", kind)])), path),
        "nested deeper",
    ),
    "10,001 columns": (lambda path: pq.write_table(columns(10_001), path), "more than 10,000 columns"),
    "a link to itself": (lambda path: path.symlink_to(path), "leads nowhere"),
    "a link out of the folder": (
        lambda path: (pq.write_table(ONE, path.parents[1] / "secret.parquet"), path.symlink_to("../secret.parquet")),
        "out of the data folder",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "said"), REFUSED.values(), ids=REFUSED)
def test_a_hostile_file_is_refused_by_its_name_and_the_old_snapshot_stays(
    template: Small, make: Callable[[Path], object], said: str
) -> None:
    bad, before = template.data / "bad.parquet", state(template)
    make(bad)
    try:
        with pytest.raises(PublishError) as caught:
            template.publish(publish_timeout_seconds=30)
    finally:
        bad.unlink()
    text = str(caught.value)
    assert text.startswith(f"{bad}: ") and said in text and text.isprintable(), text
    assert state(template) == before
    status = json.loads((template.snapshots / "publish.json").read_text())
    assert status["ok"] is False and status["error"] == text


@pytest.mark.parametrize(
    "name",
    [b"a\nb.parquet", b"a\x1b[2Jb.parquet", b"\xff\xfe.parquet", "a\u2028b.parquet".encode(), b"a\\*.parquet",
     "a\u202eb.parquet".encode(), b"t/year=\n/a.parquet"],
)  # fmt: skip
def test_a_name_that_would_forge_a_line_or_be_a_pattern_is_refused_in_words_that_print(
    template: Small, name: bytes
) -> None:
    path = template.data / os.fsdecode(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(ONE, template.data / "x.parquet")
    (template.data / "x.parquet").rename(path)
    try:
        with pytest.raises(PublishError, match="rename it") as caught:
            template.publish()
    finally:
        path.unlink()
    assert str(caught.value).isprintable()
    assert json.loads((template.snapshots / "publish.json").read_text())["error"] == str(caught.value)


def test_a_linked_folder_out_of_the_data_folder_is_refused_and_one_within_is_read(small: Small) -> None:
    outside = small.root / "elsewhere"
    outside.mkdir()
    pq.write_table(ONE, outside / "salaries.parquet")
    link = small.data / "mine"
    link.symlink_to(outside)
    with pytest.raises(PublishError, match=r"mine/salaries\.parquet: a symbolic link out of the data folder"):
        small.publish()
    link.unlink()
    (small.data / "aliases.parquet").symlink_to("versions.parquet")
    moved = small.root / "moved"
    small.data.rename(moved)
    small.data.symlink_to(moved)  # the data folder itself may be a link
    assert "aliases" in small.publish().relations


# --- files that are read, and do no harm


def test_a_file_named_like_a_pattern_is_read_alone(small: Small) -> None:
    for name in ("*", "s?les", "[sv]*", "**", "x[1]"):
        pq.write_table(pa.table({"who": [name]}), small.data / f"{name}.parquet")
    small.publish()
    for name in ("*", "s?les", "[sv]*", "**", "x[1]"):
        assert rows(small, f'select * from "{name}"') == [(name,)]
    assert rows(small, "select count(*) from sales") == [(1000,)]


NAMES = {
    "alike but for case": ["a", "A", "a_1"],
    "equal": ["a", "a", "a"],
    "quotes and statements": ['a"b', "a'b", "a;drop table sales--"],
    "newlines and escapes": ["a\nb", "a\x1b[2J", "\u2028"],
    "NUL": ["a\0b", "c", "d"],
    "nothing": ["", " ", "\t"],
    "keywords": ["select", "from", "rowid"],
    "what the reader adds itself": ["filename", "file_row_number", "file_index"],
    "long": ["x" * 100_000, "y", "z"],
}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_column_names_of_any_kind_are_published_or_refused_by_the_files_name(small: Small, names: list[str]) -> None:
    bad = small.data / "bad.parquet"
    pq.write_table(pa.table([pa.array([1]), pa.array([2]), pa.array([3])], names=names), bad)
    try:
        published = small.publish()
    except PublishError as error:
        assert str(error).startswith(f"{bad}: ") and str(error).isprintable()
        assert rows(small, "select count(*) from sales") == [(1000,)]
        return
    assert len(published.relations["bad"]["columns"]) == 3  # type: ignore[arg-type]
    assert rows(small, "select * from bad") == [(1, 2, 3)]
    assert rows(small, "select count(*) from sales") == [(1000,)]


def test_pipes_folders_and_loops_hold_nobody_up(small: Small) -> None:
    os.mkfifo(small.data / "pipe.parquet")
    (small.data / "folder.parquet").mkdir()
    os.mkfifo(small.data / "folder.parquet" / "inner.parquet")
    table = small.data / "events"
    table.mkdir()
    pq.write_table(ONE, table / "a.parquet")
    (table / "again").symlink_to(table)
    (small.data / "link.parquet").symlink_to("pipe.parquet")
    assert {source.table for source in discover(small.data)} == {"sales", "versions", "events"}
    assert look(small.settings(), set()).unfinished == ""
    small.publish()
    assert rows(small, "select n from events") == [(1,)]


def test_a_pipe_put_where_a_file_was_a_moment_ago_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.parquet")
    with pytest.raises(OSError, match="not a regular file"):
        is_whole(tmp_path / "pipe.parquet")


# --- bounds


def run_publisher(small: Small, before: str = "", **settings: object) -> subprocess.CompletedProcess[str]:
    folders = {"data_dir": small.data, "catalogue_dir": small.catalogue, "snapshot_dir": small.snapshots, **settings}
    return subprocess.run(
        [sys.executable, "-c", before + PUBLISH],
        env={**os.environ, **{f"BI_{name.upper()}": str(value) for name, value in folders.items()}},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


# The kernel's high-water mark of this program: that of getrusage() begins with the memory of whoever started it.
PUBLISH = """
import pathlib, re
from bi_query.cli import main
code = main(["publish"])
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) // 1024)
raise SystemExit(code)
"""


def within(bytes_: int) -> str:
    """Code that makes a process believe that its container has so much memory."""
    return f"import bi_query.memory_bound\nbi_query.memory_bound.available_memory_bytes = lambda: {bytes_}"


def test_a_footer_that_asks_for_gigabytes_fails_within_the_publishers_memory(small: Small) -> None:
    bad = small.data / "bad.parquet"
    many_columns_claimed(10_000_000)(bad)  # 4 GB, were it believed
    before = state(small)
    done = run_publisher(small, within(700 * MIB), engine_memory_bytes=200 * MIB)
    assert done.returncode == 1, done
    assert done.stderr.startswith(f"bi-query: {bad}: its Parquet footer cannot be read"), done.stderr
    assert int(done.stdout.split()[-1]) < 1000, "megabytes"
    assert state(small) == before


def test_values_that_unpack_to_gigabytes_fail_within_the_publishers_memory_or_are_published(small: Small) -> None:
    bad = small.data / "bad.parquet"
    row = pa.table({"t": ["x" * (200 * MIB)]})
    with pq.ParquetWriter(bad, row.schema, compression="zstd", use_dictionary=False, data_page_size=2**30) as writer:
        for _ in range(3):
            writer.write_table(row)
    assert bad.stat().st_size < MIB
    done = run_publisher(
        small, within(900 * MIB), engine_memory_bytes=200 * MIB, spill_max_bytes=500 * MIB, snapshot_max_bytes=100 * MIB
    )
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 0 or done.stderr.startswith(f"bi-query: {bad}: "), done.stderr
    assert rows(small, "select count(*) from sales") == [(1000,)]
    assert [path.name for path in small.snapshots.glob(".*") if path.name != ".publish.lock"] == []


def one_text(path: Path, mebibytes: int) -> None:
    """A file whose only value has this size in memory; a few kilobytes on disk."""
    pq.write_table(pa.table({"t": ["x" * (mebibytes * MIB)]}), path, compression="zstd", use_dictionary=False)


def test_tables_that_fit_into_the_publishers_memory_only_one_by_one_are_published(small: Small) -> None:
    for number in range(6):
        one_text(small.data / f"large_{number}.parquet", 60)
    small.publish(engine_memory_bytes=200 * MIB, max_running_queries=4)
    assert rows(small, "select length(t) from large_5") == [(60 * MIB,)]


def test_a_table_too_large_for_the_publishers_memory_is_named_and_none_that_is_loaded_beside_it(small: Small) -> None:
    for number in range(6):
        one_text(small.data / f"large_{number}.parquet", 30)
    one_text(small.data / "huge.parquet", 250)
    with pytest.raises(PublishError, match=r"/huge\.parquet: Out of Memory"):
        small.publish(engine_memory_bytes=200 * MIB, max_running_queries=4)


def test_rows_without_end_in_a_small_file_stop_at_the_limits_of_disk_or_time(small: Small) -> None:
    bad = small.data / "bad.parquet"
    duckdb.sql(f"copy (select 'x' as a, 'y' as b from range(50_000_000)) to '{bad}' (format parquet, compression zstd)")
    assert bad.stat().st_size < 4 * MIB
    before = state(small)
    with pytest.raises(PublishError, match=r"bad\.parquet(, \S+)*: .*BI_SNAPSHOT_MAX_BYTES"):
        small.publish(publish_timeout_seconds=100, snapshot_max_bytes=MIB)
    with pytest.raises(PublishError, match="BI_PUBLISH_TIMEOUT_SECONDS"):
        small.publish(publish_timeout_seconds=0.3)
    assert state(small) == before


def test_the_publisher_outlives_a_hostile_file_and_publishes_when_it_is_gone(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {"DATA_DIR": small.data, "CATALOGUE_DIR": small.catalogue, "SNAPSHOT_DIR": small.snapshots}
    for name, value in {**folders, "PUBLISH_SETTLE_SECONDS": 0}.items():
        monkeypatch.setenv(f"BI_{name}", str(value))
    watcher = Watcher(load_settings(), threading.Event())
    watcher.turn()
    bad = small.data / "bad.parquet"
    pq.write_table(nested(40, pa.list_), bad)
    watcher.turn()
    failed = json.loads((small.snapshots / "publish.json").read_text())
    assert failed["ok"] is False and "nested deeper" in failed["error"]
    bad.unlink()
    watcher.turn()
    assert json.loads((small.snapshots / "publish.json").read_text())["ok"] is True


# --- at random


FUZZ = """
import json, random, sys, time
from pathlib import Path
from bi_query.catalogue import Catalogue
from bi_query.errors import PublishError
from bi_query.publish import How, publish
from bi_query.settings import load_settings

root, count = Path(sys.argv[1]), int(sys.argv[2])
bases = [path.read_bytes() for path in sorted((root / "bases").iterdir())]
data = root / "data"
data.mkdir()
settings = load_settings(data_dir=data, snapshot_dir=root / "snapshots", snapshots_kept=1, publish_timeout_seconds=10,
                         engine_memory_bytes=256 * 1024 * 1024, max_running_queries=1)
bad = data / "bad.parquet"
for seed in range(1, count + 1):
    chance = random.Random(seed)
    content = bytearray(chance.choice(bases))
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    where = (footer, len(content) - 8) if seed % 3 else (4, len(content))
    for _ in range(chance.choice([1, 1, 2, 4, 16])):
        content[chance.randrange(*where)] = chance.randrange(256)
    if seed % 10 == 0:
        del content[chance.randrange(len(content)):chance.randrange(len(content))]
    bad.write_bytes(content)
    print(seed, end=" ", flush=True)
    try:
        publish(settings, data, Catalogue(), How(progress=False))
        print("published", flush=True)
    except PublishError as error:
        print(f"refused {str(error)}", flush=True)
print(json.dumps([path.name for path in (root / "snapshots").iterdir() if path.name.startswith(".")]))
"""


def test_flipped_bytes_anywhere_end_in_a_snapshot_or_a_refusal_by_name(tmp_path: Path) -> None:
    bases = tmp_path / "bases"
    bases.mkdir()
    table = pa.table(
        {
            "id": list(range(300)),
            "shop": [("north", "south", "é")[i % 3] for i in range(300)],
            "tags": [[str(i), "x"] for i in range(300)],
            "deep": [{"a": i, "b": None if i % 2 else 1.5} for i in range(300)],
        }
    )
    pq.write_table(table, bases / "1.parquet", row_group_size=100)
    pq.write_table(table, bases / "2.parquet", compression="zstd", data_page_version="2.0", write_page_index=True)
    plain = {"compression": "none", "use_dictionary": False, "column_encoding": {"id": "DELTA_BINARY_PACKED"}}
    pq.write_table(table, bases / "3.parquet", **plain)
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, str(tmp_path), str(FUZZED_FILES)],
        env={**os.environ},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    told = done.stdout.splitlines()
    assert done.returncode == 0, (told[-1:], done.stderr[-2000:])
    outcomes = [line.partition(" ")[2] for line in told[:-1]]
    bad = tmp_path / "data" / "bad.parquet"
    odd = [line for line in outcomes if line != "published" and not line.startswith(f"refused {bad}: ")]
    assert odd == []
    assert len(outcomes) == FUZZED_FILES and any(line != "published" for line in outcomes)
    assert json.loads(told[-1]) == [".publish.lock"]
