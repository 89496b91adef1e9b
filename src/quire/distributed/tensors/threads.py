"""Ranks that are threads of one process: a sharded network is checked, or run, without starting another process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, Queue
from typing import TypeVar

import torch

from quire.core.mapping import Mapping
from quire.distributed.tensors.communicator import Communicator, use
from quire.distributed.tensors.ordered_sum import ordered_sum

T = TypeVar("T")

_TIMEOUT_S = 120.0  # a rank that waits this long waits for one that will never come


class _Meeting:
    """Where the ranks of a tensor-parallel group put down what they have, and take what the others have."""

    def __init__(self, size: int) -> None:
        self._barrier = threading.Barrier(size, timeout=_TIMEOUT_S)
        self._places: list[torch.Tensor | None] = [None] * size

    def exchange(self, place: int, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the tensors of all ranks, in order."""
        self._places[place] = x
        self._barrier.wait()
        found = [tensor for tensor in self._places if tensor is not None]
        self._barrier.wait()  # nobody puts down the next before all have taken these
        return found

    def abort(self) -> None:
        """Let all who wait, or will, fail."""
        self._barrier.abort()


class ThreadCommunicator:
    """A `Communicator` between threads; `thread_communicators` makes those of all ranks together.

    Attributes:
        mapping: Which rank this is, of how many.
        peers: None: threads share their memory as it is.
    """

    peers = None

    def __init__(
        self, mapping: Mapping, meeting: _Meeting, mail: dict[tuple[int, int], Queue[torch.Tensor | None]]
    ) -> None:
        self.mapping = mapping
        self._meeting = meeting
        self._mail = mail

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Return the sum over the ranks of a stage; see `Communicator`."""
        return ordered_sum(self._meeting.exchange(self.mapping.tp_rank, x))

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        """Return the tensors of the ranks of a stage beside each other; see `Communicator`."""
        return torch.cat(self._meeting.exchange(self.mapping.tp_rank, x), -1)

    def send(self, x: torch.Tensor, rank: int) -> None:
        """Leave a copy of a tensor for a rank of another stage."""
        self._mail[self.mapping.rank, rank].put(x.clone())

    def recv(self, shape: Sequence[int], dtype: torch.dtype, rank: int, device: torch.device) -> torch.Tensor:
        """Wait for the tensor that a rank of another stage leaves."""
        x = self._mail[rank, self.mapping.rank].get(timeout=_TIMEOUT_S)
        if x is None:
            raise threading.BrokenBarrierError
        assert x.shape == tuple(shape) and x.dtype == dtype, f"rank {rank} sent {x.dtype}{list(x.shape)}"
        return x.to(device)

    def abort(self) -> None:
        """Let all who wait for this rank, or will, fail."""
        self._meeting.abort()
        for (source, _), queue in self._mail.items():
            if source == self.mapping.rank:
                queue.put(None)


def thread_communicators(tp_size: int = 1, pp_size: int = 1) -> list[ThreadCommunicator]:
    """Return the communicators of all ranks, in order, for as many threads."""
    world_size = tp_size * pp_size
    meetings = [_Meeting(tp_size) for _ in range(pp_size)]
    mail: dict[tuple[int, int], Queue[torch.Tensor | None]] = {
        (source, target): Queue() for source in range(world_size) for target in range(world_size)
    }
    mappings = [Mapping(world_size, rank, tp_size=tp_size, pp_size=pp_size) for rank in range(world_size)]
    return [ThreadCommunicator(mapping, meetings[mapping.pp_rank], mail) for mapping in mappings]


def run_threads(communicators: Sequence[ThreadCommunicator], work: Callable[[Communicator], T]) -> list[T]:
    """Run the same function for every rank, each in a thread of its own under its communicator.

    Args:
        communicators: Of all ranks.
        work: Called with each.

    Returns:
        What it returned, in the order of ranks.

    Raises:
        Exception: What the first rank raised that did not merely wait for another.
    """

    def one(communicator: ThreadCommunicator) -> T:
        try:
            with use(communicator):
                return work(communicator)
        except BaseException:
            communicator.abort()
            raise

    with ThreadPoolExecutor(len(communicators), thread_name_prefix="rank") as pool:
        futures = [pool.submit(one, communicator) for communicator in communicators]
        errors = [error for future in futures if (error := future.exception()) is not None]
    if errors:
        raise min(errors, key=_is_consequence)
    return [future.result() for future in futures]


def _is_consequence(error: BaseException) -> bool:
    """Return whether a rank failed because another did."""
    return isinstance(error, (threading.BrokenBarrierError, Empty))
