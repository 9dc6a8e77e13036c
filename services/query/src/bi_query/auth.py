"""Who is asking: the principal of a request, and whether it may pass."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import lru_cache
from hashlib import blake2b
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address

from starlette.types import Scope

from .access import Principal, Role
from .errors import Forbidden, Unauthorized
from .key_ring import KeyRing
from .metrics import Metrics
from .rate_limit import ClientLimiter, Quota

logger = logging.getLogger(__name__)

Networks = tuple[IPv4Network | IPv6Network, ...]

UNKNOWN = "addr-unknown"
_MOST_HOPS = 32
_LONGEST_ADDRESS = 64  # characters; the longest IPv6 spelling has 45, a zone makes it longer


class Authenticator:
    """Finds a request's principal: by API key (`X-API-Key` or a bearer token), else by address."""

    def __init__(self, ring: KeyRing, trusted_proxies: Networks) -> None:
        self._ring = ring
        self._trusted_proxies = trusted_proxies

    def identify(self, scope: Scope) -> Principal:
        """The caller. A key that is not accepted counts as none: the address is the client then, without a role.

        Without a key file every caller may do everything; a key only names a client of its own.
        """
        key = forwarded = b""
        for name, value in scope["headers"]:
            if name == b"x-api-key" or (name == b"authorization" and value[:7].lower() == b"bearer "):
                key = value[7:].strip() if name == b"authorization" else value
            elif name == b"x-forwarded-for":
                forwarded = forwarded + b"," + value if forwarded else value
        if key:
            if self._ring.is_open:
                return Principal(_key_client(key), Role.ADMIN)
            principal = self._ring.find(key)
            if principal is not None:
                return principal
        client = self._address(scope, forwarded)
        return Principal(client, Role.ADMIN if self._ring.is_open else None, "" if not key else REFUSED_KEY)

    def _address(self, scope: Scope, forwarded: bytes) -> str:
        peer = scope["client"][0] if scope.get("client") else "unknown"
        if self._trusted_proxies and forwarded:
            hops = forwarded.decode("latin-1").split(",")[-_MOST_HOPS:]
            peer = _original_address(peer, hops, self._trusted_proxies)
        return _address_client(peer) if len(peer) <= _LONGEST_ADDRESS else UNKNOWN


REFUSED_KEY = "(refused key)"
"""The audit log's name for a caller whose key was not accepted."""


class Gate:
    """Lets a request pass: counted against its client's quota first, so that guessing keys is limited too."""

    def __init__(self, limiter: ClientLimiter, metrics: Metrics) -> None:
        self._limiter = limiter
        self._metrics = metrics

    def admit(self, scope: Scope, role: Role) -> tuple[Principal, Quota]:
        """Who asks, and one request off their quota (once per request, whichever room asks first).

        Raises `RateLimited`, `Unauthorized`, `Forbidden`.
        """
        state = scope["state"]
        principal: Principal = state["principal"]
        quota: Quota | None = state.get("quota")
        if quota is None:
            quota = state["quota"] = self._limiter.spend(state["endpoint"], principal.client, principal.rate_limit)
        try:
            principal.require(role)
        except (Unauthorized, Forbidden) as refusal:
            reason = "bad_key" if principal.name == REFUSED_KEY else refusal.code
            self._metrics.auth_failures.labels(reason).inc()
            raise
        return principal, quota


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
