"""Where a network's bytes are, layer by layer and part by part, from its specs alone: nothing is read."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import fx

from quire.graph.network import Network
from quire.graph.nodes import op_of, results, spec
from quire.ops.spec import dtype_name, num_bytes
from quire.plan.folding import constant_nodes

_FLOAT8 = "float8_e4m3fn"
_STORED = ("weight", "scales", "zero_points", "bias")


def weight_bytes(network: Network) -> int:
    """Return the bytes of all weights as they are stored."""
    return sum(num_bytes(declared) for declared in network.weights.values())


def count_ops(network: Network) -> dict[str, int]:
    """Return how often each op is called in a step, the most frequent first; what is folded at load does not count."""
    constants = constant_nodes(network)
    calls = (op_of(node).name for node in network.calls() if node not in constants)
    return dict(Counter(name for name in calls if name != "item").most_common())


def linear_layers(network: Network) -> dict[str, dict[str, Any]]:
    """Return every matrix product with a weight: scheme, sizes, bytes of all it keeps.

    A layer that is not quantized has the dtype of its weight for a scheme.
    """
    found = {}
    for node in network.calls():
        weight = node.kwargs.get("weight")
        if not op_of(node).name.startswith("linear") or not isinstance(weight, fx.Node):
            continue
        x = node.kwargs["x"]
        assert isinstance(x, fx.Node)
        kept = [node.kwargs.get(name) for name in _STORED]
        found[node.name] = {
            "scheme": scheme(node),
            "in_features": spec(x).shape[-1],
            "out_features": results(node)[0].shape[-1],
            "bytes": sum(num_bytes(spec(part)) for part in kept if isinstance(part, fx.Node)),
        }
    return found


def scheme(node: fx.Node) -> str:
    """Return how a call of a linear op is quantized: "w8a8", "fp8", ..., or its weight's dtype if it is not."""
    kind, weight = op_of(node).name.removeprefix("linear").removeprefix("_"), node.kwargs["weight"]
    assert isinstance(weight, fx.Node)
    dtype = dtype_name(spec(weight).dtype)
    if dtype == _FLOAT8:
        return "fp8" if kind == "w8a8" else f"fp8 {kind}"
    return kind or dtype


def byte_parts(network: Network) -> list[dict[str, Any]]:
    """Return the weights by what they are for and their dtype, as they are stored, the largest first.

    Returns:
        Records of part, dtype, tensors (how many) and bytes.
    """
    constants = constant_nodes(network)
    tensors: Counter[tuple[str, str]] = Counter()
    sizes: Counter[tuple[str, str]] = Counter()
    for node in network.graph.nodes:
        if node.op == "get_attr":
            key = _part(_uses(node, constants)), dtype_name(spec(node).dtype)
            tensors[key] += 1
            sizes[key] += num_bytes(spec(node))
    return [
        {"part": part, "dtype": dtype, "tensors": tensors[part, dtype], "bytes": size}
        for (part, dtype), size in sizes.most_common()
    ]


def _uses(node: fx.Node, constants: set[fx.Node]) -> list[tuple[fx.Node, str]]:
    """Return the executed calls that a weight ends in, each with the name of the argument."""
    found = []
    for user in node.users:
        if user in constants:
            found += _uses(user, constants)
        else:
            found += [(user, name) for name, value in user.kwargs.items() if value is node]
    return found


def _part(uses: list[tuple[fx.Node, str]]) -> str:
    ops = {op_of(user).name: (user, argument) for user, argument in uses}
    linear = next((use for op, use in ops.items() if op.startswith("linear")), None)
    if "embedding" in ops:
        return "embedding" if linear is None else "embedding, also the output projection"
    if linear is not None:
        role = {"weight": "weights", "zero_points": "zero points", "bias": "biases"}.get(linear[1], linear[1])
        return f"linear {scheme(linear[0])}: {role}"
    if any("norm" in op for op in ops):
        return "norms"
    return "KV cache scales" if any("kv" in op or op == "attention" for op in ops) else "other"
