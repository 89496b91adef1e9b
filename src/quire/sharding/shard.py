"""`shard`: the part of a Plan that one rank executes."""

from __future__ import annotations

from quire.core.mapping import Mapping
from quire.plan.plan import Plan


def shard(plan: Plan, mapping: Mapping) -> Plan:
    """Return the Plan of one rank: its network, its slices of the weights, its share of heads and layers.

    Args:
        plan: Of the whole model. Not mutated.
        mapping: Which rank, of how many.

    Raises:
        ConfigError: The model cannot be dealt out like that; the message names the sizes that are possible.
    """
    if mapping.world_size == 1:
        return plan
    raise NotImplementedError
