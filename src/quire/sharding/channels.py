"""How channels go through an op: which of its operands' channels are its result's, and which it needs all of.

A channel is a place of dimension 1: of [num_tokens, width], or a head of [num_tokens, heads, head_dim], or of a KV
cache [2, num_blocks, num_kv_heads, block_size, head_dim] a head of dimension 2.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from torch import fx

from quire.graph.nodes import is_call, op_of, results, spec
from quire.sharding.pieces import Pieces

LINEAR = ("linear", "linear_w8a16", "linear_w8a8", "linear_w4a16")
ELEMENTWISE = ("add", "sub", "mul", "div")
GATED = ("silu_mul", "silu_mul_quant")
NORMS = ("rms_norm", "layer_norm")
_SAME = ("silu", "gelu", "relu", "cast", "quantize_rows", "rope", *GATED)
WHOLE_ROWS = "whole_rows"
"""Key of a node's `meta`: a call that rounds rows by a scale of all their channels, not of those that a rank has."""
_CACHED = {
    "attention": ("query", "kv_cache"),
    "append_kv": ("key", "value", "kv_cache"),
    "rope_append_kv": ("query", "key", "value", "kv_cache"),
}


@dataclass(slots=True)
class Operands:
    """The operands of a call that are no constants.

    Attributes:
        passed: Their channels are the result's, or each other's.
        contracted: All of their channels are in each of the result's: summed up, or by a scale.
        whole: Needed whole; then the result is whole, too, unless it is `contracted`'s.
        is_result_free: Whether the result says nothing of channels: a scale for a whole row.
    """

    passed: list[fx.Node] = field(default_factory=list)
    contracted: list[fx.Node] = field(default_factory=list)
    whole: list[fx.Node] = field(default_factory=list)
    is_result_free: bool = False


def is_maker(node: fx.Node, constants: Collection[fx.Node]) -> bool:
    """Return whether a call makes each channel of its result of all of its operand: a linear layer, or one that puts
    channels in another order."""
    if is_call(node, *LINEAR):
        return node.kwargs["weight"] in constants
    return is_reordering(node) and node.kwargs["index"] in constants and node.kwargs["x"] not in constants


def is_reordering(node: fx.Node) -> bool:
    """Return whether a call puts the channels of [num_tokens, width] in another order."""
    return is_call(node, "index_select") and len(spec(node).shape) == 2 and axis(node, _x(node)) == 1


def is_rounding(node: fx.Node) -> bool:
    """Return whether a call rounds rows of which it needs all channels."""
    return WHOLE_ROWS in node.meta


def axis(node: fx.Node, of: fx.Node) -> int:
    """Return the dimension that a call names of one of its operands, counted from the front."""
    return int(str(node.kwargs["dim"])) % len(results(of)[0].shape)


def channel_dim(node: fx.Node) -> int:
    """Return the dimension of a node's channels."""
    return 2 if node.op == "placeholder" else 1


def num_channels(node: fx.Node) -> int:
    """Return how many channels a node has; of several results, the first's."""
    size = results(node)[0].shape[channel_dim(node)]
    assert isinstance(size, int), f"{node} has a symbolic number of channels"
    return size


def operands(node: fx.Node, constants: Collection[fx.Node]) -> Operands:
    """Return the operands of a call by what it does with their channels."""
    mine = [used for used in node.all_input_nodes if used not in constants]
    if is_maker(node, constants) or is_rounding(node):
        return Operands(contracted=[_x(node)])
    if is_call(node, *_CACHED):
        return Operands([each for name in _CACHED[op_of(node).name] if isinstance(each := node.kwargs[name], fx.Node)])
    if is_call(node, "item") and is_rounding(_x(node, "results")):
        return Operands(whole=mine)
    if is_call(node, "item") and is_call(_x(node, "results"), "quantize_rows", "silu_mul_quant") and _index(node) == 1:
        return Operands(is_result_free=True)
    if is_call(node, *ELEMENTWISE):
        passed = [used for used in mine if spec(used).shape == spec(node).shape]
        return Operands(passed, whole=[used for used in mine if used not in passed])
    return Operands([mine[0]]) if _passes(node, constants) else Operands(whole=mine)


def _passes(node: fx.Node, constants: Collection[fx.Node]) -> bool:
    """Return whether a call of one operand keeps its channels apart."""
    if is_call(node, *_SAME):
        return _x(node) not in constants and len(results(_x(node))[0].shape) in (2, 3)
    if is_call(node, *NORMS):
        return len(spec(_x(node)).shape) == 3
    if is_call(node, "view"):
        return _x(node) not in constants and _per_channel(node) is not None
    if is_call(node, "slice"):
        return _x(node) not in constants and axis(node, _x(node)) >= 1
    if is_call(node, "split"):
        return axis(node, _x(node)) == 1
    if is_call(node, "index_select"):
        return _x(node) not in constants and axis(node, _x(node)) == 0 and len(spec(node).shape) in (2, 3)
    if is_call(node, "item"):
        return is_call(_x(node, "results"), "quantize_rows", "silu_mul_quant", "split")
    return False


def _x(node: fx.Node, name: str = "x") -> fx.Node:
    value = node.kwargs[name]
    assert isinstance(value, fx.Node), f"{name} of {node} is no node"
    return value


def _index(node: fx.Node) -> int:
    return int(str(node.kwargs["index"]))


def _per_channel(node: fx.Node) -> tuple[int, int] | None:
    """Return how many channels before a view are how many after it, one of both numbers 1; None if they are mixed."""
    before, after = spec(_x(node)).shape, spec(node).shape
    if before[0] != after[0] or not isinstance(before[0], str):
        return None
    if len(before) == 2 and len(after) == 3:
        return int(after[2]), 1
    if len(before) == 3 and len(after) == 2:
        return 1, int(before[2])
    return (1, 1) if before == after else None


@dataclass(frozen=True, slots=True)
class Need:
    """What a call needs of an operand, to make what is needed of its result.

    Attributes:
        operand: The operand.
        pieces: Its channels that are needed.
        window: The channels that the call looks at.
    """

    operand: fx.Node
    pieces: Pieces
    window: tuple[int, int]


def window(node: fx.Node) -> tuple[int, int] | None:
    """Return which of its operand's channels a call takes, if it takes some in a row as they are."""
    if is_call(node, "slice") and axis(node, _x(node)) == 1:
        return int(str(node.kwargs["start"])), int(str(node.kwargs["stop"]))
    if is_call(node, "item") and is_call(pieces := _x(node, "results"), "split"):
        sizes = [int(each.shape[1]) for each in results(pieces)]
        start = sum(sizes[: _index(node)])
        return start, start + sizes[_index(node)]
    return None


def needs_of(node: fx.Node, passed: Collection[fx.Node], needs: dict[fx.Node, Pieces]) -> list[Need]:
    """Return what a call needs of the operands whose channels it passes.

    Args:
        node: The call.
        passed: Those operands.
        needs: By node what is needed of it: of this call's result, and of the KV cache that it writes.
    """
    found = []
    for operand in passed:
        pieces = _needed(node, operand, needs)
        if pieces is not None:
            found.append(Need(operand, pieces, window(node) or (0, num_channels(operand))))
    return found


def _needed(node: fx.Node, operand: fx.Node, needs: dict[fx.Node, Pieces]) -> Pieces | None:
    cache = node.kwargs.get("kv_cache")
    if isinstance(cache, fx.Node) and operand is not node.kwargs.get("query"):
        return kv_heads(needs[node], node, cache) if is_call(node, "attention") else needs.get(cache)
    own = needs.get(node)
    if own is None:
        return None
    if is_call(node, *GATED):
        return own | own.moved(num_channels(node))
    if is_call(node, "view"):
        more, fewer = _per_channel(node) or (1, 1)
        return own.times(more).over(fewer)
    taken = window(node)
    return own if taken is None else own.moved(taken[0])


def kv_heads(heads: Pieces, attention: fx.Node, cache: fx.Node) -> Pieces:
    """Return the KV heads that query heads read."""
    return heads.over(num_channels(attention) // num_channels(cache))
