"""`make bench`: this service beside its ceilings, DuckDB alone, the brief's own design and peers, in one run.

    python -m loadtest.bench [--quick] [--out FOLDER] [--without-peers]

Same machine, same data, same questions, interleaved rounds; medians and ratios. See docs/performance.md.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from bi_query.catalogue import Catalogue, CatalogueError, load_catalogue
from bi_query.errors import ConfigurationError
from bi_query.inputs import inputs
from bi_query.settings import available_cpus, load_settings
from bi_query.snapshot_files import read_pointer, snapshot_path

from . import report, rounds
from .given import Given, export
from .measure import DuckDBAlone
from .portable_sql import KINDS
from .rounds import FULL, QUICK, Size, say
from .systems.base import PEERS_BIN, System
from .systems.brief import Brief
from .systems.ceilings import Ceiling
from .systems.datasette import Datasette, DatasetteParquet
from .systems.roapi import Roapi
from .systems.service import ThisService

HERE = Path(__file__).parent
PEERS: tuple[Callable[[Path, Given], System], ...] = (Brief, Roapi, Datasette, DatasetteParquet)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write; 0 when everything was measured, whatever came out, 2 when it cannot run here."""
    options = _options(arguments)
    try:
        settings = load_settings()
        pointer = read_pointer(settings.snapshot_dir)
        catalogue = load_catalogue(inputs(settings).catalogue_dir)
    except (ConfigurationError, CatalogueError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    problem = _problem(pointer is not None, set(KINDS) <= catalogue.queries.keys(), options.without_peers)
    if problem or pointer is None:
        print(f"bench: {problem}", file=sys.stderr)
        return 2
    snapshot = snapshot_path(settings.snapshot_dir, pointer.snapshot_id)
    size = QUICK if options.quick else FULL
    out = options.out or (HERE.parent / "reports" / "bench-quick" if options.quick else HERE)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        peers = () if options.without_peers else PEERS
        document = _measure(stack, folder, settings.snapshot_dir, snapshot, catalogue, size, peers)
    document["method"]["quick"] = options.quick
    out.mkdir(parents=True, exist_ok=True)
    report.write(document, out)
    print((out / "RESULTS.md").read_text())
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.bench", description="Benchmark against ceilings and peers."
    )
    parser.add_argument(
        "--quick", action="store_true", help="two rounds of a second each: a check that all of it works"
    )
    parser.add_argument(
        "--out", type=Path, help="where results.json and RESULTS.md go (default: here; --quick: loadtest/reports)"
    )
    parser.add_argument("--without-peers", action="store_true", help="without the brief's design, ROAPI and Datasette")
    return parser.parse_args(arguments)


def _problem(is_published: bool, is_demo: bool, without_peers: bool) -> str | None:
    if shutil.which("wrk") is None:
        return "wrk is needed; on Debian and Ubuntu: apt-get install wrk"
    if shutil.which("redis-server") is None:
        return "redis-server is needed; on Debian and Ubuntu: apt-get install redis-server"
    if not is_published:
        return "nothing is published; run `make publish` first"
    if not is_demo:
        return "it asks the demo's queries of the demo's data; unset BI_CATALOGUE_DIR and BI_DATA_DIR"
    if not without_peers and not (PEERS_BIN / "roapi").exists():
        return "the peers are not installed; `make bench` installs them in .venv-bench, or run --without-peers"
    return None


def _measure(
    stack: contextlib.ExitStack,
    folder: Path,
    snapshot_dir: Path,
    snapshot: Path,
    catalogue: Catalogue,
    size: Size,
    peer_classes: Sequence[Callable[[Path, Given], System]],
) -> report.Document:
    def started(system: System) -> System:
        say(f"starting {system.name}")
        stack.callback(system.stop)
        system.start()
        return system

    hits, misses = (ThisService(folder, snapshot_dir, name=name) for name in ("hit", "service"))
    from_redis = ThisService(folder, snapshot_dir, name="hit_redis", memory_bytes=0)
    for service in (hits, misses, from_redis):
        started(service)
    body = hits.body(rounds.hit_questions()[0])
    ceilings = [started(Ceiling(folder, name, body)) for name in ("fastapi", "asgi")]
    peers: list[System] = []
    if peer_classes:
        say("exporting the models for the peers (once for each snapshot)")
        given = export(snapshot.resolve(), (snapshot_dir.parent / "bench").resolve())
        peers = [started(peer(folder, given)) for peer in peer_classes]
    compared = rounds.check(misses, peers, size)
    say(f"the same numbers from everyone on {compared} questions" if peers else "no peers to compare answers with")
    for service in (hits, from_redis):
        rounds.warm(service, body)
    alone = DuckDBAlone(snapshot)
    stack.callback(alone.close)
    rows = [
        *rounds.hit_rows(size, folder, [hits, from_redis, *ceilings]),
        *rounds.miss_rows(size, folder, misses, alone, catalogue, available_cpus()),
        *rounds.mixed_rows(size, folder, [misses, *peers]),
    ]
    measured = rounds.run(rows, size)
    return report.document(rows, measured, size, compared, len(body), [misses, from_redis, *ceilings, *peers])


if __name__ == "__main__":
    sys.exit(main())
