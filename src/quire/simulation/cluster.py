"""`simulate`: a load on a cluster of replicas, in the order of a virtual clock."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from quire.core.config import SchedulerConfig, at_least
from quire.sharding.cost import RankCost
from quire.simulation.load import PlannedRequest
from quire.simulation.replica import Replica, SimulatedRequest
from quire.simulation.router import make_router
from quire.simulation.timing.times import StepTimes


@dataclass(frozen=True, slots=True)
class Cluster:
    """Replicas that are alike behind one door.

    Attributes:
        config: Of the scheduler of each.
        times: What a step takes on one.
        num_replicas: How many there are.
        num_devices: Devices of each.
        router: One of `ROUTERS`.
        ranks: What the first rank of each stage holds and exchanges.
    """

    config: SchedulerConfig
    times: StepTimes
    num_replicas: int = 1
    num_devices: int = 1
    router: str = "least_load"
    ranks: tuple[RankCost, ...] = ()

    def __post_init__(self) -> None:
        at_least("replicas", self.num_replicas, 1)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a load.

    Attributes:
        requests: In order of arrival.
        replicas: As they are at the end.
        end_s: When the last request ended.
    """

    requests: list[SimulatedRequest]
    replicas: list[Replica]
    end_s: float


def simulate(cluster: Cluster, load: Sequence[PlannedRequest]) -> Outcome:
    """Put a load on a cluster; the same for the same arguments.

    Replicas know nothing of each other: each is stepped up to the next arrival, which the router then sees as it is.

    Args:
        cluster: The cluster.
        load: Requests, in any order.

    Raises:
        ConfigError: There is no such router.
    """
    replicas = [Replica(i, cluster.config, cluster.times) for i in range(cluster.num_replicas)]
    router = make_router(cluster.router, replicas, cluster.config.block_size, cluster.config.num_blocks)
    requests = [SimulatedRequest(i, item) for i, item in enumerate(sorted(load, key=lambda item: item.due_s))]
    busy: list[tuple[float, int]] = []
    for request in requests:
        _advance(replicas, busy, request.planned.due_s)
        replica = replicas[router(request.planned)]
        was_idle = replica.is_idle
        replica.add(request)
        if was_idle:
            heapq.heappush(busy, (replica.now_s, replica.number))
    _advance(replicas, busy, float("inf"))
    return Outcome(requests, replicas, max((request.last_s for request in requests), default=0.0))


def _advance(replicas: Sequence[Replica], busy: list[tuple[float, int]], until_s: float) -> None:
    """Let all replicas do what they begin before a time."""
    while busy and busy[0][0] < until_s:
        _, number = busy[0]
        replica = replicas[number]
        replica.step()
        if replica.is_idle:
            heapq.heappop(busy)
        else:
            heapq.heapreplace(busy, (replica.now_s, number))
