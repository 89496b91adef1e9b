"""Make whole what each rank has a share of, once every rank needs it.

before                        after
  linear (some inputs) + bias   linear (some inputs)     linear (some outputs)
  |                             |                        |
                                all_reduce               all_gather
  linear (some outputs)         |
  |                             add (bias)

A bias is added to the sum, once, not to its terms.
"""

from __future__ import annotations

from torch import fx

from quire.graph.matches import Matches
from quire.graph.network import Network
from quire.ops.registry import OPS
from quire.sharding.shard_linear import SHARE, Share


def insert_collectives(network: Network) -> Matches:
    """Insert what the marks of `shard_linear` ask for."""
    matches = Matches()
    for node in network.calls():
        share: Share | None = node.meta.pop(SHARE, None)
        if share is not None and share.width is None:
            matches.done.append(_sum(network, node))
        elif share is not None:
            matches.done.append(_behind(network, node, "all_gather", width=share.width).name)
    return matches


def _sum(network: Network, node: fx.Node) -> str:
    bias = node.kwargs.get("bias")
    if isinstance(bias, fx.Node):
        node.update_kwarg("bias", None)
    total = _behind(network, node, "all_reduce")
    if isinstance(bias, fx.Node):
        _behind(network, total, "add", y=bias)
    return total.name


def _behind(network: Network, node: fx.Node, op: str, **arguments: object) -> fx.Node:
    """Add a call behind a node, for all who used it until now."""
    name = f"{node.name}_{'and_bias' if op == 'add' else 'whole'}"
    with network.graph.inserting_after(node):
        made = network.insert(OPS[op], {"x": node, **arguments}, name)
    network.replace(node, made)
    return made
