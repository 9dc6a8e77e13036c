"""The audit log: who ran what on which data, as JSON lines in a file of its own.

Written a few lines at a time, at most `_FLUSH_SECONDS` late and whole at shutdown. A file that cannot be written never
stops an answer: the loss is counted (`bi_audit_lines_lost_total`) and alerted on.
"""

from __future__ import annotations

import asyncio
import logging
import logging.handlers
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import ConfigurationError
from .lines import json_line
from .metrics import Metrics

logger = logging.getLogger(__name__)

_FLUSH_SECONDS = 0.1
_FLUSH_BYTES = 32_768
_MEMBERS = ("time", "request_id", "client", "key", "role", "policy", "method", "endpoint", "status", "code")
_OF_THE_QUERY = (
    "tool",
    "query",
    "sql",
    "params",
    "question",
    "tokens",
    "snapshot",
    "cache",
    "rows",
    "seconds",
    "bytes",
)


class _Rotating(logging.handlers.RotatingFileHandler):
    """Says when a write failed, where the base class prints."""

    failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the base class's name
        """Remember it."""
        self.failed = True


class AuditLog:
    """Appends to `path`, moving it to `path.1` … `path.N` as it grows beyond `max_bytes`."""

    def __init__(self, path: Path, max_bytes: int, kept: int, metrics: Metrics) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _Rotating(path, maxBytes=max_bytes, backupCount=kept, encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(f"BI_AUDIT_LOG: cannot write {path}: {error}") from error
        # One piece of memory, soon let go: hundreds of lines kept one by one cost more in page faults than in writing.
        self._text = bytearray()
        self._lines = 0
        self._metrics = metrics

    def __call__(self, fields: Mapping[str, Any]) -> None:
        """Add a line (event loop only)."""
        if not self._text:
            asyncio.get_running_loop().call_later(_FLUSH_SECONDS, self.flush)
        line = {name: fields[name] for name in (*_MEMBERS, *_OF_THE_QUERY) if name in fields}
        self._text += json_line(line) + b"\n"
        self._lines += 1
        if len(self._text) >= _FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what has gathered."""
        lines, self._lines = self._lines, 0
        if not lines:
            return
        text = self._text[:-1].decode()  # the handler ends it
        self._text.clear()
        self._file.failed = False
        self._file.handle(logging.LogRecord("audit", logging.INFO, "", 0, text, None, None))
        if self._file.failed:
            self._metrics.audit_lines_lost.inc(lines)
            logger.error("audit lines lost", extra={"fields": {"lines": lines, "file": self._file.baseFilename}})

    def close(self) -> None:
        """Write the rest and let the file go."""
        self.flush()
        self._file.close()
