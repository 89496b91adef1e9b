"""Processes that a launcher such as `torchrun` has started: the first drives, the others are workers of its."""

from __future__ import annotations

from collections.abc import Callable

from torch.distributed.rendezvous import rendezvous

from quire.core.env import LaunchedRank
from quire.distributed.channel import Channel
from quire.distributed.endpoint import Door, Endpoint, knock

_KEY = "quire/driver"
_TIMEOUT_S = 300.0  # the slowest host of a cluster reads its libraries


class Launched:
    """The processes of a launcher, which find each other through its store.

    Args:
        rank: What it said of this one.
    """

    def __init__(self, rank: LaunchedRank) -> None:
        self._rank = rank
        self._store, _, _ = next(iter(rendezvous("env://", rank=rank.rank, world_size=rank.world_size)))

    def gather(self, spawn_first: Callable[[], Endpoint]) -> list[Endpoint]:
        """Return the endpoints of all ranks, as their driver. The first rank's worker is a child of this process.

        Args:
            spawn_first: Starts it.

        Raises:
            WorkerError: Not all came in time.
        """
        door = Door(self._rank.host)
        try:
            self._store.set(_KEY, f"{door.secret} {door.address}")
            return [spawn_first(), *door.admit(set(range(1, self._rank.world_size)), _TIMEOUT_S)]
        finally:
            door.close()

    def follow(self) -> tuple[Channel, Channel]:
        """Return the channels to the driver, for commands and for health, as one of its workers."""
        secret, address = self._store.get(_KEY).decode().split()
        return knock(address, secret, self._rank.rank)
