"""`bi-query serve | check`, the publish side's commands, and their errors: the command line."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from types import FrameType

import uvicorn

from . import __version__, cli_publish, keys_cli
from .app import create_app
from .catalogue import Catalogue, CatalogueError, load_catalogue
from .catalogue_dir import catalogue_dir
from .check import check_queries
from .departure import Departure
from .errors import BiQueryError, ConfigurationError
from .http_protocol import impatient, keep_little_in_the_kernel
from .inputs import inputs
from .memory_bound import bound_memory
from .publish import How, publish
from .settings import Settings, load_settings, unknown_settings
from .snapshot_files import read_pointer
from .telemetry import configure_logging

_EXIT_FAILED = 1
_EXIT_USAGE = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 done, 1 failed with a message, 2 wrong usage."""
    arguments = _parser().parse_args(argv)
    try:
        for sentence in unknown_settings(os.environ):
            print(f"bi-query: warning: {sentence}", file=sys.stderr)
        settings = load_settings()
        code: int = arguments.run(settings, arguments)
    except CatalogueError as error:
        print(f"bi-query: the catalogue has {len(error.problems)} problem(s):\n{error}", file=sys.stderr)
        return _EXIT_FAILED
    except BiQueryError as error:
        print(f"bi-query: {error}", file=sys.stderr)
        return _EXIT_FAILED
    except KeyboardInterrupt:
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bi-query", description="Governed, cached SQL over HTTP on Parquet files.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    cli_publish.add_commands(commands)
    serving = commands.add_parser("serve", help="answer queries over HTTP on the current snapshot")
    serving.set_defaults(run=_serve)
    checking = commands.add_parser("check", help="validate the catalogue; run each named query on the snapshot")
    checking.add_argument("--no-run", action="store_true", help="do not run the queries")
    checking.set_defaults(run=_check)
    keys_cli.add_to(commands)
    return parser


def _check(settings: Settings, arguments: argparse.Namespace) -> int:
    given = inputs(settings)
    catalogue = load_catalogue(given.catalogue_dir)
    if arguments.no_run:
        problems = []
    elif read_pointer(settings.snapshot_dir) is None:
        with tempfile.TemporaryDirectory() as scratch:
            scratch_settings = settings.model_copy(update={"snapshot_dir": Path(scratch)})
            print("no snapshot yet: publishing into a scratch folder to run the queries on", flush=True)
            publish(scratch_settings, given.data_dir, catalogue, How(progress=False))
            problems = asyncio.run(check_queries(scratch_settings, catalogue))
    else:
        problems = asyncio.run(check_queries(settings, catalogue))
    for problem in problems:
        print(problem)
    if problems:
        return _EXIT_FAILED
    place = given.catalogue_dir or "no catalogue"
    print(f"{place}: {len(catalogue.models)} models and {len(catalogue.queries)} queries are fine")
    return 0


def _serve(settings: Settings, _: argparse.Namespace) -> int:
    configure_logging(settings.log_level)
    _refuse_open_door(settings)
    bound_memory()
    pointer = read_pointer(settings.snapshot_dir)
    if pointer is None:
        raise BiQueryError(f"nothing is published in {settings.snapshot_dir} yet; run `bi-query publish` first")
    catalogue = load_catalogue(catalogue_dir(settings, pointer.is_demo))
    departure = Departure()
    server = _Server(
        uvicorn.Config(
            create_app(settings, catalogue, departure),
            host=settings.host,
            port=settings.port,
            loop="uvloop",
            http=impatient(settings.send_timeout_seconds),
            ws="none",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=int(settings.shutdown_grace_seconds) + 5,
        ),
        catalogue,
        departure,
        settings.drain_seconds,
    )
    # uvicorn stops gracefully and then raises the signal anew, for whoever handled it before: us, who say it went well.
    signal.signal(signal.SIGTERM, _exit_well)
    try:
        server.run()
    except SystemExit as stopped:
        if stopped.code:
            print(f"bi-query: cannot serve on {settings.host}:{settings.port}; the log above says why", file=sys.stderr)
            return _EXIT_FAILED
        return 0
    return 0 if server.started else _EXIT_FAILED


def _refuse_open_door(settings: Settings) -> None:
    """Without keys everybody who reaches the port may read everything: that port must be this machine's own."""
    if settings.keys_file is None and not is_loopback(settings.host):
        raise ConfigurationError(
            f"BI_HOST={settings.host} is reachable from other machines, and no API keys are asked for: set BI_KEYS_FILE"
            " to a file and make a key with `bi-query keys add NAME`, or bind to 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`; a name is looked up."""
    try:
        found = socket.getaddrinfo(host, None)
    except OSError:
        return False
    return all(ip_address(str(entry[4][0]).partition("%")[0]).is_loopback for entry in found)


def _exit_well(*_: object) -> None:
    raise SystemExit(0)


class _Server(uvicorn.Server):
    """Says, once it listens, where to look and what to type; and when told to stop, first says so to those who ask."""

    def __init__(
        self, config: uvicorn.Config, catalogue: Catalogue, departure: Departure, drain_seconds: float
    ) -> None:
        super().__init__(config)
        self._catalogue = catalogue
        self._created = time.perf_counter()
        self._departure = departure
        self._drain_seconds = drain_seconds
        self._leave_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first SIGTERM starts the drain; a second one, or any other signal, ends it at once."""
        if sig == signal.SIGTERM and self._drain_seconds > 0 and self._leave_at is None:
            self._leave_at = time.monotonic() + self._drain_seconds
            self._departure.announce()
            return
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: is the drain over?"""
        if self._leave_at is not None and not self.should_exit and time.monotonic() >= self._leave_at:
            super().handle_exit(signal.SIGTERM, None)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening; what is in progress has its grace from now on."""
        self._departure.begin()
        await super().shutdown(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then print the addresses."""
        await super().startup(sockets)
        if not self.started or not self.servers:
            return
        for server in self.servers:
            keep_little_in_the_kernel(server.sockets)
        port = self.servers[0].sockets[0].getsockname()[1]
        host = "127.0.0.1" if self.config.host in ("0.0.0.0", "::") else self.config.host  # noqa: S104 - compared only
        base = f"http://{host}:{port}"
        example = (
            "/api/v1/queries/top_products?limit=3" if "top_products" in self._catalogue.queries else "/api/v1/tables"
        )
        print(
            f"ready in {time.perf_counter() - self._created:.1f} s\n"
            f"  API docs   {base}/docs\n  queries    {base}/api/v1/queries\n  tables     {base}/api/v1/tables\n"
            f"  metrics    {base}/metrics\ntry:\n  curl '{base}{example}'",
            file=sys.stderr,
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
