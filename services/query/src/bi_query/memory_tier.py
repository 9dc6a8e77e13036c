"""The memory tier: least recently used entries within a budget of bytes. Event loop only, no I/O."""

from __future__ import annotations

import re
from collections import OrderedDict

from .entries import Entry
from .metrics import Metrics


class MemoryTier:
    """Entries of this process, bounded in bytes (overhead included)."""

    def __init__(self, max_bytes: int, metrics: Metrics) -> None:
        self._max_bytes = max_bytes
        self._metrics = metrics
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._bytes = 0
        metrics.cache_max_bytes.set(max_bytes)

    def get(self, key_text: str) -> Entry | None:
        """The entry, marked as just used."""
        entry = self._entries.get(key_text)
        if entry is not None:
            self._entries.move_to_end(key_text)
        return entry

    def put(self, key_text: str, entry: Entry) -> None:
        """Store, evicting the least recently used beyond the budget."""
        if entry.cost_bytes > self._max_bytes:
            return
        self.drop(key_text)
        self._entries[key_text] = entry
        self._bytes += entry.cost_bytes
        while self._bytes > self._max_bytes:
            _, evicted = self._entries.popitem(last=False)
            self._bytes -= evicted.cost_bytes
            self._metrics.cache_evictions.inc()
        self._report()

    def drop(self, key_text: str) -> None:
        """Forget one entry."""
        entry = self._entries.pop(key_text, None)
        if entry is not None:
            self._bytes -= entry.cost_bytes
            self._report()

    def invalidate(self, pattern: re.Pattern[str] | None) -> int:
        """Forget entries whose label matches wholly (None: all); how many there were."""
        doomed = [text for text, entry in self._entries.items() if pattern is None or pattern.fullmatch(entry.label)]
        for text in doomed:
            self.drop(text)
        return len(doomed)

    def _report(self) -> None:
        self._metrics.cache_bytes.set(self._bytes)
        self._metrics.cache_entries.set(len(self._entries))
