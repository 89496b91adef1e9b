"""`TorchCommunicator`: ranks that are processes, over torch.distributed: gloo between CPUs, nccl between GPUs.

The sum of all ranks must not depend on how a library splits a tensor, so it is made of moves alone, and added here
(`ordered_sum`). A small tensor goes whole to every rank. Of a large one every rank gets a piece from all others, sums
it, and hands it on, which moves the fewest bytes there can be: 2 (n - 1) / n of the tensor's in and out of each of n
ranks. Terms are added in the same order both ways, so the bits are the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from quire.core.mapping import Mapping
from quire.distributed.tensors.communicator import WHOLE_BYTES
from quire.distributed.tensors.ordered_sum import ordered_sum
from quire.distributed.tensors.peers import PeerMemory
from quire.distributed.tensors.symmetric_memory import open_peer_memory

BACKENDS = {"cpu": "gloo", "cuda": "nccl"}
"""Of torch.distributed, by kind of device."""

_all_gather: Callable[..., Any] = (
    getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
)  # its old name


@dataclass(slots=True)
class Traffic:
    """What a rank has sent, for counting.

    Attributes:
        sent_bytes: By kind, "all_reduce", "all_gather" or "send": bytes that left this rank.
        calls: By kind, how often.
        waited_s: Seconds in which it waited for other stages.
    """

    sent_bytes: dict[str, int] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    waited_s: float = 0.0

    def add(self, kind: str, num_bytes: int) -> None:
        """Count a call."""
        self.sent_bytes[kind] = self.sent_bytes.get(kind, 0) + num_bytes
        self.calls[kind] = self.calls.get(kind, 0) + 1

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside the block as waited for other stages."""
        began_s = time.perf_counter()
        try:
            yield
        finally:
            self.waited_s += time.perf_counter() - began_s


class TorchCommunicator:
    """A `Communicator` of one process of several.

    Args:
        mapping: Which rank this is, of how many.
        group: The ranks of its stage; None: there is only this one.
        peers: Memory that they reach; None if there is none.

    Attributes:
        mapping: Which rank this is, of how many.
        peers: Memory that kernels of all ranks of its stage reach; None if there is none.
        traffic: What it has sent.
    """

    def __init__(self, mapping: Mapping, group: dist.ProcessGroup | None, peers: PeerMemory | None = None) -> None:
        self.mapping = mapping
        self.peers = peers
        self.traffic = Traffic()
        self._group = group
        self._kind = "cuda" if dist.get_backend(group) == BACKENDS["cuda"] else "cpu"

    @classmethod
    def connect(cls, mapping: Mapping, device: str, init_method: str, *, timeout_s: float = 600.0) -> TorchCommunicator:
        """Meet the other ranks, all of which call this; `disconnect` parts again.

        Args:
            mapping: Which rank this is, of how many.
            device: Kind of device; on a GPU make the rank's own the current one first.
            init_method: Where they meet, as torch.distributed takes it: `tcp://host:port`, `file:///path`, or `env://`.
            timeout_s: How long a rank waits for another, in seconds.
        """
        if not dist.is_initialized():
            dist.init_process_group(
                BACKENDS[device],
                init_method=init_method,
                world_size=mapping.world_size,
                rank=mapping.rank,
                timeout=timedelta(seconds=timeout_s),
            )
        groups = {}
        for first in range(0, mapping.world_size, mapping.tp_size):  # every rank takes part in making every group
            ranks = replace(mapping, rank=first).tp_group
            groups[first] = dist.new_group(ranks) if len(ranks) < mapping.world_size else dist.group.WORLD
        group = groups[mapping.tp_group[0]]
        peers = None
        if group is not None and device == "cuda" and mapping.tp_size > 1:
            peers = open_peer_memory(group)
        return cls(mapping, group, peers)

    def disconnect(self) -> None:
        """Leave all groups."""
        dist.destroy_process_group()

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Return the sum over the ranks of a stage; see `Communicator`."""
        size = self.mapping.tp_size
        if size == 1:
            return x
        flat = x.contiguous().view(-1)
        if flat.nbytes <= WHOLE_BYTES[self._kind]:
            parts = self._gathered(flat)
            self.traffic.add("all_reduce", (size - 1) * flat.nbytes)
            return ordered_sum(parts.unbind()).view(x.shape)
        return self._reduced_by_pieces(flat)[: flat.numel()].view(x.shape)

    def _reduced_by_pieces(self, flat: torch.Tensor) -> torch.Tensor:
        """Sum this rank's piece of all ranks' tensors, and exchange sums; the last piece is padded."""
        size = self.mapping.tp_size
        each = -(-flat.numel() // size)
        if each * size > flat.numel():
            flat = torch.nn.functional.pad(flat, (0, each * size - flat.numel()))
        received = torch.empty_like(flat)
        dist.all_to_all_single(received, flat, group=self._group)
        mine = ordered_sum(received.view(size, each).unbind())
        self.traffic.add("all_reduce", 2 * (size - 1) * mine.nbytes)
        return self._gathered(mine).view(-1)

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        """Return the tensors of the ranks of a stage beside each other; see `Communicator`."""
        size = self.mapping.tp_size
        if size == 1:
            return x
        parts = self._gathered(x.contiguous().view(-1)).view(size, *x.shape)
        self.traffic.add("all_gather", (size - 1) * x.nbytes)
        return parts.movedim(0, -2).reshape(*x.shape[:-1], size * x.shape[-1])

    def _gathered(self, flat: torch.Tensor) -> torch.Tensor:
        """Return what all ranks have, [tp_size, n]."""
        out = flat.new_empty((self.mapping.tp_size, flat.numel()))
        _all_gather(out.view(-1), flat, group=self._group)
        return out

    def send(self, x: torch.Tensor, rank: int) -> None:
        """Send a tensor to a rank of another stage; see `Communicator`."""
        self.traffic.add("send", x.nbytes)
        if x.numel():
            with self.traffic.waiting():
                _finish(dist.isend(x, rank))

    def recv(self, shape: Sequence[int], dtype: torch.dtype, rank: int, device: torch.device) -> torch.Tensor:
        """Wait for the tensor that a rank of another stage sends; see `Communicator`."""
        out = torch.empty(tuple(shape), dtype=dtype, device=device)
        if out.numel():
            with self.traffic.waiting():
                _finish(dist.irecv(out, rank))
        return out


def _finish(work: dist.Work | None) -> None:
    """Wait for an exchange. Started and then waited for, it takes gloo a third to two thirds of `dist.send`'s time
    (36 KB and back, two processes on two busy cores: 0.6 to 1.0 ms against 1.9 to 2.1)."""
    assert work is not None, "both ranks are members of the group"
    work.wait()
