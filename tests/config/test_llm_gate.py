"""The gate to a model elsewhere, as the stack's version of Caddy runs it: whom it trusts, what it says to nobody there."""

from __future__ import annotations

import contextlib
import os
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from tests.support.service import free_port, wait_until

from .test_production import EDGE, caddy

CALL = "/v1/chat/completions"


class Handler(BaseHTTPRequestHandler):
    """Says yes to each call."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "3")
        self.end_headers()
        self.wfile.write(b"yes")

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate and key for 127.0.0.1, signed by nobody, in one file."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=endpoint", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", folder / "key.pem",
         "-out", folder / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder


@contextlib.contextmanager
def endpoint(certificate: Path) -> Iterator[str]:
    """An endpoint with TLS; its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"https://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def gate(folder: Path, to: str, **environment: str) -> Iterator[str]:
    """The gate on a port of its own; its address."""
    port = free_port()
    text = (EDGE.parent / "llm/gate.caddy").read_text()
    assert text.count("\n:8080 {") == 1
    (folder / "gate.caddy").write_text(text.replace("\n:8080 {", f"\nhttp://127.0.0.1:{port} {{"))
    with subprocess.Popen(
        [caddy(), "run", "--adapter", "caddyfile", "--config", folder / "gate.caddy"],
        env={"PATH": os.environ["PATH"], "HOME": str(folder), "GATE_TO": to, **environment},
        stderr=subprocess.DEVNULL,
    ) as process:
        url = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(f"{url}/health").status_code == 200
            return False

        try:
            wait_until(answers, 20, what="the gate to listen")
            yield url
        finally:
            process.terminate()


def test_an_endpoint_whose_certificate_nobody_vouches_for_gets_nothing(tmp_path: Path, certificate: Path) -> None:
    with endpoint(certificate) as there, gate(tmp_path, there) as url:
        assert httpx.post(url + CALL, content=b"{}", timeout=20).status_code == 502


def test_an_endpoint_with_a_certificate_that_is_vouched_for_is_asked(tmp_path: Path, certificate: Path) -> None:
    trusted = str(certificate / "cert.pem")
    with endpoint(certificate) as there, gate(tmp_path, there, SSL_CERT_FILE=trusted) as url:
        answer = httpx.post(url + CALL, content=b"{}", timeout=20)
        assert (answer.status_code, answer.text) == (200, "yes")


@pytest.mark.parametrize("to", ["", "http://127.0.0.1:1"], ids=["nowhere", "nobody there"])
def test_a_gate_that_leads_nowhere_says_so_at_once(tmp_path: Path, to: str) -> None:
    with gate(tmp_path, to) as url:
        assert httpx.post(url + CALL, content=b"{}", timeout=20).status_code in (502, 503)
