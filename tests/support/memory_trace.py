"""What a piece of code holds in memory at once, to the byte: torch's allocator, numpy and Python, and mapped pages."""

from __future__ import annotations

import mmap
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

from torch.profiler import ProfilerActivity, profile, record_function

from quire.plan import weight_source

_SPAN = "memory trace"


class _Pages(mmap.mmap):
    """Anonymous pages that count themselves."""

    held = 0
    most = 0

    def __new__(cls, fileno, length):
        _Pages.held += length
        _Pages.most = max(_Pages.most, _Pages.held)
        return super().__new__(cls, fileno, length)

    def __init__(self, fileno, length):
        self._length = length

    def __del__(self):
        _Pages.held -= self._length


class MemoryTrace:
    """Records what is allocated between `start` and `stop`.

    Every allocation of torch is an event of its profiler, those inside of kernels included; numpy's and Python's are
    known by their sum and their peak in each span. A span's peak is taken as the sum of both peaks in it, so code is
    to be cut into spans in which not both of them come and go.
    """

    def __init__(self):
        self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True)
        self._peaks: list[int] = []

    def start(self):
        _Pages.held = _Pages.most = 0
        self._mapped, weight_source.mmap.mmap = weight_source.mmap.mmap, _Pages
        self._profile.__enter__()
        tracemalloc.start(1)

    def stop(self):
        tracemalloc.stop()
        self._profile.__exit__(None, None, None)
        weight_source.mmap.mmap = self._mapped

    @contextmanager
    def span(self) -> Iterator[None]:
        tracemalloc.reset_peak()
        _Pages.most = _Pages.held
        with record_function(f"{_SPAN} {len(self._peaks)}"):
            yield
        self._peaks.append(tracemalloc.get_traced_memory()[1] + _Pages.most)

    def peaks(self) -> list[int]:
        """Return the most bytes held at once in each span."""
        events = sorted(self._profile.profiler.kineto_results.events(), key=lambda event: event.start_ns())
        spans = {e.name(): (e.start_ns(), e.start_ns() + e.duration_ns()) for e in events if e.name().startswith(_SPAN)}
        changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
        found, held, i = [], 0, 0
        for number, python in enumerate(self._peaks):
            start, end = spans[f"{_SPAN} {number}"]
            while i < len(changes) and changes[i][0] < start:
                held += changes[i][1]
                i += 1
            most = held
            while i < len(changes) and changes[i][0] <= end:
                held += changes[i][1]
                most = max(most, held)
                i += 1
            found.append(most + python)
        return found
