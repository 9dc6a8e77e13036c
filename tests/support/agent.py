"""An agent: the official SDK's own client, one connection a call, as several replicas and reconnects would have it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, Tool

_T = TypeVar("_T")
MODES = ("legacy", "auto")
"""With the initialize handshake of protocols up to 2025-11-25, and without, as from 2026-07-28."""


class Agent:
    """Asks the service at `url` with a key. `mode` chooses the protocol's era."""

    def __init__(self, url: str, key: str | None = None, mode: str = "auto", **headers: str) -> None:
        self._url = f"{url}/mcp"
        self._mode = mode
        self._headers = {**({"X-API-Key": key} if key else {}), **headers}

    def tools(self) -> dict[str, Tool]:
        """The tools it is offered."""

        async def ask(client: Client) -> dict[str, Tool]:
            return {tool.name: tool for tool in (await client.list_tools()).tools}

        return self._with_client(ask)

    def call(self, tool: str, /, **arguments: Any) -> CallToolResult:
        """Call a tool."""
        return self._with_client(lambda client: client.call_tool(tool, arguments))

    def rows(self, tool: str, /, **arguments: Any) -> list[list[Any]]:
        """The rows a tool answers with; fails when it refuses."""
        answer = self.call(tool, **arguments)
        assert not answer.is_error, answer.content
        rows: list[list[Any]] = answer.structured_content["rows"]
        return rows

    def refusal(self, tool: str, /, **arguments: Any) -> tuple[str, str]:
        """Code and words of a tool's error; fails when it answers."""
        answer = self.call(tool, **arguments)
        assert answer.is_error, answer.structured_content
        return answer.structured_content["code"], answer.content[0].text  # type: ignore[union-attr]

    def abandon(self, tool: str, arguments: Mapping[str, Any], after_seconds: float) -> None:
        """Call a tool and stop waiting for it."""

        async def ask(client: Client) -> None:
            await asyncio.wait_for(client.call_tool(tool, dict(arguments)), after_seconds)

        try:
            self._with_client(ask)
        except TimeoutError:
            return
        raise AssertionError("it answered")

    def _with_client(self, ask: Callable[[Client], Awaitable[_T]]) -> _T:
        async def run() -> _T:
            async with (
                httpx2.AsyncClient(headers=self._headers, timeout=60) as http,
                Client(streamable_http_client(self._url, http_client=http), mode=self._mode) as client,
            ):
                return await ask(client)

        try:
            return asyncio.run(run())
        except BaseExceptionGroup as group:
            raise _first(group) from group


def _first(error: BaseException) -> BaseException:
    """The error itself, out of the groups that the client's tasks wrap it in."""
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error
