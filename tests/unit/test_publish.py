"""Publishing: what becomes a table, what the id says, and that no failure touches what is served."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest
from bi_query import build
from bi_query import publish as publish_module
from bi_query.errors import PublishError, ShortOfMemory
from bi_query.inputs import inputs
from bi_query.parquet_files import find_damaged
from bi_query.publish import How, Published
from bi_query.settings import load_settings
from bi_query.snapshot_files import read_pointer, snapshot_path
from bi_query.sources import Source, discover

from tests.support.service import wait_until
from tests.support.small import Small, make_small


def write_parquet(path: Path, select: str = "select 1 as n", options: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    duckdb.sql(f"copy ({select}) to '{path}' (format parquet{options})")
    return path


def table(small: Small, sql: str) -> list[tuple[Any, ...]]:
    """Rows from the current snapshot's file."""
    pointer = read_pointer(small.snapshots)
    assert pointer is not None
    with duckdb.connect(str(snapshot_path(small.snapshots, pointer.snapshot_id)), read_only=True) as connection:
        return connection.execute(sql).fetchall()


def visible_state(small: Small) -> dict[str, bytes]:
    """What readers can see: pointer and snapshots, by content."""
    return {path.name: path.read_bytes() for path in small.snapshots.iterdir() if path.suffix in (".duckdb", ".json")}


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".") and path.name != ".publish.lock"]


def status(small: Small) -> dict[str, Any]:
    return json.loads((small.snapshots / "publish.json").read_text())


# --- what becomes a table


def test_each_file_and_each_folder_of_files_is_a_table_named_by_its_stem(small: Small) -> None:
    write_parquet(small.data / "Parts.PARQUET", "select 5 as p")
    write_parquet(small.data / "events" / "a.parquet", "select 1 as n")
    write_parquet(small.data / "events" / "deep" / "b.parquet", "select 2 as n, 'x' as extra")
    write_parquet(small.data / "spark.parquet" / "part-0.parquet", "select 3 as s")
    relations = small.publish().relations
    assert set(relations) == {"sales", "versions", "sales_by_shop", "Parts", "events", "spark"}
    assert table(small, "select n, extra from events order by n") == [(1, None), (2, "x")]


def test_hive_partitions_become_columns(small: Small) -> None:
    for year in (2016, 2017):
        write_parquet(small.data / "orders" / f"year={year}" / "data.parquet", f"select {year} * 10 as amount")
    small.publish()
    assert table(small, "select year, amount from orders order by 1") == [(2016, 20160), (2017, 20170)]


def test_hidden_files_and_those_a_writer_keeps_for_itself_are_left_out(small: Small) -> None:
    for name in (".hidden.parquet", "_SUCCESS.parquet", "_temporary/x.parquet", ".tmp/x.parquet", "notes.txt"):
        path = small.data / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"not parquet")
    write_parquet(small.data / "events" / "good.parquet")
    for name in ("_temporary/0/half.parquet", ".staging/half.parquet", "_half.parquet"):
        path = small.data / "events" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    assert {source.table for source in discover(small.data)} == {"sales", "versions", "events"}
    small.publish()
    assert table(small, "select count(*) from events") == [(1,)]


def test_two_sources_of_one_name_are_refused_by_both_their_names(small: Small) -> None:
    write_parquet(small.data / "SALES" / "a.parquet")
    with pytest.raises(PublishError, match=r"SALES and .*sales\.parquet|sales\.parquet and .*SALES"):
        small.publish()


def test_a_model_named_like_a_data_table_is_refused_with_its_file(small: Small) -> None:
    (small.data / "sales.parquet").rename(small.data / "Sales.parquet")
    (small.catalogue / "models" / "sales.sql").write_text("select 1")
    with pytest.raises(PublishError, match=r"models/sales\.sql:1: .*name of a data table"):
        small.publish()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda data: None, "does not exist"),
        (lambda data: data.mkdir(), "holds no Parquet"),
        (lambda data: data.write_text("x"), "does not exist"),
        (lambda data: (data / "empty").mkdir(parents=True), "holds no Parquet"),
    ],
)
def test_a_data_folder_with_nothing_in_it_says_what_to_do(
    small: Small, make: Callable[[Path], None], said: str
) -> None:
    shutil.rmtree(small.data)
    make(small.data)
    before = visible_state(small)
    with pytest.raises(PublishError, match=said) as caught:
        small.publish()
    assert str(small.data) in str(caught.value)
    assert {**visible_state(small), "publish.json": b""} == {**before, "publish.json": b""}


# --- the id


def test_publishing_twice_does_nothing(small: Small) -> None:
    before = visible_state(small)
    again = small.publish()
    assert not again.changed
    after = visible_state(small)
    del before["publish.json"], after["publish.json"]
    assert after == before


def test_the_id_follows_content_not_times_or_places(small: Small, tmp_path: Path) -> None:
    first = small.publish().snapshot_id
    os.utime(small.data / "sales.parquet", (1, 1))
    assert small.publish().snapshot_id == first
    elsewhere = Small(tmp_path / "other")
    shutil.copytree(small.data, elsewhere.data)
    shutil.copytree(small.catalogue, elsewhere.catalogue)
    assert elsewhere.publish().snapshot_id == first


def _one_byte(small: Small) -> None:
    file = small.data / "versions.parquet"
    content, stat = file.read_bytes(), file.stat()
    file.write_bytes(content.replace(b"DuckDB", b"duckDB", 1))
    assert file.stat().st_size == stat.st_size
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as fast as two writes within one tick of the clock


def _model(text: str) -> Callable[[Small], None]:
    return lambda small: (small.catalogue / "models" / "sales_by_shop.sql").write_text(text) and None


@pytest.mark.parametrize(
    "change",
    [
        _one_byte,
        _model("select shop, sum(amount) + 0 as amount from sales group by shop"),
        _model("/*---\ndescription: d\n---*/\nselect shop, sum(amount) as amount from sales group by shop"),
        _model("/*---\nmaterialized: view\n---*/\nselect shop, sum(amount) as amount from sales group by shop"),
        lambda small: (small.data / "versions.parquet").rename(small.data / "editions.parquet") and None,
        lambda small: (small.catalogue / "models" / "more.sql").write_text("select 1 as one") and None,
    ],
    ids=["one byte of data", "a model", "its description", "table to view", "a file's name", "a model more"],
)
def test_whatever_goes_in_changes_the_id(small: Small, change: Callable[[Small], None]) -> None:
    before = small.publish().snapshot_id
    change(small)
    after = small.publish()
    assert after.changed
    assert after.snapshot_id != before


def test_the_published_file_holds_its_manifest_and_cannot_be_written(small: Small) -> None:
    result = small.publish()
    relation = result.relations["sales"]
    assert (relation["kind"], relation["rows"]) == ("table", 1000)
    assert relation["columns"] == [
        {"name": "shop", "type": "VARCHAR"},
        {"name": "amount", "type": "BIGINT"},
        {"name": "day", "type": "DATE"},
    ]
    assert snapshot_path(small.snapshots, result.snapshot_id).stat().st_mode & 0o222 == 0


# --- bad files


def _pages(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[4 : len(content) // 2] = os.urandom(len(content) // 2 - 4)  # the footer stays as it is
    file.write_bytes(content)


def _lying_footer(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-8:-4] = (2**31 - 1).to_bytes(4, "little")
    file.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "random bytes in its pages": _pages,
    "cut off": lambda file: file.write_bytes(file.read_bytes()[:-200]),
    "half written": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "zero bytes": lambda file: file.write_bytes(b""),
    "a lying footer": _lying_footer,
    "a footer of rubbish": lambda file: file.write_bytes(b"PAR1" + os.urandom(400) + b"\x40\0\0\0PAR1"),
    "a text file": lambda file: file.write_text("shop,amount\nnorth,1\n"),
    "a dangling link": lambda file: (file.unlink(), file.symlink_to("/nowhere")),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("place", ["bad.parquet", "many/part-2.parquet"])
def test_a_bad_file_is_named_and_the_old_snapshot_stays(
    small: Small, damage: Callable[[Path], object], place: str
) -> None:
    if "/" in place:
        write_parquet(small.data / "many" / "part-1.parquet", "select i, i::varchar as t from range(5000) r(i)")
    bad = write_parquet(small.data / place, "select i, hash(i)::varchar as t from range(5000) r(i)")
    damage(bad)
    before = visible_state(small)
    with pytest.raises(PublishError) as caught:
        small.publish()
    assert str(bad) in str(caught.value)
    assert "\n" not in str(caught.value)
    after = visible_state(small)
    assert status(small)["ok"] is False
    assert str(bad) in status(small)["error"]
    for state in (before, after):
        del state["publish.json"]
        state.pop("fingerprints.json")
    assert after == before
    assert leftovers(small.snapshots) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_an_unreadable_file_is_named(small: Small) -> None:
    file = small.data / "sales.parquet"
    file.chmod(0)
    for folder in [small.root, *small.root.parents]:
        if folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(0o755)
    code = (
        "import os, sys\nfrom pathlib import Path\n"
        "from bi_query.errors import PublishError\nfrom bi_query.sources import Source, discover, fingerprint_files\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: fingerprint_files(discover(Path(sys.argv[1])), Path('/dev/null/x'), lambda n: None)\n"
        "except PublishError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(small.data)], check=False, capture_output=True, text=True, timeout=60
    )
    assert f"{file}: cannot be read: Permission denied" in done.stdout, done.stderr


# --- bad models


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("select 1 as a,\n  nope from sales", 2, "nope"),
        ("/*---\ndescription: x\n---*/\nselect cast(shop as integer)\nfrom sales", 4, "Could not convert"),
        ("select *\nfrom sales\njoin nowhere using (shop)", 3, "'nowhere'"),
        ("select *\nfrom\n  read_parquet('/etc/passwd')", 3, "data folder"),
        ("/*---\nmaterialized: view\n---*/\nfrom '/etc/x.parquet'", 4, "neither a table"),
    ],
)
def test_a_failing_model_is_named_with_its_line(small: Small, text: str, line: int, said: str) -> None:
    path = small.catalogue / "models" / "bad.sql"
    path.write_text(text)
    with pytest.raises(PublishError) as caught:
        small.publish()
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert said in str(caught.value)
    assert leftovers(small.snapshots) == []


def test_models_that_read_each_other_are_named_in_their_circle(small: Small) -> None:
    for name, reads in (("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")):
        (small.catalogue / "models" / f"{name}.sql").write_text(f"from {reads}")
    with pytest.raises(PublishError, match=r"circle: a -> b -> c -> a "):
        small.publish()


@pytest.mark.parametrize(
    "text",
    [
        "select * from sales join sales_by_shop using (shop)",
        "from Sales natural join SALES_BY_SHOP",
        "pivot sales_by_shop on shop using sum(amount)",
        "with last as (from sales_by_shop) select (select max(amount) from last) as m",
        "with last as (select 1 as x) from last",
        "with sales as (from sales) from sales join sales_by_shop using (shop)",
        'from "odd name.v2" join sales_by_shop on true',
    ],
)
def test_models_run_after_what_they_read_in_any_spelling(small: Small, text: str) -> None:
    write_parquet(small.data / "odd name.v2.parquet")
    (small.catalogue / "models" / "last.sql").write_text(text)  # sorts before sales_by_shop
    assert "last" in small.publish().relations


# --- accidents


def test_a_full_disk_is_said_and_leaves_nothing(small: Small) -> None:
    before = visible_state(small)
    write_parquet(small.data / "wide.parquet", "select i, hash(i) as h, hash(i + 1) as k from range(300000) r(i)")
    code = (
        "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))\n"
        "from bi_query.cli import main\nraise SystemExit(main(['publish']))"
    )
    done = run_publisher(small, code)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("bi-query: ")
    assert "File too large" in done.stderr or "No space" in done.stderr or "write" in done.stderr.lower()
    assert "Traceback" not in done.stderr
    assert leftovers(small.snapshots) == []
    assert (small.snapshots / "current.json").read_bytes() == before["current.json"]
    assert small.publish().changed


def publisher_environment(small: Small) -> dict[str, str]:
    folders = {"BI_DATA_DIR": small.data, "BI_CATALOGUE_DIR": small.catalogue, "BI_SNAPSHOT_DIR": small.snapshots}
    return {**os.environ, **{name: str(path) for name, path in folders.items()}}


def run_publisher(small: Small, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=publisher_environment(small),
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def endless(small: Small) -> Small:
    """A deployment whose publish would take minutes."""
    (small.catalogue / "models" / "endless.sql").write_text(
        "select count(*) as n from range(10_000_000) a, range(100_000) b where (a.range + b.range) % 7 = 3"
    )
    return small


def start_publisher(small: Small) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "bi_query.cli", "publish"],
        env=publisher_environment(small),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: list(small.snapshots.glob(".*.building")), 30, what="a publish under way")
    return process


def test_a_killed_publish_is_never_served_and_cleaned_up_by_the_next(endless: Small) -> None:
    small, before = endless, visible_state(endless)
    process = start_publisher(small)
    process.kill()
    process.communicate(timeout=30)
    assert leftovers(small.snapshots) != []
    assert visible_state(small)["current.json"] == before["current.json"]
    assert {name for name in visible_state(small) if name.endswith(".duckdb")} == {
        name for name in before if name.endswith(".duckdb")
    }
    (small.catalogue / "models" / "endless.sql").unlink()
    assert not small.publish().changed
    assert leftovers(small.snapshots) == []


def test_an_interrupted_publish_stops_at_once_and_leaves_nothing(endless: Small) -> None:
    process = start_publisher(endless)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert leftovers(endless.snapshots) == []


def test_of_two_publishes_at_once_one_is_refused_and_spoils_nothing(endless: Small) -> None:
    process = start_publisher(endless)
    try:
        with pytest.raises(PublishError, match="another publish is running"):
            endless.publish()
        assert status(endless)["ok"] is True, "the refusal says nothing about the data"
        assert list(endless.snapshots.glob(".*.building")), "the first one's work is left alone"
    finally:
        process.kill()
        process.communicate(timeout=30)


@pytest.mark.parametrize("moment", ["fingerprint_files", "build"])
def test_data_that_changes_while_it_is_published_is_noticed(
    small: Small, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    before = visible_state(small)["current.json"]
    write_parquet(small.data / "moving.parquet", "select 1 as n")
    original = getattr(publish_module, moment)

    def meanwhile(*arguments: Any) -> Any:
        done = original(*arguments) if moment == "fingerprint_files" else None
        write_parquet(small.data / "moving.parquet", "select 22222 as other")
        return done if moment == "fingerprint_files" else original(*arguments)

    monkeypatch.setattr(publish_module, moment, meanwhile)
    with pytest.raises(PublishError, match=r"moving\.parquet: changed while it was being published"):
        small.publish()
    assert visible_state(small)["current.json"] == before
    assert leftovers(small.snapshots) == []


def test_a_damaged_snapshot_of_the_same_data_is_made_anew(small: Small) -> None:
    result = small.publish()
    path = snapshot_path(small.snapshots, result.snapshot_id)
    path.chmod(0o644)
    path.write_bytes(b"rubbish")
    again = small.publish()
    assert again.changed
    assert again.snapshot_id == result.snapshot_id
    assert table(small, "select count(*) from sales") == [(1000,)]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"snapshot_id": "../x", "published_at": 1}', b"\xff\xfe"])
def test_a_damaged_pointer_is_replaced_by_the_next_publish(small: Small, content: bytes) -> None:
    (small.snapshots / "current.json").write_bytes(content)
    result = small.publish()
    assert result.changed
    pointer = read_pointer(small.snapshots)
    assert pointer is not None
    assert pointer.snapshot_id == result.snapshot_id


# --- keeping


def test_pruning_keeps_the_youngest_and_never_the_wrong_ones(small: Small) -> None:
    foreign = small.snapshots / "my-own.duckdb"
    foreign.write_bytes(b"a user's file")
    os.utime(foreign, (1, 1))
    published: list[Published] = [small.publish(version, snapshots_kept=3) for version in range(2, 7)]
    names = {path.stem for path in small.snapshots.glob("*.duckdb")}
    assert names == {result.snapshot_id for result in published[-3:]} | {"my-own"}
    small.publish(snapshots_kept=1)
    assert {path.stem for path in small.snapshots.glob("*.duckdb")} == {published[-1].snapshot_id, "my-own"}


def test_going_back_to_old_data_reuses_its_snapshot_and_keeps_it(small: Small) -> None:
    first = small.publish(1).snapshot_id
    small.publish(2)
    written_at = snapshot_path(small.snapshots, first).stat().st_mtime_ns
    back = small.publish(1, snapshots_kept=1)
    assert (back.snapshot_id, back.changed) == (first, True)
    assert snapshot_path(small.snapshots, first).stat().st_mtime_ns == written_at


def test_the_status_file_tells_success_from_failure_and_remembers_the_last_success(small: Small) -> None:
    good = status(small)
    assert good["ok"] is True
    assert good["error"] is None
    assert good["succeeded_at"] >= good["attempted_at"]
    (small.data / "sales.parquet").write_bytes(b"")
    with pytest.raises(PublishError):
        small.publish()
    bad = status(small)
    assert bad["ok"] is False
    assert bad["succeeded_at"] == good["succeeded_at"]
    assert bad["attempted_at"] > good["attempted_at"]


def test_a_snapshot_folder_that_cannot_be_made_is_named(small: Small, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PublishError, match="file"):
        publish_module.publish(
            load_settings(snapshot_dir=tmp_path / "file" / "x"), small.data, small.load(), How(progress=False)
        )


def test_results_do_not_depend_on_how_many_cores_publish(tmp_path: Path) -> None:
    rows = []
    for cores in (1, 4):
        (tmp_path / str(cores)).mkdir()
        small = make_small(tmp_path / str(cores))
        small.publish(max_running_queries=cores)
        rows.append(table(small, "select shop, amount, (select count(*) from sales) from sales_by_shop order by 1"))
    assert rows[0] == rows[1]


def test_after_one_that_found_no_memory_beside_others_the_rest_are_loaded_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = make_small(tmp_path)
    for name in "abcdefgh":
        write_parquet(small.data / f"{name}.parquet")
    load, wait, lock = build._load, build.wait, threading.Lock()
    active: set[str] = set()
    raised, noticed, after = threading.Event(), threading.Event(), list[tuple[str, int]]()

    def loading(cursor: build.Cursor, source: Source, memory_bytes: int) -> None:
        with lock:
            active.add(source.table)
            if raised.is_set():
                after.append((source.table, len(active)))
        try:
            if not raised.is_set():
                wait_until(lambda: len(active) > 1 or raised.is_set(), what="another table beside it")
                if source.table == "a":
                    raised.set()
                    raise ShortOfMemory("no memory for a")
                noticed.wait(30)
            load(cursor, source, memory_bytes)
        finally:
            with lock:
                active.remove(source.table)

    def waiting(*arguments: Any, **how: Any) -> Any:
        ended = wait(*arguments, **how)
        if any(future.exception() for future in ended.done):
            noticed.set()
        return ended

    monkeypatch.setattr("bi_query.settings.available_cpus", lambda: 4)
    monkeypatch.setattr(build, "_load", loading)
    monkeypatch.setattr(build, "wait", waiting)
    small.publish(max_running_queries=4)
    assert [beside for _, beside in after] == [1] * len(after), after
    assert after[0][0] == "a" and len(after) >= 5
    assert table(small, "select n from a") == table(small, "select n from h") == [(1,)]


def test_a_file_for_which_there_is_no_memory_is_not_blamed_for_another(tmp_path: Path) -> None:
    large, bad = tmp_path / "large.parquet", tmp_path / "bad.parquet"
    with duckdb.connect() as connection:
        rows = "select repeat(md5(i::varchar), 1000) as text from range(2000) r(i)"
        connection.execute(f"copy ({rows}) to '{large}' (row_group_size 2000, compression uncompressed)")
        connection.execute(f"copy (select 1 as n) to '{bad}'")
    content = bytearray(bad.read_bytes())
    content[4:12] = b"\xff" * 8
    bad.write_bytes(content)
    little, enough = 2_000_000, 1_000_000_000
    assert find_damaged((large,), little) is None
    assert find_damaged((large, bad), little) == bad
    assert find_damaged((large, bad), enough) == bad


def test_what_is_a_writers_own_is_no_data(small: Small) -> None:
    folder = small.root / "others"
    for name in (".hidden.parquet", "_draft.parquet", "_staging/part.parquet", ".trash/old.parquet"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(small.data / "versions.parquet", folder / name)
    settings = load_settings(data_dir=folder, snapshot_dir=small.root / "none", demo_when_empty=True)
    assert inputs(settings).is_demo
    (folder / "_draft.parquet").rename(folder / "draft.parquet")
    assert not inputs(settings).is_demo
