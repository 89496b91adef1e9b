"""`Latest`: what was made for the structured outputs asked for last."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Generic, TypeVar

from quire.core.structured_outputs import StructuredOutputsParams

V = TypeVar("V")
_MAX_KEPT = 256


class Latest(Generic[V]):
    """A cache of bounded size; the entry that was not used for the longest goes first. Safe to share by threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: OrderedDict[StructuredOutputsParams, V] = OrderedDict()

    def get(self, key: StructuredOutputsParams) -> V | None:
        """Return an entry, None if there is none."""
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
            return self._entries.get(key)

    def put(self, key: StructuredOutputsParams, value: V) -> None:
        """Keep an entry."""
        with self._lock:
            self._entries[key] = value
            self._entries.move_to_end(key)
            if len(self._entries) > _MAX_KEPT:
                self._entries.popitem(last=False)
