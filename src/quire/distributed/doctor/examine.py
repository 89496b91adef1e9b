"""`examine`: what all ranks do together; the first one gets the diagnosis."""

from __future__ import annotations

import socket
import time
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from itertools import chain
from typing import TypeVar

import msgspec
import torch
from torch._C._distributed_c10d import TCPStore
from torch.distributed import DistError, DistStoreError

from quire.core.env import LaunchedRank
from quire.core.errors import ConfigError
from quire.distributed.doctor.diagnosis import Finding, Pair, Reach, connected, diagnose
from quire.distributed.doctor.facts import Facts, gather_facts
from quire.distributed.doctor.pairs import all_reduce_pair, rounds
from quire.distributed.doctor.responder import Responder, reach

T = TypeVar("T")

_STAGE_S = 40.0  # for what takes milliseconds when all is well, and some timeouts of 15 s when it is not
_MAX_CONNECTIONS = 32


def examine(launched: LaunchedRank, timeout_s: float) -> list[Finding]:
    """Examine a cluster together with all its other ranks.

    Args:
        launched: Which rank this is.
        timeout_s: How long to wait for ranks that have not come yet.

    Returns:
        The diagnosis; empty on all ranks but the first.

    Raises:
        ConfigError: The first rank cannot be reached, or its address is none of this host.
    """
    stage = _Stage(launched, timeout_s)
    with Responder(stage.address) as responder:
        facts = stage.share("facts", gather_facts(launched.rank, stage.address, responder.port), Facts, timeout_s)
        stage.ranks = [each.rank for each in facts]
        others = [each for each in facts if each.rank != launched.rank]
        with ThreadPoolExecutor(_MAX_CONNECTIONS) as executor:
            tries = list(executor.map(lambda each: reach(launched.rank, each), others))
        reaches = list(chain(*stage.share("reaches", tries, list[Reach], _STAGE_S)))
        stage.tell("pairs", list(_meet(stage, launched, connected(stage.ranks, reaches))))
        if launched.rank:
            return []
        pairs = list(chain(*stage.collect("pairs", list[Pair], _STAGE_S)))
    return diagnose(launched.world_size, facts, reaches, pairs)


def _meet(stage: _Stage, launched: LaunchedRank, links: Collection[tuple[int, int]]) -> Iterable[Pair]:
    """Yield the all-reduces of this rank with each other one that it is connected with."""
    device = torch.device("cuda", launched.local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda" and launched.local_rank >= torch.cuda.device_count():
        error = f"it has no GPU of its own: {torch.cuda.device_count()} for {launched.local_rank + 1} ranks or more"
        yield from (Pair(*pair, error=error) for pair in links if launched.rank in pair)
        return
    for meetings in rounds(stage.ranks):
        for pair in meetings:
            if launched.rank in pair and pair in links:
                yield all_reduce_pair(stage.store, launched.rank, pair, stage.address, device)


class _Stage:
    """What ranks tell each other, through a store at the first one.

    Attributes:
        address: This host's.
        store: At the first rank.
        ranks: Those from whom something is expected.
    """

    def __init__(self, launched: LaunchedRank, timeout_s: float) -> None:
        self._launched = launched
        self.ranks: Sequence[int] = range(launched.world_size)
        self.address = _own_address(launched, timeout_s)
        try:
            self.store = TCPStore(
                launched.host,
                launched.port,
                is_master=launched.rank == 0 and not launched.has_store,
                wait_for_workers=False,
                timeout=timedelta(seconds=timeout_s),
            )
        except DistError as error:
            raise _unreachable(launched, str(error).splitlines()[0]) from None

    def tell(self, name: str, what: object) -> None:
        """Tell the first rank something.

        Raises:
            ConfigError: It has ended.
        """
        try:
            self.store.set(f"{name}-{self._launched.rank}", msgspec.json.encode(what).decode())
        except DistError:
            raise self._abandoned() from None

    def share(self, name: str, mine: T, kind: type[T], timeout_s: float) -> list[T]:
        """Tell all ranks something, and return what all have told in time; the first one decides who has.

        Raises:
            ConfigError: The first rank has ended.
        """
        self.tell(name, mine)
        if self._launched.rank == 0:
            found = self.collect(name, kind, timeout_s)
            self.store.set(name, msgspec.json.encode(found).decode())
            return found
        try:
            self.store.wait([name], timedelta(seconds=timeout_s + _STAGE_S))
            everything = self.store.get(name)
        except DistError:
            raise self._abandoned() from None
        return [msgspec.convert(each, kind) for each in msgspec.json.decode(everything)]

    def collect(self, name: str, kind: type[T], timeout_s: float) -> list[T]:
        """Return what the ranks have told by then, in order, as the first rank."""
        until_s, found = time.monotonic() + timeout_s, []
        for rank in self.ranks:
            key, left_s = f"{name}-{rank}", max(0.001, until_s - time.monotonic())
            with suppress(DistStoreError):  # too late
                self.store.wait([key], timedelta(seconds=left_s))
                found.append(msgspec.json.decode(self.store.get(key), type=kind))
        return found

    def _abandoned(self) -> ConfigError:
        rank = self._launched.rank
        return ConfigError(f"rank {rank}: expected the first rank to wait for it, got: it has ended. It may say why.")


def _own_address(launched: LaunchedRank, timeout_s: float) -> str:
    """Return the address of this host that the first rank sees, once that one can be reached."""
    if launched.rank == 0:
        return socket.gethostbyname(launched.host)
    until_s = time.monotonic() + timeout_s
    while True:
        try:
            with socket.create_connection((launched.host, launched.port), 3.0) as connection:
                return str(connection.getsockname()[0])
        except OSError as error:
            if time.monotonic() > until_s:
                raise _unreachable(launched, error.strerror or str(error)) from None
            time.sleep(0.2)


def _unreachable(launched: LaunchedRank, reason: str) -> ConfigError:
    where = f"{launched.host}:{launched.port}"
    if launched.rank == 0:
        return ConfigError(f"port: expected to listen at {where}, got: {reason}. Take another port or address.")
    return ConfigError(
        f"rank {launched.rank} on {socket.gethostname()}: expected the first rank at {where}, got: {reason}. Is it "
        "running there, and may this host connect to that port?"
    )
