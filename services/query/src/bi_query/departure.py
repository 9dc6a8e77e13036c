"""A process on its way out: first it says so, then it stops taking requests, then it cuts off what still runs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

_CANCEL_AGAIN_SECONDS = 0.1


class Departure:
    """Shared by whoever hears the signal (the server) and whoever must act on it (readiness, the engine).

    A leaf: plain state, no I/O. Used on the event loop and from a signal handler of the same thread.
    """

    def __init__(self) -> None:
        self.is_announced = False
        self._begun = asyncio.Event()

    def announce(self) -> None:
        """From now on this replica says that it is not ready, and answers all the same."""
        self.is_announced = True

    def begin(self) -> None:
        """No new connections any more; requests in progress have the grace period from now on (event loop only)."""
        self.is_announced = True
        self._begun.set()

    async def begun(self) -> None:
        """Wait for `begin`."""
        await self._begun.wait()


async def end(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel tasks and wait until they have ended."""
    ending = pending = set(tasks)
    while pending:  # a cancellation that arrives within a client's own time-out can be lost: repeat
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_CANCEL_AGAIN_SECONDS)
    await asyncio.gather(*ending, return_exceptions=True)
