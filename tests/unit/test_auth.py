"""Who a request is counted for."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest
from bi_query.access import Principal
from bi_query.auth import Authenticator
from bi_query.key_ring import KeyRing
from bi_query.metrics import Metrics

PROXIES = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))


def client(peer: str | None, trusted: Any = (), **headers: str) -> str:
    return who(peer, trusted, *[(name.replace("_", "-"), value) for name, value in headers.items()]).client


def who(peer: str | None, trusted: Any, *headers: tuple[str, str]) -> Principal:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    everyone = Authenticator(KeyRing(None, {}, Metrics()), trusted)
    return everyone.identify({"client": (peer, 1) if peer else None, "headers": raw})


def test_a_key_is_the_client_and_never_shown() -> None:
    shown = client("1.2.3.4", x_api_key="secret-key")
    assert shown.startswith("key-")
    assert "secret" not in shown
    assert shown == client("5.6.7.8", x_api_key="secret-key")
    assert shown != client("1.2.3.4", x_api_key="other-key")


def test_a_bearer_token_is_a_key_too() -> None:
    assert client("1.2.3.4", authorization="Bearer secret-key") == client("1.2.3.4", x_api_key="secret-key")
    assert client("1.2.3.4", authorization="bearer  secret-key ") == client("1.2.3.4", x_api_key="secret-key")


@pytest.mark.parametrize(
    "headers", [{"x_api_key": ""}, {"authorization": "Bearer "}, {"authorization": "Basic abc"}, {}]
)
def test_without_a_key_the_address_is_the_client(headers: dict[str, str]) -> None:
    assert client("1.2.3.4", **headers) == "addr-1.2.3.4"


@pytest.mark.parametrize(
    ("peer", "shown"),
    [
        ("1.2.3.4", "addr-1.2.3.4"),
        ("::ffff:1.2.3.4", "addr-1.2.3.4"),
        ("2001:db8:1:2:3:4:5:6", "addr-2001:db8:1:2::/64"),
        ("2001:db8:1:2::99", "addr-2001:db8:1:2::/64"),
        (None, "addr-unknown"),
        ("testclient", "addr-unknown"),
        ("1" * 1_000_000, "addr-unknown"),
    ],
)
def test_an_address_is_one_client_and_an_ipv6_customer_too(peer: str | None, shown: str) -> None:
    assert client(peer) == shown


@pytest.mark.parametrize(
    ("peer", "forwarded", "shown"),
    [
        ("9.9.9.9", "1.2.3.4", "addr-9.9.9.9"),  # not from a proxy of ours: anyone may write the header
        ("10.0.0.1", "1.2.3.4", "addr-1.2.3.4"),
        ("::ffff:10.0.0.1", "1.2.3.4", "addr-1.2.3.4"),
        ("10.0.0.1", "6.6.6.6, 1.2.3.4", "addr-1.2.3.4"),  # what stands left of the nearest stranger is hearsay
        ("10.0.0.1", "1.2.3.4, 10.0.0.2", "addr-1.2.3.4"),
        ("10.0.0.1", "10.0.0.3, 10.0.0.2", "addr-10.0.0.3"),
        ("10.0.0.1", "2001:db8:1:2::99", "addr-2001:db8:1:2::/64"),
        ("fd00::1", "1.2.3.4", "addr-1.2.3.4"),
        ("10.0.0.1", "rubbish", "addr-unknown"),
        ("10.0.0.1", "rubbish, 1.2.3.4", "addr-1.2.3.4"),
        ("10.0.0.1", "1.2.3.4:5678", "addr-unknown"),
        ("10.0.0.1", "1.2.3.4\x00", "addr-unknown"),
        ("10.0.0.1", ", ,", "addr-unknown"),
        ("10.0.0.1", "9" * 30_000, "addr-unknown"),
        ("10.0.0.1", "1.1.1.1," * 3000 + "1.2.3.4", "addr-1.2.3.4"),
    ],
)
def test_forwarded_addresses_count_only_as_far_as_trusted_proxies_vouch(peer: str, forwarded: str, shown: str) -> None:
    assert client(peer, PROXIES, x_forwarded_for=forwarded) == shown


def test_without_trusted_proxies_the_header_means_nothing() -> None:
    assert client("10.0.0.1", (), x_forwarded_for="1.2.3.4") == "addr-10.0.0.1"


def test_several_forwarded_headers_are_one_list() -> None:
    both = [("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "1.2.3.4, 10.0.0.2")]
    assert who("10.0.0.1", PROXIES, *both).client == "addr-1.2.3.4"


def test_a_key_counts_before_a_forwarded_address() -> None:
    assert client("10.0.0.1", PROXIES, x_forwarded_for="1.2.3.4", x_api_key="k").startswith("key-")
