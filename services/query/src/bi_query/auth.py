"""Who is asking: the client a request is counted, limited and cached for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address

from starlette.types import Scope

Networks = tuple[IPv4Network | IPv6Network, ...]


@dataclass(frozen=True)
class Principal:
    """`client` identifies the caller in limits and counts (never the key itself); `scope` separates cached answers."""

    client: str
    scope: str


EVERYONE = "all"
UNKNOWN = "addr-unknown"
_MOST_HOPS = 32
_LONGEST_ADDRESS = 64  # characters; the longest IPv6 spelling has 45, a zone makes it longer


def identify(scope: Scope, trusted_proxies: Networks) -> Principal:
    """The caller: by API key (`X-API-Key` or a bearer token) if one is sent, else by address.

    Without a key file every caller may read everything, so answers are shared (`scope` is the same for all).
    """
    key = forwarded = b""
    for name, value in scope["headers"]:
        if name == b"x-api-key" or (name == b"authorization" and value[:7].lower() == b"bearer "):
            key = value[7:].strip() if name == b"authorization" else value
        elif name == b"x-forwarded-for":
            forwarded = forwarded + b"," + value if forwarded else value
    if key:
        return Principal(_key_client(key), EVERYONE)
    peer = scope["client"][0] if scope.get("client") else "unknown"
    if trusted_proxies and forwarded:
        peer = _original_address(peer, forwarded.decode("latin-1").split(",")[-_MOST_HOPS:], trusted_proxies)
    return Principal(_address_client(peer) if len(peer) <= _LONGEST_ADDRESS else UNKNOWN, EVERYONE)


def _key_client(key: bytes) -> str:
    # Not remembered: a digest costs a microsecond, and what anyone may send must not be kept.
    return "key-" + blake2b(key, digest_size=8).hexdigest()


@lru_cache(maxsize=4096)
def _address_client(address: str) -> str:
    try:
        parsed = ip_address(address)
    except ValueError:
        return UNKNOWN
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:  # what a dual-stack socket makes of an IPv4 peer
            return f"addr-{parsed.ipv4_mapped}"
        # One customer holds a whole /64: limiting single addresses of it limits nobody.
        return f"addr-{IPv6Network((int(parsed) >> 64 << 64, 64))}"
    return f"addr-{parsed}"


def _original_address(peer: str, forwarded: Iterable[str], trusted: Networks) -> str:
    """The nearest address no trusted proxy vouches for: what is left of it in the header, anyone may have written."""
    current = peer
    for candidate in reversed([part.strip() for part in forwarded]):
        if not _is_trusted(current, trusted):
            return current
        current = candidate
    return current


def _is_trusted(address: str, trusted: Networks) -> bool:
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    return any(parsed in network for network in trusted)
