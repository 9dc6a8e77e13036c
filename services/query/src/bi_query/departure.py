"""A process on its way out: first it says so, then it stops taking requests, then it cuts off what still runs."""

from __future__ import annotations

import asyncio


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
