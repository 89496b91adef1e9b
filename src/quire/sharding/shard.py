"""`shard`: the part of a Plan that one rank executes."""

from __future__ import annotations

from dataclasses import replace

from quire.core.errors import ConfigError
from quire.core.mapping import Mapping
from quire.graph.legality import Stage, check_network
from quire.graph.matches import Matches
from quire.graph.text import network_from_text, network_to_text
from quire.ops.registry import OPS
from quire.plan.plan import Plan
from quire.sharding.cut_stages import cut_stages
from quire.sharding.fuse_all_reduce_add_rms_norm import fuse_all_reduce_add_rms_norm, has_kernel
from quire.sharding.insert_collectives import insert_collectives
from quire.sharding.local_weights import LocalWeights
from quire.sharding.round_whole_rows import round_whole_rows
from quire.sharding.shard_linear import shard_linear

SHARDED = Stage("sharded", frozenset(OPS), needs_outputs=False, allows_unused=False)
"""What a rank's network may contain: a stage that is not the last has no output."""


def shard(plan: Plan, mapping: Mapping, device: str | None = None, *, deterministic: bool = True) -> Plan:
    """Return the Plan of one rank: its network, its slices of the weights, its share of heads and layers.

    Its inputs keep their names (`kv_cache.7` is the cache of layer 7 on whichever rank); a rank has only those that it
    needs. A stage that is not the last has no outputs and ends with a `send`, one that is not the first begins with a
    `recv`. Every rank of the last stage has all logits. It runs under `distributed.tensors.communicator.use`.

    Args:
        plan: Of the whole model. Not mutated.
        mapping: Which rank, of how many.
        device: Kind of device that it is for, to fuse what only pays with a kernel of that device; None fuses nothing.
        deterministic: Gather what is rounded, which keeps the bits of one rank. Without it each rank rounds its
            channels by a scale of their own, and products are summed: fewer and smaller exchanges.

    Raises:
        ConfigError: The model cannot be dealt out like that; the message names the sizes that are possible.
    """
    if mapping.world_size == 1:
        return plan
    _check(mapping)
    network, weights = network_from_text(network_to_text(plan.network), plan.network.name), plan.weights
    passes: dict[str, Matches] = {}
    if mapping.pp_size > 1:  # first, since the other passes then have less to do
        passes[cut_stages.__name__] = cut_stages(network, mapping)
    if mapping.tp_size > 1:
        if deterministic:
            passes[round_whole_rows.__name__] = round_whole_rows(network)
        passes[shard_linear.__name__], weights = shard_linear(network, weights, mapping)
        passes[insert_collectives.__name__] = insert_collectives(network)
        if device is not None and has_kernel(device):
            passes[fuse_all_reduce_add_rms_norm.__name__] = fuse_all_reduce_add_rms_norm(network)
    else:
        weights = LocalWeights(network.weights, {}, weights)
    check_network(network, SHARDED)
    report = {**plan.report, "sharding": [matches.as_record(name) for name, matches in passes.items()]}
    local = replace(plan, network=network, weights=weights, report=report)
    num_kv_heads = int(local.kv_cache.shape[2])
    spec = replace(plan.spec, num_layers=len(local.kv_caches), num_kv_heads=num_kv_heads)
    return replace(local, spec=spec)


def _check(mapping: Mapping) -> None:
    for name, size in (("cp_size", mapping.cp_size), ("moe_ep_size", mapping.moe_ep_size)):
        if size != 1:
            raise ConfigError(f"{name}: expected 1, got {size}; share tensors over tp_size and layers over pp_size.")
