"""Move range between activations and weights, so that both round with less loss; the result stays the same.

before                              after
  x                                   x     w_norm / s
  |                                   |    /
  norm (w_norm)                       norm
  |                                   |     w * s
  linear (w)                          |    /
                                      linear

Where the input is gated or rectified, the rows of the projection before are divided instead of a norm's weight. All of
it is nodes over weights, folded when they are read.
"""

from __future__ import annotations

import torch
from torch import fx

from quire.graph.matches import Matches
from quire.graph.network import Network
from quire.graph.nodes import is_call, spec
from quire.ops.registry import OPS
from quire.ops.spec import dtype_name
from quire.quantization.recipe import Recipe
from quire.quantization.smoothing import absorber


def smooth(network: Network, recipe: Recipe) -> Matches:
    """Apply the factors of a recipe."""
    matches = Matches(missed=dict(recipe.unsmoothed))
    for node in network.calls():
        linear = recipe.linears.get(node.name)
        if linear is None or linear.smooth is None:
            continue
        x = node.kwargs["x"]
        assert isinstance(x, fx.Node)
        source = absorber(x, node)
        assert source is not None, f"calibration found factors for {node}, which nothing can take"
        width = recipe.tensors[linear.smooth].shape[0]
        with network.graph.inserting_before(source):
            factors = network.add_weight(linear.smooth, "float32", (width,)).node
        _scale(network, node, "weight", "mul", factors)
        for name in ("weight", "bias"):
            if isinstance(source.kwargs.get(name), fx.Node):
                _divide(network, source, name, factors, is_gated=is_call(x, "silu_mul"))
        matches.done.append(node.name)
    return matches


def _divide(network: Network, source: fx.Node, name: str, factors: fx.Node, is_gated: bool) -> None:
    """Divide a norm's weight, or the rows (of the second half, if gated) of a projection's weight and bias."""
    if not is_call(source, "linear"):
        _scale(network, source, name, "div", factors)
        return
    with network.graph.inserting_before(source):
        column = network.insert(OPS["view"], {"x": factors, "shape": [-1, 1] if name == "weight" else [-1]})
    if not is_gated:
        _scale(network, source, name, "div", column)
        return
    old = source.kwargs[name]
    assert isinstance(old, fx.Node)
    width, total = spec(factors).shape[0], spec(old).shape[0]
    with network.graph.inserting_before(source):
        gate = network.insert(OPS["slice"], {"x": old, "dim": 0, "start": 0, "stop": width})
        up = network.insert(OPS["slice"], {"x": old, "dim": 0, "start": width, "stop": total})
        scaled = _scaled(network, up, "div", column)
        joined = network.insert(OPS["concat"], {"tensors": [gate, scaled], "dim": 0})
    _keep_name(old, joined)
    source.update_kwarg(name, joined)


def _scale(network: Network, node: fx.Node, name: str, op: str, factors: fx.Node) -> None:
    """Multiply or divide an argument of a call."""
    old = node.kwargs[name]
    assert isinstance(old, fx.Node)
    with network.graph.inserting_before(node):
        scaled = _scaled(network, old, op, factors)
    _keep_name(old, scaled)
    node.update_kwarg(name, scaled)


def _scaled(network: Network, weight: fx.Node, op: str, factors: fx.Node) -> fx.Node:
    """Compute in float32, and round to the weight's dtype."""
    if spec(weight).dtype == torch.float32:
        return network.insert(OPS[op], {"x": weight, "y": factors})
    wide = network.insert(OPS["cast"], {"x": weight, "dtype": "float32"})
    product = network.insert(OPS[op], {"x": wide, "y": factors})
    return network.insert(OPS["cast"], {"x": product, "dtype": dtype_name(spec(weight).dtype)})


def _keep_name(old: fx.Node, new: fx.Node) -> None:
    """Let what is computed from a weight be stored under that weight's name."""
    new.meta["weight_name"] = old.meta.get("weight_name") or (str(old.target) if old.op == "get_attr" else old.name)
