"""A registry of images as small as can be: one image in it, and refusals on demand. The engine pulls from it as from any."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import platform
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
# What a registry says when it refuses, by tag: status, headers, code.
REFUSALS = {
    "unknown": (404, {}, "MANIFEST_UNKNOWN"),
    "busy": (429, {}, "TOOMANYREQUESTS"),
    "private": (401, {"WWW-Authenticate": 'Basic realm="private"'}, "UNAUTHORIZED"),
}
# As images name this machine's.
ARCHITECTURES = {"x86_64": "amd64", "AMD64": "amd64", "aarch64": "arm64"}


class Registry(ThreadingHTTPServer):
    """On 127.0.0.1, where an engine accepts plain HTTP."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.host = f"127.0.0.1:{self.server_address[1]}"
        self.asked: list[str] = []
        layer = _layer()
        config = json.dumps(
            {
                "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
                "os": "linux",
                "config": {},
                "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
                "history": [{"created_by": self.host}],
            }
        ).encode()
        packed = gzip.compress(layer, mtime=0)
        self.blobs = {_digest(blob): blob for blob in (config, packed)}
        self.manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": _described(config, "application/vnd.docker.container.image.v1+json"),
                "layers": [_described(packed, "application/vnd.docker.image.rootfs.diff.tar.gzip")],
            }
        ).encode()


class _Handler(BaseHTTPRequestHandler):
    server: Registry

    def do_GET(self) -> None:
        """The engine's questions: is this a registry, which manifest, which blobs."""
        self.server.asked.append(self.path)
        *_, kind, name = ("", *self.path.split("/"))
        if kind == "manifests" and name in REFUSALS:
            status, headers, code = REFUSALS[name]
            return self._answer(status, json.dumps({"errors": [{"code": code, "message": "no"}]}).encode(), headers)
        if kind == "manifests":
            digest = {"Docker-Content-Digest": _digest(self.server.manifest)}
            return self._answer(200, self.server.manifest, {"Content-Type": MANIFEST, **digest})
        if kind == "blobs" and name not in self.server.blobs:
            return self._answer(404, json.dumps({"errors": [{"code": "BLOB_UNKNOWN", "message": "no"}]}).encode(), {})
        if kind == "blobs":
            return self._answer(200, self.server.blobs[name], {"Content-Type": "application/octet-stream"})
        return self._answer(200, b"{}", {"Content-Type": "application/json"})

    do_HEAD = do_GET  # noqa: N815 - the name is the base class's

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the test looks at `asked`."""


def _layer() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("of-a-test"))
    return file.getvalue()


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _described(data: bytes, kind: str) -> dict[str, str | int]:
    return {"mediaType": kind, "size": len(data), "digest": _digest(data)}


@contextlib.contextmanager
def registry() -> Iterator[Registry]:
    """One that answers, for a block."""
    server = Registry()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
