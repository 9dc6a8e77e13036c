"""The error tree. Every refusal a client can meet is one `ProblemError`, rendered as RFC 9457 `application/problem+json`.

A leaf module: it knows HTTP status numbers, not any web framework.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

PROBLEM_MEDIA_TYPE = "application/problem+json"


class BiQueryError(Exception):
    """Root of everything this package raises on purpose."""


class ConfigurationError(BiQueryError):
    """A setting, catalogue or folder that cannot be used; the text says what to change."""


class PublishError(BiQueryError):
    """Publishing failed; the text names the file or model. The old snapshot stays in place."""


class ShortOfMemory(PublishError):
    """There was not enough memory for one file or model, at least not beside what else was worked on."""


class PublishBusy(PublishError):
    """Another publish holds the snapshot folder. Says nothing about the data."""


class ProblemError(BiQueryError):
    """A refusal with an HTTP status, a stable machine-readable `code` and a sentence that says what to do."""

    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        retry_after_seconds: float | None = None,
        extra: Mapping[str, Any] | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.retry_after_seconds = retry_after_seconds
        self.extra: dict[str, Any] = dict(extra or {})
        self.headers = tuple(headers)

    def document(self, request_id: str) -> dict[str, Any]:
        """The problem document: `type`, `title`, `status`, `code`, `detail`, `request_id` and the error's own members."""
        return {
            "type": "about:blank",
            "title": self.title,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
            "request_id": request_id,
            **self.extra,
        }


class BadRequest(ProblemError):
    """400: a parameter or body that does not fit its declaration."""

    status = 400
    title = "Bad request"


class Unauthorized(ProblemError):
    """401: no usable credentials."""

    status = 401
    title = "Unauthorized"


class Forbidden(ProblemError):
    """403: known, but not allowed."""

    status = 403
    title = "Forbidden"


class NotFound(ProblemError):
    """404: no such query or route."""

    status = 404
    title = "Not found"


class MethodNotAllowed(ProblemError):
    """405: the route exists, the method does not."""

    status = 405
    title = "Method not allowed"


class NotAcceptable(ProblemError):
    """406: no offered format satisfies `Accept` or `?format=`."""

    status = 406
    title = "Not acceptable"


class PayloadTooLarge(ProblemError):
    """413: the body exceeds the limit."""

    status = 413
    title = "Payload too large"


class UnsupportedMediaType(ProblemError):
    """415: the body is not what the route reads."""

    status = 415
    title = "Unsupported media type"


class HeadersTooLarge(ProblemError):
    """431: the request's headers are larger than anything a client of this API has to say."""

    status = 431
    title = "Request header fields too large"


class SqlRefused(ProblemError):
    """422: SQL that the guard refuses or DuckDB cannot bind or run.

    `position` is a 0-based character offset into the SQL text as sent. `may_quote_data` is false only where `detail` speaks
    of the SQL's text and the schema alone: what DuckDB says while it runs quotes values (a conversion error does).
    """

    status = 422
    title = "SQL refused"

    def __init__(self, code: str, detail: str, *, position: int | None = None, may_quote_data: bool = True) -> None:
        super().__init__(code, detail, extra={} if position is None else {"position": position})
        self.position = position
        self.may_quote_data = may_quote_data


class RateLimited(ProblemError):
    """429: the client's quota is spent."""

    status = 429
    title = "Too many requests"


class Overloaded(ProblemError):
    """503: the engine's queue is full or too slow, or the service is starting or stopping."""

    status = 503
    title = "Service unavailable"


class QueryTimeout(ProblemError):
    """504: the query ran longer than its limit and was stopped."""

    status = 504
    title = "Query timed out"


class QueryCancelled(ProblemError):
    """499 (never sent): the client went away and its query was stopped."""

    status = 499
    title = "Client closed request"
