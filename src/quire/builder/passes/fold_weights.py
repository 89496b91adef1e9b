"""Store what weights become instead of what they were, once something more than their layout has changed.

before                                     after
  w                                          w.weight: int8    w.scales: float32
  |                                           \\                /
  quantize_weight                              linear_w8a16
   \\ weight   / scales
    linear_w8a16

A plan whose weights are only joined, cut or transposed is left as it is: that is done when it is loaded, and its
weights can stay where they are.
"""

from __future__ import annotations

from torch import fx

from quire.graph.matches import Matches
from quire.graph.network import Network, Tensor
from quire.graph.nodes import op_of, spec
from quire.ops.spec import TensorSpec, dtype_name
from quire.plan.folding import FoldedWeights, constant_nodes
from quire.plan.weight_source import WeightSource

LAYOUT = frozenset({"view", "permute", "transpose", "slice", "concat", "item", "expand"})
"""Ops that move elements without changing them."""


def fold_weights(network: Network, source: WeightSource) -> tuple[Matches, WeightSource]:
    """Replace constant calls by weights of their own.

    Args:
        network: Mutated.
        source: Its weights.

    Returns:
        The matches, and the weights of the network as it is now: computed from `source` when they are read.
    """
    constants = constant_nodes(network)
    roots = [node for node in network.calls() if node in constants and _is_root(network, node, constants)]
    below = _with_all_below(roots)
    if all(node.op == "get_attr" or op_of(node).name in LAYOUT for node in below):
        return Matches(missed={node.name: "only its layout changes: done when loaded" for node in roots}), source
    kept = [node for node in network.graph.nodes if node.op == "get_attr" and not set(node.users) <= constants]
    recipe, copies = _copy(network, below | set(kept))
    renamed = _replace(network, roots)
    for node, name in [(node, str(node.target)) for node in kept] + renamed:
        recipe.mark_output(Tensor.of(recipe, copies[node]), name)
    return Matches([name for _, name in renamed]), FoldedWeights(recipe, source)


def _is_root(network: Network, node: fx.Node, constants: set[fx.Node]) -> bool:
    """Return whether a constant is used as it is, and made of weights (a table of angles is made at load)."""
    is_used = any(user not in constants for user in node.users) or node in network.outputs.values()
    return is_used and isinstance(node.meta["spec"], TensorSpec) and _has_weights(node)


def _has_weights(node: fx.Node) -> bool:
    return node.op == "get_attr" or any(_has_weights(used) for used in node.all_input_nodes)


def _with_all_below(roots: list[fx.Node]) -> set[fx.Node]:
    """Return nodes and everything that they are made of."""
    found: set[fx.Node] = set()
    waiting = list(roots)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return found


def _copy(network: Network, wanted: set[fx.Node]) -> tuple[Network, dict[fx.Node, fx.Node]]:
    """Return a network of some constant nodes, and each one's copy."""
    recipe = Network(f"weights of {network.name}")
    copies: dict[fx.Node, fx.Node] = {}
    for node in network.graph.nodes:
        if node not in wanted:
            continue
        if node.op == "get_attr":
            declared = spec(node)
            copies[node] = recipe.add_weight(str(node.target), dtype_name(declared.dtype), declared.shape).node
        else:
            arguments = {name: fx.map_arg(value, lambda used: copies[used]) for name, value in node.kwargs.items()}
            copies[node] = recipe.insert(op_of(node), arguments, node.name)
    return recipe, copies


def _replace(network: Network, roots: list[fx.Node]) -> list[tuple[fx.Node, str]]:
    """Put new weights in the place of constants, drop what made them; returns each constant with its weight's name."""
    below = _with_all_below(roots)
    fresh: list[tuple[fx.Node, fx.Node]] = []
    for root in roots:
        with network.graph.inserting_before(root):
            declared = spec(root)
            weight = network.add_weight(f"folded.{root.name}", dtype_name(declared.dtype), declared.shape).node
        network.replace(root, weight)
        fresh.append((root, weight))
    for node in reversed(list(network.graph.nodes)):
        if node in below and not node.users:
            network.erase(node)
    return [(root, network.rename_weight(weight, _name(root))) for root, weight in fresh]


def _name(root: fx.Node) -> str:
    return str(root.meta.get("weight_name") or root.name)
