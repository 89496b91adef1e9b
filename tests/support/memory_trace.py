"""What a piece of code holds in memory at once, to the byte: torch's allocator, numpy and Python, and mapped pages."""

from __future__ import annotations

import gc
import mmap
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch.profiler import ProfilerActivity, profile, record_function

from quire.plan import weight_source

_NAME = "memory trace"


class _Pages(mmap.mmap):
    """Anonymous pages that count themselves."""

    held = 0
    most = 0

    def __new__(cls, fileno, length, **options):
        _Pages.held += length
        _Pages.most = max(_Pages.most, _Pages.held)
        return super().__new__(cls, fileno, length, **options)

    def __init__(self, fileno, length, **options):
        self._length = length

    def __del__(self):
        _Pages.held -= self._length


@dataclass(frozen=True)
class Span:
    """Bytes in a span of time.

    Attributes:
        name: As given.
        most_tensors: Of tensors, at most, since the span before.
        left_tensors: Of tensors, at its end; weights in pages of their own included in both.
        most_python: Of numpy and Python, at most.
    """

    name: str
    most_tensors: int
    left_tensors: int
    most_python: int


class MemoryTrace:
    """Records what is allocated between `start` and `stop`, span by span.

    Every allocation of torch is an event of its profiler, those inside of kernels included; numpy's and Python's are
    known by their peak in each span. The sum of the two peaks is what a span held only if they were there together, so
    code is to be cut into spans in which not both come and go.
    """

    def __init__(self):
        self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self._spans: list[tuple[str, int, int, int]] = []

    def start(self):
        gc.collect()  # what an earlier trace saw come would be seen to go
        _Pages.held = _Pages.most = 0
        self._mmap, weight_source.mmap.mmap = weight_source.mmap.mmap, _Pages
        self._profile.__enter__()
        tracemalloc.start(1)

    def stop(self):
        tracemalloc.stop()
        self._profile.__exit__(None, None, None)
        weight_source.mmap.mmap = self._mmap

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        tracemalloc.reset_peak()
        _Pages.most = _Pages.held
        with record_function(f"{_NAME} {len(self._spans)}"):
            yield
        self._spans.append((name, tracemalloc.get_traced_memory()[1], _Pages.most, _Pages.held))

    def spans(self) -> list[Span]:
        """Return what each span held, once the trace has stopped."""
        events = sorted(self._profile.profiler.kineto_results.events(), key=lambda event: event.start_ns())
        ends = {e.name(): e.start_ns() + e.duration_ns() for e in events if e.name().startswith(_NAME)}
        changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
        found, held, i = [], 0, 0
        for number, (name, python, most_pages, pages) in enumerate(self._spans):
            most, end = held, ends[f"{_NAME} {number}"]
            while i < len(changes) and changes[i][0] <= end:
                held, i = held + changes[i][1], i + 1
                most = max(most, held)
            found.append(Span(name, most + most_pages, held + pages, python))
        return found
