"""`Communicator`: how the ranks of a `Mapping` exchange tensors; `current` is the one that this thread belongs to.

Collectives are ops of a graph (`ops/collective/`), so whoever runs a graph says first which communicator it is for:

    with use(communicator):
        executor.run(inputs)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

import torch

from quire.core.errors import ConfigError
from quire.core.mapping import Mapping
from quire.distributed.tensors.peers import PeerMemory

# Computed, not measured: so many bytes more, (n - 1) - 2 (n - 1) / n times the tensor's, take as long as the latency of
# a second exchange. 4 ranks over gloo, 100 us and 1 GB/s: 67 KB; 8 ranks over NVLink, 20 us and 100 GB/s: 380 KB.
WHOLE_BYTES = {"cpu": 1 << 16, "cuda": 1 << 18}
"""By kind of device, how many bytes of a tensor go to all ranks as they are, to be summed by each. More are summed in
pieces, which moves fewer bytes, but takes two exchanges instead of one."""


class Communicator(Protocol):
    """What a rank calls; all ranks of its tensor-parallel group call the same methods in the same order.

    Attributes:
        mapping: Which rank this is, of how many.
        peers: Memory that kernels of all ranks of `mapping.tp_group` reach; None if there is none.
    """

    @property
    def mapping(self) -> Mapping:
        """Which rank this is, of how many."""
        ...

    @property
    def peers(self) -> PeerMemory | None:
        """Memory that kernels of all ranks of `mapping.tp_group` reach; None if there is none."""
        ...

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Return the sum of `x` over the ranks of `mapping.tp_group`, the same bits on each of them.

        The terms of an element are added in the order of ranks, in float32, and rounded to `x.dtype` once, so that the
        bits depend neither on how many elements there are nor on what lies beside them.

        Args:
            x: [...], float32 | bfloat16 | float16, of one shape on all ranks. Not mutated.
        """
        ...

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        """Return the `x` of all ranks of `mapping.tp_group` behind each other along the last dimension, in order of
        ranks: [..., tp_size * n].

        Args:
            x: [..., n], of one shape and dtype on all ranks. Not mutated.
        """
        ...

    def send(self, x: torch.Tensor, rank: int) -> None:
        """Send a tensor to a rank of another stage; returns when `x` may be written to.

        Args:
            x: [...], any dtype.
            rank: Whose turn it is to `recv`, out of `mapping.world_size`.
        """
        ...

    def recv(self, shape: Sequence[int], dtype: torch.dtype, rank: int, device: torch.device) -> torch.Tensor:
        """Wait for the tensor that a rank of another stage sends.

        Args:
            shape: Its sizes.
            dtype: Its dtype.
            rank: The sender.
            device: Where it is to lie.
        """
        ...


_CURRENT: ContextVar[Communicator | None] = ContextVar("communicator", default=None)


def current() -> Communicator:
    """Return the communicator of this thread.

    Raises:
        ConfigError: A part of a model is run outside of `use`.
    """
    found = _CURRENT.get()
    if found is None:
        raise ConfigError(
            "communicator: expected the ranks that share this network, got none; run it under `use(communicator)`."
        )
    return found


@contextmanager
def use(communicator: Communicator) -> Iterator[None]:
    """Make a communicator the current one of this thread inside the block."""
    token = _CURRENT.set(communicator)
    try:
        yield
    finally:
        _CURRENT.reset(token)
