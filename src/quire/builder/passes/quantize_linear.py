"""Replace linear layers by quantized ones, their weights by what rounds them.

before                  after w8a8                                after w8a16, w4a16
  x                       x                  w                      x     w
  |    w                  |                  |                      |     |
  |   /                   quantize_rows      quantize_weight        |     quantize_weight
  linear                   \\ x, scales      / weight, scales        \\   / weight, scales(, zero points)
                            linear_w8a8                              linear_w8a16
"""

from __future__ import annotations

from typing import Any

from torch import fx

from quire.graph.matches import Matches
from quire.graph.network import Network
from quire.graph.nodes import is_call, results, spec
from quire.ops.registry import OPS
from quire.ops.spec import dtype_name
from quire.quantization.layers import base_name
from quire.quantization.recipe import LinearRecipe, Recipe

_EIGHT_BITS = {"w8a16": "int8", "w8a8": "int8", "fp8": "float8_e4m3fn"}
_PARTS = ("weight", "scales", "zero_points")


def quantize_linear(network: Network, recipe: Recipe) -> Matches:
    """Quantize the linear layers of a recipe; a layer keeps its node's name."""
    matches = Matches(missed=dict(recipe.skipped))
    rows: dict[fx.Node, list[fx.Node]] = {}
    for node in network.calls():
        if node.name not in recipe.linears:
            continue
        linear = recipe.linears[node.name]
        parts = _quantized_weight(network, node, linear, recipe)
        if linear.scheme in ("w8a8", "fp8"):
            x = quantized_rows(network, node, _EIGHT_BITS[linear.scheme], rows)
            arguments = {**_named("x", "x_scales", values=x), **_named("weight", "scales", values=parts),
                         "bias": node.kwargs["bias"], "dtype": dtype_name(spec(node).dtype)}  # fmt: skip
            become(node, "linear_w8a8", arguments)
        else:
            kept = {"x": node.kwargs["x"], **_named(*_PARTS, values=parts), "bias": node.kwargs["bias"]}
            become(node, f"linear_{linear.scheme}", kept)
        matches.done.append(node.name)
    return matches


def _named(*names: str, values: list[fx.Node]) -> dict[str, fx.Node]:
    return dict(zip(names, values, strict=False))


def become(node: fx.Node, op: str, arguments: dict[str, Any]) -> None:
    """Turn a call into one of another op with the same result.

    Args:
        node: The call.
        op: Name of the other op.
        arguments: By name; what is left out takes its default.
    """
    node.target = OPS[op]
    node.kwargs = OPS[op].bind((), arguments)


def _quantized_weight(network: Network, node: fx.Node, linear: LinearRecipe, recipe: Recipe) -> list[fx.Node]:
    """Add the nodes that round a layer's weight; returns its parts."""
    base, weight = base_name(node), node.kwargs["weight"]
    assert isinstance(weight, fx.Node)
    dtype = dtype_name(spec(weight).dtype)
    if is_call(weight, "cast"):  # what only rounds before rounding again
        weight = weight.kwargs["x"]
    with network.graph.inserting_before(node):
        if linear.scheme == "w4a16":
            options = {"weight": weight, "group_size": linear.group_size, "dtype": dtype}
            if linear.shares is not None:
                shape = tuple(recipe.tensors[linear.shares].shape)
                options["shares"] = network.add_weight(linear.shares, "float32", shape).node
            quantized = network.insert(OPS["quantize_weight_int4"], options, f"{node.name}_int4")
        else:
            options = {"weight": weight, "dtype": _EIGHT_BITS[linear.scheme]}
            quantized = network.insert(OPS["quantize_weight"], options, f"{node.name}_{options['dtype']}")
        parts = [network.item(quantized, i, f"{node.name}_{_PARTS[i]}") for i in range(len(results(quantized)))]
    for part, name in zip(parts, _PARTS, strict=False):
        part.meta["weight_name"] = f"{base}.{name}"
    return parts


def quantized_rows(network: Network, node: fx.Node, dtype: str, rows: dict[fx.Node, list[fx.Node]]) -> list[fx.Node]:
    """Add the nodes that round a layer's input unless a layer before did.

    Args:
        network: Mutated.
        node: The layer.
        dtype: To round to.
        rows: What rounds an input, by that input; extended.

    Returns:
        The quantized rows and their scales.
    """
    x = node.kwargs["x"]
    assert isinstance(x, fx.Node)
    if x not in rows:
        with network.graph.inserting_after(x):
            made = network.insert(OPS["quantize_rows"], {"x": x, "dtype": dtype}, f"{node.name}_rows")
        with network.graph.inserting_after(made):
            scales = network.item(made, 1, f"{node.name}_x_scales")
        with network.graph.inserting_after(made):
            rows[x] = [network.item(made, 0, f"{node.name}_x"), scales]
    return rows[x]
