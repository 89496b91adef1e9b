"""The parts into which a cluster deals out a model, and the cluster that they make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from quire.core.config import EngineConfig, SchedulerConfig
from quire.core.mapping import Mapping
from quire.distributed.tensors.communicator import WHOLE_BYTES
from quire.plan.plan import Plan
from quire.sharding.cost import pp_partition_of, rank_cost
from quire.sharding.shard import shard
from quire.simulation.cluster import Cluster
from quire.simulation.settings import SimulationConfig
from quire.simulation.timing.costs import network_costs
from quire.simulation.timing.exchanges import Exchanges
from quire.simulation.timing.hardware import Hardware, link_named
from quire.simulation.timing.pace import Pace
from quire.simulation.timing.times import Stage, StepTimes


class Part(NamedTuple):
    """What one rank of a stage executes; the others of the stage do the same with other slices.

    Attributes:
        plan: Of the rank.
        mapping: Which rank it is.
    """

    plan: Plan
    mapping: Mapping


def parts_of(plan: Plan, config: EngineConfig, gpus_per_node: int) -> list[Part]:
    """Return the first rank's part of each stage; nothing of the weights is read.

    Args:
        plan: Of the whole model.
        config: On how many ranks it is to run.
        gpus_per_node: Devices of a host.

    Raises:
        ConfigError: The model cannot be dealt out like that.
    """
    tp_size, pp_size = config.tensor_parallel_size, config.pipeline_parallel_size
    partition = pp_partition_of(plan, config)
    mappings = [
        Mapping(
            tp_size * pp_size, stage * tp_size, gpus_per_node, tp_size=tp_size, pp_size=pp_size, pp_partition=partition
        )
        for stage in range(pp_size)
    ]
    return [Part(shard(plan, mapping), mapping) for mapping in mappings]


def make_cluster(
    parts: Sequence[Part], scheduler: SchedulerConfig, pace: Pace, hardware: Hardware, settings: SimulationConfig
) -> Cluster:
    """Return a cluster of replicas of a model.

    Args:
        parts: Of the model.
        scheduler: What each replica's scheduler decides by.
        pace: How fast a device is.
        hardware: The device, whose own link connects those of a host unless the settings name another.
        settings: How many replicas there are, and what connects them.

    Raises:
        ConfigError: There is no such link.
    """
    inside, between = link_named(settings.link or hardware.link), link_named(settings.network)
    whole_bytes = WHOLE_BYTES[hardware.kind]
    stages = [
        Stage(
            network_costs(part.plan.network), Exchanges(part.plan.network, part.mapping, inside, between, whole_bytes)
        )
        for part in parts
    ]
    return Cluster(
        config=scheduler,
        times=StepTimes(stages, pace),
        num_replicas=settings.replicas,
        num_devices=parts[0].mapping.world_size,
        router=settings.router,
        ranks=tuple(rank_cost(*part) for part in parts),
    )
