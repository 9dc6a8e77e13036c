"""`bi-query publish | watch | snapshots | rollback`: the commands of the publish side."""

from __future__ import annotations

import argparse
import signal
import threading
import time
from types import FrameType
from typing import Any

from .catalogue import load_catalogue
from .errors import BiQueryError, ConfigurationError, PublishBusy
from .inputs import inputs
from .memory_bound import bound_publisher_memory
from .publish import How, Published, note_failure, publish
from .rollback import kept_snapshots, roll_back
from .settings import Settings
from .telemetry import configure_logging
from .watch import EXIT_BUSY, Watcher


def add_commands(commands: Any) -> None:
    """Add them to argparse's sub-commands; each sets `run(settings, arguments) -> exit code`."""
    publishing = commands.add_parser(
        "publish", help="Parquet -> models -> one immutable snapshot; then move the pointer"
    )
    publishing.add_argument("--quiet", action="store_true", help="no progress bars")
    publishing.add_argument(
        "--keep-rollback",
        action="store_true",
        help="publish nothing that was rolled back from, until its inputs change",
    )
    publishing.add_argument(
        "--wait-seconds", type=float, default=0.0, metavar="N", help="wait so long for another publish to end"
    )
    publishing.set_defaults(run=_publish)
    watching = commands.add_parser("watch", help="publish whenever data or catalogue have changed and are complete")
    watching.set_defaults(run=_watch)
    listing = commands.add_parser("snapshots", help="list the snapshots that are kept")
    listing.set_defaults(run=_snapshots)
    going_back = commands.add_parser("rollback", help="serve an earlier snapshot; replicas follow within seconds")
    going_back.add_argument(
        "snapshot_id", nargs="?", metavar="ID", help="as `bi-query snapshots` lists it; else the one before"
    )
    going_back.set_defaults(run=_rollback)


def _publish(settings: Settings, arguments: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, _as_interrupt)
    bound_publisher_memory()
    started = time.time()
    try:
        given = inputs(settings)
        catalogue = load_catalogue(given.catalogue_dir)
    except BiQueryError as error:
        _note(settings, error, started)
        raise
    print(f"publishing {given.data_dir} ({len(catalogue.models)} models) into {settings.snapshot_dir}", flush=True)
    how = How(
        progress=not arguments.quiet,
        is_demo=given.is_demo,
        keep_rollback=arguments.keep_rollback,
        lock_wait_seconds=arguments.wait_seconds,
    )
    try:
        print(summary(publish(settings, given.data_dir, catalogue, how)))
    except PublishBusy as error:
        print(f"bi-query: {error}", flush=True)
        return EXIT_BUSY
    return 0


def _note(settings: Settings, error: BiQueryError, started: float) -> None:
    """A catalogue that cannot be read is a publish that failed, too."""
    try:
        note_failure(settings.snapshot_dir, str(error), started)
    except (OSError, PublishBusy):
        return


def _as_interrupt(*_: object) -> None:
    """Stop as at Ctrl-C, which cleans up; process 1 of a container would ignore the signal otherwise."""
    raise KeyboardInterrupt


def summary(result: Published) -> str:
    """The outcome for people: a line a table, then totals."""
    if result.is_rollback_kept:
        return (
            f"rolled back to snapshot {result.snapshot_id}: it stays until the data or the models change "
            "(`bi-query publish` without --keep-rollback publishes all the same)"
        )
    if not result.changed:
        return f"nothing changed: snapshot {result.snapshot_id} is already published ({result.seconds:.1f} s)"
    width = max(map(len, result.relations))
    lines = []
    for name, relation in result.relations.items():
        columns = len(relation["columns"])  # type: ignore[arg-type]
        lines.append(f"  {name:<{width}}  {relation['rows']:>12,} rows  {columns:>3} columns  {relation['kind']}")
    rows = sum(int(relation["rows"]) for relation in result.relations.values())  # type: ignore[call-overload]
    total = f"{len(result.relations)} tables, {rows:,} rows, {result.file_bytes:,} bytes, {result.seconds:.1f} s"
    return "\n".join([*lines, f"published snapshot {result.snapshot_id}: {total}"])


def _watch(settings: Settings, _: argparse.Namespace) -> int:
    configure_logging(settings.log_level)
    if settings.publish_patience_seconds < settings.publish_settle_seconds:
        raise ConfigurationError("BI_PUBLISH_PATIENCE_SECONDS must not be below BI_PUBLISH_SETTLE_SECONDS")
    stop = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    Watcher(settings, stop).watch()
    return 0


def _snapshots(settings: Settings, _: argparse.Namespace) -> int:
    kept = kept_snapshots(settings.snapshot_dir) if settings.snapshot_dir.is_dir() else []
    if not kept:
        raise BiQueryError(f"nothing is published in {settings.snapshot_dir} yet; run `bi-query publish` first")
    for one in kept:
        when = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(one.published_at))
        mark = "current" if one.is_current else "rolled back from" if one.is_rolled_back else ""
        print(f"{one.snapshot_id}  published {when}  {one.file_bytes:>15,} bytes  {mark}".rstrip())
    return 0


def _rollback(settings: Settings, arguments: argparse.Namespace) -> int:
    target = roll_back(settings.snapshot_dir, arguments.snapshot_id)
    when = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(target.published_at))
    print(f"current is now snapshot {target.snapshot_id}, published {when}; replicas follow within seconds")
    return 0
