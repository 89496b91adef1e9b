"""`StatsLog`: the load of a running engine, one log line every few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from quire.core.log import get_logger

_log = get_logger(__name__)
INTERVAL_S = 10.0


class StatsLog:
    """Logs rates since its last line.

    Args:
        interval_s: Seconds between lines.
        clock: Monotonic seconds.
    """

    def __init__(self, interval_s: float = INTERVAL_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._last_s = clock()
        self._computed = self._generated = 0.0

    def note(self, metrics: Mapping[str, float]) -> None:
        """Take in the counters after a step; log if it is time."""
        now = self._clock()
        seconds = now - self._last_s
        if seconds < self._interval_s:
            return
        computed, generated = metrics["computed_tokens"], metrics["generation_tokens"]
        _log.info(
            "%.0f tokens/s computed, %.0f generated; %d running, %d waiting; KV cache %.0f %% used, %.0f %% of prompt "
            "tokens found in it",
            (computed - self._computed) / seconds,
            (generated - self._generated) / seconds,
            metrics["num_requests_running"],
            metrics["num_requests_waiting"],
            100 * metrics["kv_cache_usage_perc"],
            100 * metrics["prefix_cache_hits"] / max(1, metrics["prefix_cache_queries"]),
        )
        self._last_s, self._computed, self._generated = now, computed, generated
