"""Certificates by ACME in production: a company's authority on a live network, whose root no machine trusts."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.production import DOMAIN, ProductionStack
from tests.support.service import wait_until
from tests.support.small import Small
from tests.support.stack import docker

ROOT_CERTIFICATE = "/tmp/data/caddy/pki/authorities/company/root.crt"
ISSUER = "Company Intermediate"
# After a failure Caddy asks again a minute later.
ISSUE_SECONDS = 150


class AcmeStack(ProductionStack):
    """The production overlay, and beside its edge an authority that speaks ACME."""

    def __init__(self, folder: Path, settings: Mapping[str, str], *, challenge: str) -> None:
        self.certificates = folder / challenge
        self.certificates.mkdir()
        super().__init__(
            folder,
            {
                "COMPOSE_FILE": "compose.yaml:compose.prod.yaml:tests/stack/authority/compose.yaml",
                "AUTHORITY_CHALLENGE": challenge,
                "BI_TLS": "acme",
                "BI_ACME_EMAIL": "ops@bi.test",
                "BI_ACME_CA": "https://ca.test/acme/company/directory",
                "BI_ACME_CA_ROOT": "company.pem",
                "BI_TLS_FOLDER": str(self.certificates),
                **settings,
            },
        )

    def up_with_authority(self) -> None:
        """The authority first: the edge needs its root, as an administrator would have put it there."""
        self.up("authority")
        root = docker("exec", self.inspect("authority", running=True)[0]["Id"], "cat", ROOT_CERTIFICATE)
        (self.certificates / "company.pem").write_text(root)
        self.up("edge")

    def root_certificate(self) -> str:
        """The certificate of the authority, PEM."""
        return (self.certificates / "company.pem").read_text()

    def said(self) -> str:
        """The last log lines of the edge and of the authority."""
        return self.compose("logs", "--no-color", "--tail", "20", "edge", "authority").stdout

    def certificate(self) -> dict[str, Any]:
        """What the edge shows for its domain, verified against the authority's root alone; empty when it is not."""
        context = ssl.create_default_context(cadata=self.root_certificate())
        try:
            with (
                socket.create_connection(("127.0.0.1", self.https_port), 5) as plain,
                context.wrap_socket(plain, server_hostname=DOMAIN) as secured,
            ):
                return dict(secured.getpeercert() or {})
        except OSError:
            return {}


@pytest.fixture(scope="module", params=["http-01", "tls-alpn-01"])
def acme(request: pytest.FixtureRequest, engine: None, folder: Path, small_data: Small) -> Iterator[AcmeStack]:
    """The edge with a certificate of the authority, won on port 80 or on 443; and what stands behind the edge."""
    settings = {
        "BI_DATA_FOLDER": str(small_data.data),
        "BI_CATALOGUE_FOLDER": str(small_data.catalogue),
        "BI_QUERY_REPLICAS": "1",
    }
    stack = AcmeStack(folder, settings, challenge=request.param)
    try:
        stack.up_with_authority()
        wait_until(lambda: bool(stack.certificate()), ISSUE_SECONDS, what=lambda: f"a certificate: {stack.said()}")
        yield stack
    finally:
        stack.stop()


def test_the_edge_gets_its_certificate_from_the_authority_that_is_named(acme: AcmeStack) -> None:
    certificate = acme.certificate()
    assert certificate["subjectAltName"] == (("DNS", DOMAIN),)
    assert ("commonName", ISSUER) in [pair for name in certificate["issuer"] for pair in name]


def test_a_request_over_that_certificate_is_answered(acme: AcmeStack) -> None:
    with acme.client() as client:
        answer = client.get("/api/v1/queries/shops")
    assert answer.status_code == 200 and answer.json()["row_count"] > 0


def test_a_new_edge_shows_the_stored_certificate_without_asking_the_authority(acme: AcmeStack) -> None:
    before = acme.certificate()
    (old,) = acme.inspect("edge", running=True)
    acme.compose("rm", "--stop", "--force", "authority")
    acme.compose("up", "-d", "--no-build", "--no-deps", "--force-recreate", "--wait", "edge")
    (new,) = acme.inspect("edge", running=True)
    assert new["Id"] != old["Id"] and acme.inspect("authority") == []
    wait_until(lambda: bool(acme.certificate()), 20, what="a certificate at the new edge")
    assert acme.certificate()["serialNumber"] == before["serialNumber"]
    with acme.client() as client:
        assert client.get("/api/v1/queries/shops").status_code == 200
