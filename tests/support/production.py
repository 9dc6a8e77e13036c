"""The stack with the production overlay: TLS by Caddy's own authority, on ports and addresses of its own."""

from __future__ import annotations

import contextlib
import json
import os
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx

from .service import free_port
from .stack import ROOT, Stack, compose_image, docker

DOMAIN = "bi.test"
RELOAD = [
    "caddy", "reload", "--config", "/etc/caddy/production.caddy", "--adapter", "caddyfile",
    "--address", "unix//tmp/caddy-admin.sock", "--force",
]  # fmt: skip
ROOT_CERTIFICATE = "/var/lib/edge/caddy/pki/authorities/local/root.crt"


class ProductionStack(Stack):
    """compose.yaml and compose.prod.yaml."""

    def __init__(self, folder: Path, settings: Mapping[str, str], *, scale: Mapping[str, int] | None = None) -> None:
        self.http_port, self.https_port = free_port(), free_port()
        self.prefix = free_prefix()
        self.folder = folder
        super().__init__(
            folder,
            {
                "COMPOSE_FILE": "compose.yaml:compose.prod.yaml",
                "BI_DOMAIN": DOMAIN,
                "BI_TLS": "internal",
                "BI_HTTP_PORT": str(self.http_port),
                "BI_HTTPS_PORT": str(self.https_port),
                "BI_EDGE_NETWORK": self.prefix,
                **settings,
            },
            scale=scale,
        )
        self.env = folder / f"{self.project}.env"

    def stop(self, down: bool = True) -> None:
        """Take it down, and what programs of `infra` noted of it."""
        super().stop(down)
        for path in (ROOT / ".stack").glob(f"*-{self.project}.*"):
            path.unlink()

    def client(self, *, http2: bool = False, headers: Mapping[str, str] | None = None) -> httpx.Client:
        """A client that reaches the edge under its domain, trusts its authority and nothing else; with the first key."""
        transport = _ToThisMachine(
            self.https_port, verify=ssl.create_default_context(cadata=self.root_certificate()), http2=http2
        )
        return httpx.Client(
            base_url=f"https://{DOMAIN}",
            transport=transport,
            headers=dict(self.key if headers is None else headers),
            timeout=30,
        )

    def program(self, *command: str, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a program of `infra` on this stack, as `make` would; its words and its exit code."""
        settings = {"COMPOSE_PROJECT_NAME": self.project, "BI_ENV_FILE": str(self.env)} | environment
        return subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    @contextlib.contextmanager
    def edge_with_files(self, certificates: Path) -> Iterator[tuple[int, str]]:
        """An edge of its own with the given certificate, for a block: the port it listens on, and its container."""
        port = free_port()
        environment = {
            "EDGE_DOMAIN": DOMAIN, "EDGE_TLS": "files", "EDGE_REPLICAS": self.prefix, "EDGE_MAX_BODY": "2MB",
            "EDGE_ACME_EMAIL": "", "EDGE_ACME_CA": "", "EDGE_ACME_CA_ROOT": "",
            "XDG_DATA_HOME": "/tmp/data", "XDG_CONFIG_HOME": "/tmp/config",
        }  # fmt: skip
        flags = [flag for name, value in environment.items() for flag in ("-e", f"{name}={value}")]
        flags += ["-v", f"{certificates}:/certs:ro", "-v", f"{ROOT}/infra/caddy:/etc/caddy:ro", "--user", "65534:65534"]
        flags += ["-p", f"127.0.0.1:{port}:443", "--entrypoint", "caddy"]
        command = ["run", "--config", "/etc/caddy/production.caddy", "--adapter", "caddyfile"]
        container = docker("run", "-d", *flags, compose_image("BI_CADDY_IMAGE"), *command).strip()
        try:
            yield port, container
        finally:
            docker("rm", "-f", container)

    def root_certificate(self) -> str:
        """The certificate of the edge's own authority, PEM."""
        return docker("exec", self.inspect("edge", running=True)[0]["Id"], "cat", ROOT_CERTIFICATE)


class _ToThisMachine(httpx.HTTPTransport):
    """Connects to a port of this machine whatever the URL's host, which stays the name TLS asks for and checks."""

    def __init__(self, port: int, *, verify: ssl.SSLContext, http2: bool) -> None:
        super().__init__(verify=verify, http2=http2)
        self._port = port

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.extensions = {**request.extensions, "sni_hostname": request.url.host}
        request.url = request.url.copy_with(host="127.0.0.1", port=self._port)
        return super().handle_request(request)


def free_prefix() -> str:
    """Three numbers of an address whose /27 no network of this engine has."""
    ids = docker("network", "ls", "-q").split()
    used = {
        config.get("Subnet", "")
        for network in (json.loads(docker("network", "inspect", *ids)) if ids else [])
        for config in network["IPAM"]["Config"] or []
    }
    return next(f"10.213.{third}" for third in range(72, 256) if f"10.213.{third}.0/27" not in used)
