"""Files of strangers: opened without waiting, and judged before the engine reads their rows.

**Threat.** Who may write into the data folder may be somebody else than who runs the publisher. A file there may be no
Parquet, lie about itself, or be made to take all of the memory or time of who reads it: a list nested 28 deep, in a file of
a kilobyte, keeps DuckDB 2.0 busy for minutes and deaf to interrupts, and each level more doubles that; a footer that claims
ten million columns takes 4 GB before it is found to be cut off (the process's own bound on memory ends that one).
"""

from __future__ import annotations

import re
from pathlib import Path

import duckdb

from .engine_errors import OUT_OF_MEMORY
from .errors import PublishError, ShortOfMemory
from .lines import cause
from .regular_files import open_file

_MAGIC = b"PAR1"
_ENCRYPTED_MAGIC = b"PARE"
_SMALLEST_BYTES = 12
_MAX_LEAVES = 10_000
_MAX_LISTS = 16
_MAX_DEPTH = 100
_LOOK_FOR_DAMAGE_MS = 60_000
_PATTERN = re.compile(r"[*?\[]")
_SCHEMA = "SELECT repetition_type = 'REPEATED', coalesce(num_children, 0) FROM parquet_schema($path)"


def engine_path(path: Path) -> str:
    """`path` as the engine takes it: it reads patterns, so what would be one stands for itself."""
    return _PATTERN.sub(r"[\g<0>]", str(path))


def is_whole(path: Path) -> bool:
    """Whether a file begins and ends as Parquet does: a writer puts the end there last. Raises `OSError`."""
    head, tail, _ = _ends(path)
    return head == tail == _MAGIC


def _ends(path: Path) -> tuple[bytes, bytes, bool]:
    """The first and the last four bytes (empty for a file that is too short), and whether the footer named there fits."""
    with open_file(path) as file:
        head = file.read(4)
        size = file.seek(0, 2)
        if size < _SMALLEST_BYTES:
            return b"", b"", False
        file.seek(size - 8)
        length, tail = file.read(4), file.read(4)
    return head, tail, int.from_bytes(length, "little") <= size - _SMALLEST_BYTES


def check_parquet(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Refuse, by name, a file that is empty, half written, encrypted, or has a footer that is unreadable or hostile."""
    try:
        head, tail, is_footer_there = _ends(path)
        size = path.stat().st_size
    except OSError as error:
        raise PublishError(f"{path}: cannot be read: {error.strerror}") from error
    if _ENCRYPTED_MAGIC in (head, tail):
        raise PublishError(f"{path}: is encrypted Parquet, which is not read; put a decrypted file there")
    if (head, tail) != (_MAGIC, _MAGIC):
        raise PublishError(
            f"{path}: not a complete Parquet file ({size:,} bytes): still being written, cut off or another format"
        )
    if not is_footer_there:
        raise PublishError(f"{path}: its Parquet footer is said to be longer than the file")
    try:
        nodes = connection.execute(_SCHEMA, {"path": engine_path(path)}).fetchall()
    except (duckdb.Error, MemoryError) as error:
        raised = ShortOfMemory if isinstance(error, OUT_OF_MEMORY) else PublishError
        raise raised(f"{path}: its Parquet footer cannot be read: {cause(error)}") from error
    _check_schema(path, nodes)


def _check_schema(path: Path, nodes: list[tuple[bool | None, int]]) -> None:
    """Bounds on a schema: its nodes in the order of the file, each before its children."""
    leaves, open_nodes = 0, [[0, 1]]  # lists on the way here, children still to come
    for is_list, children in nodes:
        while open_nodes and open_nodes[-1][1] == 0:
            open_nodes.pop()
        if not open_nodes:
            raise PublishError(f"{path}: its Parquet footer cannot be read: its schema has columns that belong nowhere")
        open_nodes[-1][1] -= 1
        lists = open_nodes[-1][0] + bool(is_list)
        if children:
            open_nodes.append([lists, children])
        leaves += not children
        if lists > _MAX_LISTS or len(open_nodes) > _MAX_DEPTH:
            raise PublishError(f"{path}: a column is nested deeper than {_MAX_LISTS} lists or {_MAX_DEPTH} levels")
        if leaves > _MAX_LEAVES:
            raise PublishError(f"{path}: has more than {_MAX_LEAVES:,} columns")


def find_damaged(paths: tuple[Path, ...], memory_bytes: int) -> Path | None:
    """The first file that cannot be read by itself; None when each of them can, or when looking takes too long.

    One for which there is no memory now may be as good as any other.
    """
    # Connections of its own: some errors of the engine close the whole database they happened in.
    for path in paths:
        with duckdb.connect(config={"memory_limit": f"{memory_bytes}B"}) as connection:
            connection.execute(f"SET GLOBAL max_execution_time = {_LOOK_FOR_DAMAGE_MS}")
            try:
                connection.execute("SELECT max(hash(t)) FROM read_parquet($path) t", {"path": engine_path(path)})
                connection.fetchall()
            except duckdb.InterruptException:
                return None
            except OUT_OF_MEMORY:
                continue
            except duckdb.Error:
                return path
    return None
