"""The audit log: who ran what on which data, as JSON lines in a file of its own.

Written a few lines at a time, soon, and whole at shutdown. A file that cannot be written never
stops an answer: the loss is counted (`bi_audit_lines_lost_total`) and alerted on.
"""

from __future__ import annotations

import logging
import logging.handlers
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import ConfigurationError
from .lines import Lines
from .metrics import Metrics

logger = logging.getLogger(__name__)

_OF_THE_REQUEST = ("time", "request_id", "client", "key", "role", "policy", "method", "endpoint", "status", "code")
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
_MEMBERS = (*_OF_THE_REQUEST, *_OF_THE_QUERY)
_ABSENT = object()


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
        self._lines = Lines(self._append)
        self._metrics = metrics

    def __call__(self, fields: Mapping[str, Any]) -> None:
        """Add a line (event loop only)."""
        self._lines({name: value for name in _MEMBERS if (value := fields.get(name, _ABSENT)) is not _ABSENT})

    def _append(self, text: bytearray, count: int) -> None:
        self._file.failed = False
        # The handler ends the last line.
        self._file.handle(logging.LogRecord("audit", logging.INFO, "", 0, text[:-1].decode(), None, None))
        if self._file.failed:
            self._metrics.audit_lines_lost.inc(count)
            logger.error("audit lines lost", extra={"fields": {"lines": count, "file": self._file.baseFilename}})

    def close(self) -> None:
        """Write the rest and let the file go."""
        self._lines.flush()
        self._file.close()
