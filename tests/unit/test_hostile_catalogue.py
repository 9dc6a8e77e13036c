"""Hostile catalogue files: `bi-query check` says file and line, in a moment, and never how it is made inside."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from bi_query.cli import main

from tests.support.small import Small, make_small

MIB = 1024 * 1024
MEMORY_BYTES = 400 * MIB
"""What `check --no-run` may take; it takes a quarter of that for a good catalogue."""
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
ENDLESS = "title: T\nfreshness: &x [*x]\n"


@pytest.fixture
def small(tmp_path: Path) -> Small:
    return make_small(tmp_path)


def environment(small: Small) -> dict[str, str]:
    folders = {"BI_DATA_DIR": small.data, "BI_CATALOGUE_DIR": small.catalogue, "BI_SNAPSHOT_DIR": small.snapshots}
    return {name: str(path) for name, path in folders.items()}


@pytest.fixture
def check(
    small: Small, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """`bi-query check` in this process: its exit code, standard output and standard error."""
    for name, value in environment(small).items():
        monkeypatch.setenv(name, value)

    def run(*words: str) -> tuple[int, str, str]:
        code = main(["check", *words])
        return code, *capsys.readouterr()

    return run


def query(header: str, sql: str = "select 1 as one") -> str:
    return f"/*---\n{header}\n---*/\n{sql}\n"


GOOD = "title: T\nfreshness: quick"
Make = str | bytes | Callable[[Path], object]
Check = Callable[..., tuple[int, str, str]]

FILES: dict[str, tuple[str, Make, str, int, str]] = {
    "a billion laughs in front matter": (
        "queries/q.sql",
        query(GOOD + "\n" + LAUGHS),
        "queries/q.sql",
        5,
        "write it out",
    ),
    "a billion laughs in a model": ("models/q.sql", query(LAUGHS), "models/q.sql", 3, "write it out"),
    "a billion laughs in policies": ("policies.yaml", LAUGHS, "policies.yaml", 2, "write it out"),
    "a billion laughs in freshness": ("freshness.yaml", LAUGHS, "freshness.yaml", 2, "write it out"),
    "a document that holds itself": ("queries/q.sql", query(ENDLESS), "queries/q.sql", 3, "write it out"),
    "a python object": (
        "queries/q.sql",
        query('title: !!python/object/apply:os.system ["touch pwned"]\nfreshness: quick'),
        "queries/q.sql",
        2,
        "could not determine a constructor",
    ),
    "a python object in policies": (
        "policies.yaml",
        'shop:\n  rows: !!python/object/new:os.system ["touch pwned"]',
        "policies.yaml",
        2,
        "could not determine a constructor",
    ),
    "brackets without end": ("policies.yaml", "a: " + "[" * 100_000, "policies.yaml", 1, "nested too deeply"),
    "mappings within mappings": ("queries/q.sql", query("{a: " * 5000), "queries/q.sql", 2, "nested too deeply"),
    "a file of 300 KB": (
        "queries/q.sql",
        query(GOOD, "select 1 -- " + "x" * 300_000),
        "queries/q.sql",
        1,
        "larger than",
    ),
    "a file of 4 GB that takes no room": (
        "policies.yaml",
        lambda path: (path.touch(), os.truncate(path, 4 * 1024 * MIB)),
        "policies.yaml",
        1,
        "larger than",
    ),
    "ten thousand unknown keys": (
        "queries/q.sql",
        query(GOOD + "".join(f"\nk{i}: 1" for i in range(10_000))),
        "queries/q.sql",
        1,
        "9,980 faults more",
    ),
    "a number of 10,000 digits": (
        "freshness.yaml",
        f"quick: {{fresh_seconds: {'9' * 10_000}}}",
        "freshness.yaml",
        1,
        "",
    ),
    "bytes that are no UTF-8": (
        "queries/q.sql",
        b"/*---\ntitle: \xff\xfe\n---*/ select 1",
        "queries/q.sql",
        1,
        "utf-8",
    ),
    "a NUL in front matter": (
        "queries/q.sql",
        query("title: a\0b\nfreshness: quick"),
        "queries/q.sql",
        1,
        "not allowed",
    ),
    "a NUL in SQL": ("queries/q.sql", query(GOOD, "select\n 1\0 as a"), "queries/q.sql", 6, "syntax error"),
    "a named pipe": ("queries/q.sql", os.mkfifo, "queries/q.sql", 1, "not a regular file"),
    "a named pipe for policies": ("policies.yaml", os.mkfifo, "policies.yaml", 1, "not a regular file"),
    "a folder": ("queries/q.sql", Path.mkdir, "queries/q.sql", 1, "Is a directory"),
    "a device": (
        "policies.yaml",
        lambda path: path.symlink_to("/dev/zero"),
        "policies.yaml",
        1,
        "out of the catalogue",
    ),
    "a link out of the folder": (
        "queries/q.sql",
        lambda path: path.symlink_to("/etc/passwd"),
        "queries/q.sql",
        1,
        "out of the catalogue folder",
    ),
    "a link to itself": ("queries/q.sql", lambda path: path.symlink_to(path), "queries/q.sql", 1, ""),
    "a name that climbs": (
        "queries/..%2f..%2fetc.sql",
        query(GOOD),
        "queries/..%2f..%2fetc.sql",
        1,
        "becomes the name",
    ),
    "a name that forges a line": (
        "queries/q\nfine.sql:1: all is well\x1b[2J.sql",
        query(GOOD),
        "queries/q\\nfine.sql:1: all is well\\x1b[2J.sql",
        1,
        "becomes the name",
    ),
    "a name that is no UTF-8": (
        os.fsdecode(b"queries/\xff.sql"),
        query(GOOD),
        "queries/\\udcff.sql",
        1,
        "becomes the name",
    ),
    "no SELECT": ("queries/q.sql", query(GOOD, "attach '/etc/passwd' as x"), "queries/q.sql", 5, "exactly one SELECT"),
    "another COPY": (
        "queries/q.sql",
        query(GOOD, "copy (select 1) to '/tmp/x'"),
        "queries/q.sql",
        5,
        "exactly one SELECT",
    ),
    "SQL of 3,000 sub-queries": (
        "models/q.sql",
        "select * from\n(" * 3000 + "select 1" + ")" * 3000,
        "models/q.sql",
        66,
        "nested too deeply",
    ),
    "SQL of 20,000 brackets": (
        "queries/q.sql",
        query(GOOD, "select " + "(" * 20_000),
        "queries/q.sql",
        5,
        "nested too deeply",
    ),
}


def put(path: Path, make: Make) -> None:
    if path.is_symlink() or path.exists():
        path.unlink()
    if callable(make):
        make(path)
    else:
        path.write_bytes(make.encode() if isinstance(make, str) else make)


@pytest.mark.parametrize(("name", "make", "named", "line", "said"), FILES.values(), ids=FILES)
def test_a_hostile_file_is_named_with_its_line_in_a_moment(
    small: Small, check: Check, name: str, make: Make, named: str, line: int, said: str
) -> None:
    put(small.catalogue / name, make)
    code, out, err = check("--no-run")
    told = (out + err).splitlines()
    assert code == 1 and "Traceback" not in err
    assert any(text.startswith(f"{small.catalogue}/{named}:{line}: ") and said in text for text in told), told
    assert len(told) < 40
    assert not (Path.cwd() / "pwned").exists()


def test_all_of_them_at_once_take_little_memory_and_no_time(small: Small) -> None:
    for number, (name, make, *_) in enumerate(FILES.values()):
        stem, suffix = name.rsplit(".", 1)
        put(small.catalogue / (name if suffix == "yaml" else f"{stem}{number}.sql"), make)
    code = (
        f"import resource\nresource.setrlimit(resource.RLIMIT_DATA, ({MEMORY_BYTES}, {MEMORY_BYTES}))\n"
        "from bi_query.cli import main\nraise SystemExit(main(['check', '--no-run']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment(small)},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stderr[-2000:]
    assert b"problem(s):" in done.stderr and b"Traceback" not in done.stderr
    assert done.stderr.isascii() or done.stderr.decode()


@pytest.mark.parametrize(
    "sql",
    [
        "select * from read_parquet('/etc/passwd')",
        "from '/etc/passwd'",
        "select * from read_csv('/etc/passwd')",
        "select * from glob('/etc/*')",
        "select content from read_text('/etc/passwd')",
        "select * from read_blob('http://127.0.0.1:1/x')",
        "select count(*) as n from range(1000000000) a, range(1000000000) b",
    ],
)
def test_a_query_that_reaches_for_files_or_for_ever_fails_the_check_with_its_line(
    small: Small, check: Check, sql: str
) -> None:
    for path in (small.catalogue / "queries").glob("*.sql"):
        path.unlink()
    (small.catalogue / "queries" / "q.sql").write_text(query(GOOD + "\ntimeout_seconds: 0.5", sql))
    small.publish()
    code, out, err = check()
    assert (code, err) == (1, "")
    assert out.startswith(f"{small.catalogue}/queries/q.sql:6: "), out
    assert "root:" not in out


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ({"a": "from b", "b": "from a"}, "circle"),
        ({"a": "from a"}, "circle"),
        ({"a": "select " + "1 + " * 900 + "1"}, "models/a.sql:1: model 'a' is nested too deeply"),
        ({"a": "select content from read_text('/etc/passwd')"}, "models/a.sql:1: model 'a' failed"),
        ({"a": "from read_csv('/etc/*')"}, "models/a.sql:1: model 'a' failed"),
    ],
    ids=["each other", "itself", "deep", "a file", "files"],
)
def test_a_hostile_model_is_named_and_nothing_is_published(
    small: Small, check: Check, models: dict[str, str], said: str
) -> None:
    for name, sql in models.items():
        (small.catalogue / "models" / f"{name}.sql").write_text(sql)
    code, _, err = check()
    assert code == 1 and said in err
    assert "Traceback" not in err and "root:" not in err
    assert not small.snapshots.exists()
