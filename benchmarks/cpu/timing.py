"""Times of calls that take turns, so that a change of the machine's mood meets both sides of a ratio."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from benchmarks.record import percentile


def microseconds(calls: Sequence[Callable[[], object]], repeats: int = 15) -> list[float]:
    """Return the median time of each call, in us; each is called once more before, to warm up."""
    times: list[list[float]] = [[] for _ in calls]
    for repeat in range(repeats + 1):
        for call, own in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            if repeat:
                own.append((time.perf_counter() - start) * 1e6)
    return [percentile(own, 0.5) for own in times]


def read_bandwidth() -> float:
    """Return the bytes per second that torch reads from memory, by all threads: the sum of 256 MiB."""
    x = torch.ones(1 << 26)
    return x.numel() * 4 / (min(microseconds([x.sum] * 3)) * 1e-6)
