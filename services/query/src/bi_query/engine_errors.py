"""What DuckDB raises, as what a client or the catalogue's author should see."""

from __future__ import annotations

import logging

import duckdb
import orjson

from .errors import BiQueryError, ProblemError, SqlRefused
from .metrics import AD_HOC

logger = logging.getLogger(__name__)

OUT_OF_MEMORY = (duckdb.OutOfMemoryException, MemoryError)
"""What a query that needs too much raises, and any other that runs beside it."""

_OF_THE_TEXT = (duckdb.BinderException, duckdb.CatalogException, duckdb.ParserException, duckdb.SyntaxException)
"""Raised before any row is read: their messages know the SQL and the schema, and no data but the values of ENUM types."""

_FROM_STREAM = "C Data interface error: "
_CLASSES = {
    "Out of Memory": duckdb.OutOfMemoryException,
    "IO": duckdb.IOException,
    "INTERRUPT": duckdb.InterruptException,
    "INTERNAL": duckdb.InternalException,
    "FATAL": duckdb.FatalException,
}


class QueryFailed(ProblemError):
    """500: a named query fails on this snapshot. `position` is a 0-based character offset into its SQL, None if unknown."""

    position: int | None = None


class ThreadPanicked(Exception):
    """Native code gave up in a worker thread: what it raised is no `Exception`, and would pass every handler."""


def translate(error: Exception, query: str, sql: str, prefix_bytes: int = 0) -> BiQueryError:
    """What DuckDB raised, as the refusal a client should see: 422 for SQL it sent, 500 for a broken named query.

    `prefix_bytes` is how much of the executed text stood before the client's own.
    """
    message, position_bytes = _message(error)
    if isinstance(error, OUT_OF_MEMORY):
        return SqlRefused("query_too_large", f"the query needs more memory than it may have: {message.splitlines()[0]}")
    if isinstance(error, duckdb.IOException):  # our disk, not their SQL; and its text names our folders
        logger.error("the engine could not use its files", extra={"fields": {"error": message}})
        return ProblemError("engine_failure", "the engine could not use its files; the operator's log says why")
    if isinstance(error, duckdb.Error) and not isinstance(error, (duckdb.InternalException, duckdb.FatalException)):
        if query == AD_HOC:
            position = _characters(sql, position_bytes, prefix_bytes)
            return SqlRefused(
                "sql_error", message, position=position, may_quote_data=not isinstance(error, _OF_THE_TEXT)
            )
        failed = QueryFailed(
            "query_failed", f"named query '{query}' failed on this snapshot: {message.splitlines()[0]}"
        )
        failed.position = _characters(sql, position_bytes, prefix_bytes)
        return failed
    return ProblemError("engine_failure", f"the engine failed on this query: {type(error).__name__}")


def with_class(error: Exception) -> Exception:
    """What DuckDB raises after the first batch of an Arrow stream arrives as mere text; the same, as it raises it else."""
    text = str(error)
    if type(error) is not Exception or not text.startswith(_FROM_STREAM):
        return error
    text = text.removeprefix(_FROM_STREAM)
    return _CLASSES.get(text.partition(" Error:")[0], duckdb.Error)(text)


def without_frames(error: Exception) -> Exception:
    """The error without what the frames that it passed still hold: half a result, of tens of megabytes perhaps."""
    seen: BaseException | None = error
    while seen is not None:
        seen.__traceback__ = None
        seen = seen.__cause__ or seen.__context__
    return error


def _message(error: Exception) -> tuple[str, int | None]:
    """DuckDB's own message and its byte position; snapshots are opened with `errors_as_json`."""
    text = str(error).strip() or type(error).__name__
    start = text.find("{")
    if start >= 0:
        try:
            document = orjson.loads(text[start:])
            position = document.get("position")
            message = f"{document['exception_type']} Error: {document['exception_message']}".strip()
            return message, None if position is None else int(position)
        except (ValueError, KeyError, TypeError, AttributeError):
            pass
    return text, None


def _characters(sql: str, position_bytes: int | None, prefix_bytes: int) -> int | None:
    if position_bytes is None:
        return None
    data = sql.encode()
    offset = position_bytes - prefix_bytes
    return len(data[:offset].decode(errors="ignore")) if 0 <= offset <= len(data) else None
