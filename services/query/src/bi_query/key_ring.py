"""The keys a running service accepts: the key file, bound to the row policies, followed without a restart."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path

from .access import Principal
from .errors import ConfigurationError
from .keys import KeyEntry, KeyFile, is_key, key_id
from .metrics import Metrics
from .policies import Policy

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.5


class KeyRing:
    """Finds the principal of a key. Without a file there are no keys: every caller may do everything."""

    def __init__(self, path: Path | None, policies: Mapping[str, Policy], metrics: Metrics) -> None:
        self._file = KeyFile(path) if path is not None else None
        self._policies = policies
        self._metrics = metrics
        self._known: dict[str, tuple[KeyEntry, Principal]] = {}
        self._stamp: tuple[int, ...] | None = None

    @property
    def is_open(self) -> bool:
        """Whether no key is asked for."""
        return self._file is None

    def find(self, key: bytes) -> Principal | None:
        """Whose key this is; None for a key that is unknown, revoked or past its time."""
        identity = key_id(key)
        entry, principal = self._known.get(identity or "", (None, None))
        if not is_key(key, entry) or entry is None or entry.has_expired:
            return None
        return principal

    def load(self) -> None:
        """Read the file. Raises `ConfigurationError`; then the keys read before stay in force."""
        if self._file is None:
            return
        self._stamp = _stamp(self._file.path)
        entries = self._file.read()
        self._known = {entry.id: (entry, self._principal(entry)) for entry in entries}
        self._metrics.keys_accepted.set(len(entries))

    def _principal(self, entry: KeyEntry) -> Principal:
        client = f"key-{entry.id}"
        if entry.policy is None:
            return Principal(client, entry.role, entry.name, None, entry.rate_limit)
        try:
            if entry.policy not in self._policies:
                raise ConfigurationError(f"the catalogue declares no row policy {entry.policy!r}")
            rows = self._policies[entry.policy].bind(entry.policy, entry.attributes)
        except ConfigurationError as error:
            logger.error(
                "a key's row policy cannot be applied", extra={"fields": {"client": client, "error": str(error)}}
            )
            reason = f"this key's row policy cannot be applied: {error}"
            return Principal(client, entry.role, entry.name, refusal=reason)
        return Principal(client, entry.role, entry.name, rows, entry.rate_limit)

    async def watch(self) -> None:
        """Follow the file for ever. An unreadable one is logged and counted; the last good one stays in force."""
        while self._file is not None:
            await asyncio.sleep(_POLL_SECONDS)
            try:
                if await asyncio.to_thread(_stamp, self._file.path) != self._stamp:
                    self.load()
                    logger.info("keys read anew", extra={"fields": {"keys": len(self._known)}})
            except ConfigurationError as error:
                self._metrics.keys_load_failures.inc()
                logger.error("the key file cannot be used; the last good one stays in force: %s", error)


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
