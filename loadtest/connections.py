"""Connections are kept and used again, however many there are.

geventhttpclient asks select() whether an idle connection still stands, and select() refuses file descriptors from 1024 on:
such a connection is taken for dead. A thousand people then connect anew for nearly every request, and after a minute, when
no local port is left that is not in TIME_WAIT, a connect takes a millisecond: the run measures its own load generator.
"""

from __future__ import annotations

import select
from typing import Any

from gevent import monkey
from geventhttpclient.connectionpool import ConnectionPool

_poll = monkey.get_original("select", "poll")  # gevent's own waits for the event loop's next turn


def keep_connections() -> None:
    """Let connection pools ask poll(), which knows no largest descriptor."""
    ConnectionPool._is_socket_alive = _is_alive  # type: ignore[method-assign,assignment]


def _is_alive(_: ConnectionPool, connection: Any) -> bool:
    """Whether an idle connection can be used: one that has something to read was closed, or answers what nobody asked."""
    if connection is None or connection.fileno() < 0:
        return False
    waiting = _poll()
    waiting.register(connection.fileno(), select.POLLIN)
    return not waiting.poll(0)
