"""An HTTP server on this machine that takes what Alertmanager sends, reachable from containers."""

from __future__ import annotations

import json
import secrets
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.stack import docker

Json = dict[str, Any]


class Receiver:
    """Keeps each notification by path: `/team-...` for alerts, `/heartbeat-...` for the Watchdog."""

    def __init__(self) -> None:
        self.token = secrets.token_hex(16)  # in the URLs, as the real ones have secrets in them
        self._received: list[tuple[str, Json]] = []
        self._lock = threading.Lock()
        self._server, host = reachable_server(self._handler())
        self._base = f"http://{host}:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def url(self, who: str) -> str:
        """The address to write into the file that the setting names."""
        return f"{self._base}/{who}-{self.token}"

    def alerts(self, who: str, name: str, status: str = "firing") -> list[Json]:
        """The alerts of that name and status that arrived so far."""
        with self._lock:
            sent = [body for path, body in self._received if path == f"/{who}-{self.token}"]
        alerts = [alert for body in sent for alert in body["alerts"]]
        return [a for a in alerts if a["labels"]["alertname"] == name and a["status"] == status]

    def names(self, who: str) -> set[str]:
        """Names of all alerts that arrived, to say what came instead."""
        with self._lock:
            sent = [body for path, body in self._received if path == f"/{who}-{self.token}"]
        return {f"{alert['labels']['alertname']} {alert['status']}" for body in sent for alert in body["alerts"]}

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        received, lock = self._received, self._lock

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    received.append((self.path, body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


def reachable_server(handler: type[BaseHTTPRequestHandler]) -> tuple[ThreadingHTTPServer, str]:
    """A server of this machine, not started, and the host under which containers reach it."""
    gateway = docker("network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}").strip()
    try:  # on Linux the engine's bridge is an interface of this machine, and nobody outside reaches it
        return ThreadingHTTPServer((gateway, 0), handler), gateway
    except OSError:  # Docker Desktop: the engine is in a virtual machine that knows this one by name
        return ThreadingHTTPServer(("0.0.0.0", 0), handler), "host.docker.internal"
