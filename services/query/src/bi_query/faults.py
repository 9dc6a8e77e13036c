"""A test-only switch (`BI_FAULT_INJECTION`, off by default): lets tests make alerts fire by asking for delays or errors."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send

_MAX_DELAY_SECONDS = 30.0


class FaultInjection:
    """Obeys `X-Fault-Delay-Seconds` and `X-Fault-Status` (5xx only) of requests."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Delay, fail or pass on."""
        if scope["type"] == "http":
            headers = dict(scope["headers"])
            delay = _number(headers.get(b"x-fault-delay-seconds"))
            if delay:
                await asyncio.sleep(min(delay, _MAX_DELAY_SECONDS))
            status = int(_number(headers.get(b"x-fault-status")))
            if 500 <= status <= 599:
                await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
                await send({"type": "http.response.body", "body": b""})
                return
        await self._app(scope, receive, send)


def _number(text: bytes | None) -> float:
    try:
        return max(0.0, float(text or b"0"))
    except ValueError:
        return 0.0
