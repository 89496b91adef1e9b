"""`ReadAhead`: the next weights are read, checked and joined by other threads while this one packs the last."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from math import prod
from threading import Lock
from types import TracebackType

import torch

from quire.ops.spec import TensorSpec, num_bytes, sizes_of, spec_of
from quire.plan.weight_source import WeightSource, empty_weight

# Reading and hashing a tensor takes about as long as packing it does; with a GPU, nothing else takes long (16 GB on a
# machine of 16 cores: 11 s with 2 threads).
_NUM_THREADS = max(2, min(8, (os.cpu_count() or 2) // 2))
_AHEAD_SHARE = 32  # of all weights at most one part in so many waits, as memory beside those that are packed


class ReadAhead:
    """A `WeightSource` whose tensors are asked for in a known order. Use as a context manager.

    Until it ends every op uses one core: the threads here keep the others busy, and an op that waits for a second core
    waits long (966 MB on two cores: 1.1 s, and 1.7 s with ops on both).

    Args:
        source: Where tensors are read; from several threads.
        order: Names in the order in which they will be read, as far as that is known.
        joined: Names of weights that are wanted one after the other along their first dimension. They come as parts of
            one tensor, so that joining them copies nothing.
    """

    def __init__(self, source: WeightSource, order: Sequence[str], joined: Iterable[Sequence[str]] = ()) -> None:
        self._source = source
        groups = [_Joined(source, names) for names in joined]
        self._joined = {name: group for group in groups for name in group.specs}
        self._order = list(reversed(order))
        self._num_threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(
            _NUM_THREADS, thread_name_prefix="read-ahead", initializer=partial(torch.set_num_threads, 1)
        )
        self._waiting: dict[str, Future[torch.Tensor]] = {}
        self._ahead_bytes = sum(map(self._num_bytes, order)) // _AHEAD_SHARE

    def __enter__(self) -> ReadAhead:
        torch.set_num_threads(1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        torch.set_num_threads(self._num_threads)

    def names(self) -> Iterable[str]:
        """Return the names of all tensors."""
        return self._source.names()

    def spec(self, name: str) -> TensorSpec:
        """Return shape and dtype of a tensor.

        Raises:
            PlanError: There is no such tensor.
        """
        return self._source.spec(name)

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor, and have the next ones read.

        Raises:
            PlanError: It is missing, truncated or damaged.
        """
        mine = self._waiting.pop(name, None) or self._pool.submit(self._read, name)
        if name in self._order:
            self._order.remove(name)
        ahead = sum(self._num_bytes(waiting) for waiting in self._waiting)
        while self._order and ahead + self._num_bytes(self._order[-1]) <= self._ahead_bytes:
            following = self._order.pop()
            self._waiting[following] = self._pool.submit(self._read, following)
            ahead += self._num_bytes(following)
        return mine.result()

    def _read(self, name: str) -> torch.Tensor:
        tensor = self._source.read(name)
        joined = self._joined.get(name)
        return tensor if joined is None else joined.place(name, tensor)

    def _num_bytes(self, name: str) -> int:
        return num_bytes(self._source.spec(name))


class _Joined:
    """Memory for several weights side by side along their first dimension."""

    def __init__(self, source: WeightSource, names: Sequence[str]) -> None:
        self.specs = {name: source.spec(name) for name in names}
        self._lock = Lock()
        self._memory: torch.Tensor | None = None
        self._num_missing = len(names)

    def place(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor's copy at its place; itself if it is not what was declared, which others find out."""
        if spec_of(tensor) != self.specs[name]:
            return tensor
        sizes = {other: prod(sizes_of(spec)) for other, spec in self.specs.items()}
        with self._lock:
            if self._memory is None:
                self._memory = empty_weight(TensorSpec((sum(sizes.values()),), tensor.dtype))
            memory = self._memory
            self._num_missing -= 1
            if self._num_missing == 0:  # whoever holds a part holds all of it
                self._memory = None
        start = sum(sizes[other] for other in list(sizes)[: list(sizes).index(name)])
        return memory[start : start + sizes[name]].view(tensor.shape).copy_(tensor)
