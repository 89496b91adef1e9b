"""Compute gate and up projection of an MLP by one product.

before                                 after
  x                                      x     concat(w_gate, w_up)
  |-- linear (w_gate) -- silu            |    /
  |                        |             linear
  |-- linear (w_up) ------ mul           |-- slice (first half) -- silu
                                         |                          |
                                         |-- slice (second half) -- mul
"""

from __future__ import annotations

from collections.abc import Collection

from torch import fx

from quire.builder.fusions.joining import JOINED_ARGUMENTS, join, why_not_joined
from quire.graph.matches import Matches
from quire.graph.network import Network
from quire.graph.nodes import is_call, spec
from quire.ops.registry import OPS
from quire.plan.folding import constant_nodes

ACTIVATIONS = ("silu", "gelu", "relu")


def fuse_gate_up(network: Network) -> Matches:
    """Join the two projections of every gated MLP."""
    matches = Matches()
    for product in network.calls():
        pair = _gate_and_up(product)
        if pair is None:
            continue
        reason = _why_not(pair, constant_nodes(network))
        if reason is not None:
            matches.missed[product.name] = reason
        else:
            matches.done.append(_fuse(network, *pair))
    return matches


def _gate_and_up(product: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Return the two projections of `act(gate) * up`, whichever way round."""
    if not is_call(product, "mul"):
        return None
    for gated, up in ((product.kwargs["x"], product.kwargs["y"]), (product.kwargs["y"], product.kwargs["x"])):
        if is_call(gated, *ACTIVATIONS) and is_call(up, *JOINED_ARGUMENTS):
            gate = gated.kwargs["x"]
            if is_call(gate, *JOINED_ARGUMENTS):
                return gate, up
    return None


def _why_not(pair: tuple[fx.Node, fx.Node], constants: Collection[fx.Node]) -> str | None:
    if any(len(part.users) > 1 for part in pair):
        return "a projection is used elsewhere, too"
    if spec(pair[0]).shape != spec(pair[1]).shape:
        return "gate and up have several widths"
    return why_not_joined(pair, constants)


def _fuse(network: Network, gate: fx.Node, up: fx.Node) -> str:
    joined = join(network, (gate, up), "gate_up_proj")
    width, after = int(spec(gate).shape[-1]), joined
    for part, name, start in ((gate, "gate", 0), (up, "up", width)):
        with network.graph.inserting_after(after):
            arguments = {"x": joined, "dim": -1, "start": start, "stop": start + width}
            after = network.insert(OPS["slice"], arguments, f"{joined.name.removesuffix('gate_up_proj')}{name}")
        network.replace(part, after)
        network.erase(part)
    return joined.name
