"""`Coming`: beginnings of prompts that are being computed, for rows that would compute them again."""

from __future__ import annotations

from quire.kv_cache.cache import KVCache
from quire.scheduler.row import Row, RowQueue


class Coming:
    """The blocks that running rows publish next; looked up only once a row asks.

    Args:
        kv_cache: The books.
        running: Rows with a seat.
    """

    def __init__(self, kv_cache: KVCache, running: RowQueue) -> None:
        self._kv_cache = kv_cache
        self._running = running
        self._names: set[bytes | None] = set()
        self._is_known = False

    def has_next_of(self, row: Row, prefix: list[int]) -> bool:
        """Return whether what a waiting row needs behind a prefix that it found is among them."""
        name = self._kv_cache.missing_block(row.table, row.token_ids, prefix)
        if name is None:
            return False
        if not self._is_known:
            self._is_known = True
            for other in self._running:
                self.add(other)
        return name in self._names

    def add(self, row: Row) -> None:
        """Count in a row that runs now."""
        if self._is_known:
            self._names.add(self._kv_cache.coming_block(row.table, row.token_ids))
