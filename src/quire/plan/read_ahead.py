"""`ReadAhead`: the next weights are read and checked by other threads while this one packs the last."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch

from quire.ops.spec import TensorSpec, num_bytes
from quire.plan.weight_source import WeightSource

_NUM_THREADS = 2  # reading and hashing a tensor takes about as long as packing it does with one thread
_AHEAD_SHARE = 32  # of all weights at most one part in so many waits, as memory beside those that are packed


class ReadAhead:
    """A `WeightSource` whose tensors are asked for in a known order. Use as a context manager.

    Args:
        source: Where tensors are read; from several threads.
        order: Names in the order in which they will be read, as far as that is known.
    """

    def __init__(self, source: WeightSource, order: Sequence[str]) -> None:
        self._source = source
        self._order = list(reversed(order))
        self._pool = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="read-ahead")
        self._waiting: dict[str, Future[torch.Tensor]] = {}
        self._ahead_bytes = sum(map(self._num_bytes, order)) // _AHEAD_SHARE

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

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
        mine = self._waiting.pop(name, None) or self._pool.submit(self._source.read, name)
        if name in self._order:
            self._order.remove(name)
        ahead = sum(self._num_bytes(waiting) for waiting in self._waiting)
        while self._order and ahead + self._num_bytes(self._order[-1]) <= self._ahead_bytes:
            following = self._order.pop()
            self._waiting[following] = self._pool.submit(self._source.read, following)
            ahead += self._num_bytes(following)
        return mine.result()

    def _num_bytes(self, name: str) -> int:
        return num_bytes(self._source.spec(name))
