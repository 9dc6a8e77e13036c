"""Who may do what: roles, and the principal every room downstream of authentication is handed. Knows nothing of HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from .errors import Forbidden, Unauthorized
from .policies import RowPolicy

EVERYONE = "all"


class Role(StrEnum):
    """What a key may do; each role may do what those before it may."""

    READER = "reader"
    """Run named queries."""
    ANALYST = "analyst"
    """Write SQL, read the schema."""
    ADMIN = "admin"
    """Invalidate cached answers, see how publishing went."""

    @property
    def rank(self) -> int:
        """Higher may more."""
        return _RANKS[self]


_RANKS = {role: place for place, role in enumerate(Role)}


@dataclass(frozen=True)
class Principal:
    """A caller. `client` identifies it in limits, counts and logs (never the key itself)."""

    client: str
    role: Role | None
    """None: not authenticated."""
    name: str = ""
    """The key's name, for the audit log."""
    rows: RowPolicy | None = None
    """The rows it may see; None: all of them."""
    rate_limit: str | None = None
    """A limit of its own, as `count/period`, beside those of single routes; None: the service's."""
    refusal: str = ""
    """Why a key that is known cannot be used."""

    @property
    def scope(self) -> str:
        """Separates cached answers: two principals share answers only if they see the same rows."""
        return EVERYONE if self.rows is None else self.rows.scope

    def require(self, role: Role) -> None:
        """Raises `Unauthorized` without a usable key, `Forbidden` when its role or its row policy does not allow it."""
        if self.role is None:
            raise Unauthorized(
                "unauthorized",
                "send a valid API key as 'X-API-Key: KEY' or 'Authorization: Bearer KEY'",
                headers=[(b"www-authenticate", b'Bearer realm="bi-query"')],
            )
        if self.refusal:
            raise Forbidden("policy_unusable", self.refusal)
        if self.role.rank < role.rank:
            raise Forbidden("role_too_low", f"this needs the role {role}; the key has {self.role}")
