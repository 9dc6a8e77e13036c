"""What the service is measured against: the same bytes from a plain FastAPI route and from a bare ASGI application."""

from __future__ import annotations

import os
from pathlib import Path

from fastapi import FastAPI, Response
from starlette.types import Receive, Scope, Send


def fastapi_app() -> FastAPI:
    """A route that returns the bytes of the file BENCH_BODY."""
    body = Path(os.environ["BENCH_BODY"]).read_bytes()
    app = FastAPI()

    @app.get("/same-bytes")
    async def same_bytes() -> Response:
        return Response(body, media_type="application/json")

    return app


def bare_app() -> object:
    """The least an ASGI server can be asked to do with those bytes."""
    body = Path(os.environ["BENCH_BODY"]).read_bytes()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app
