"""All-reduces of two ranks at a time: every pair once, in rounds in which each rank is in one pair."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from torch._C import _distributed_c10d as c10d
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed import DistError

from quire.distributed.doctor.diagnosis import Pair

_SMALL, _LARGE = 8, 1 << 20  # float32: latency; 4 MiB, some layers' worth of activations
_TIMES = 3
_TIMEOUT = timedelta(seconds=15)
_PARTNER_TIMEOUT = timedelta(seconds=25)  # it may wait for another, which fails


def rounds(ranks: Sequence[int]) -> list[list[tuple[int, int]]]:
    """Return who meets whom in which round, as in a tournament (the circle method).

    Example:
        >>> rounds([0, 1, 2])
        [[(1, 2)], [(0, 2)], [(0, 1)]]
    """
    circle: list[int | None] = [*ranks, *([None] if len(ranks) % 2 else [])]
    table = []
    for _ in range(len(circle) - 1):
        half = len(circle) // 2
        meetings = zip(circle[:half], reversed(circle[half:]), strict=True)
        table.append(sorted((min(a, b), max(a, b)) for a, b in meetings if a is not None and b is not None))
        circle = [circle[0], circle[-1], *circle[1:-1]]
    return table


def all_reduce_pair(store: Store, rank: int, pair: tuple[int, int], address: str, device: torch.device) -> Pair:
    """Return what comes of an all-reduce with another rank, which calls this at the same time.

    Args:
        store: Of all ranks.
        rank: This one.
        pair: This and the other one, the lower first.
        address: Of this rank, which the other is to connect to.
        device: Where the tensors lie: a GPU for nccl, the CPU for gloo.
    """
    other = pair[1 - pair.index(rank)]
    try:
        store.set(_seat(pair, rank), "here")
        store.wait([_seat(pair, other)], _PARTNER_TIMEOUT)
    except DistError:
        return Pair(*pair, error=f"rank {other} did not come to it")
    try:
        group = _group(PrefixStore(f"pair-{pair[0]}-{pair[1]}", store), pair.index(rank), address, device)
        latency_s = _seconds(group, _SMALL, device)
        large_s = _seconds(group, _LARGE, device)
    except Exception as error:  # whatever a library says of a broken link, it is what is to be told
        return Pair(*pair, error=f"{type(error).__name__}: {str(error).splitlines()[0][:200]}")
    return Pair(*pair, latency_s=latency_s, bytes_per_s=_LARGE * 4 / large_s)


def _seat(pair: tuple[int, int], rank: int) -> str:
    return f"pair-{pair[0]}-{pair[1]}-{rank}"


def _group(store: Store, place: int, address: str, device: torch.device) -> Any:
    """Return a group of two; torch's stubs lack half of what such groups have."""
    library: Any = c10d
    if device.type == "cuda":
        options = library.ProcessGroupNCCL.Options()
        options._timeout = _TIMEOUT
        return library.ProcessGroupNCCL(store, place, 2, options)
    options = library.ProcessGroupGloo._Options()
    options._timeout = _TIMEOUT
    options._devices = [library.ProcessGroupGloo.create_device(hostname=address)]
    return library.ProcessGroupGloo(store, place, 2, options)


def _seconds(group: Any, count: int, device: torch.device) -> float:
    """Return the best time of some all-reduces, each of which is checked."""
    best = float("inf")
    for number in range(_TIMES):
        x = torch.full((count,), float(number + 1), device=device)
        began_s = time.perf_counter()
        group.allreduce([x]).wait()
        total = float(x[-1])  # waits for a GPU
        best = min(best, time.perf_counter() - began_s)
        if total != 2 * (number + 1) or float(x[0]) != total:
            raise ValueError(f"the sum of {number + 1} and {number + 1} came out as {total:g}")
    return best
