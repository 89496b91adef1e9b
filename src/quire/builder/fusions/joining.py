"""Joining: linear layers that read the same input become one, its weight the rows of theirs one after the other."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import takewhile
from typing import Any

from torch import fx

from quire.graph.network import Network
from quire.graph.nodes import is_call, op_of, spec
from quire.ops.registry import OPS
from quire.quantization.layers import weights_below

JOINED_ARGUMENTS = {
    "linear": ("weight", "bias"),
    "linear_w8a16": ("weight", "scales", "bias"),
    "linear_w8a8": ("weight", "scales", "bias"),
    "linear_w4a16": ("weight", "scales", "zero_points", "bias"),
}
"""By op, the arguments that have a row for each output channel; all others must be the same."""


def why_not_joined(parts: Sequence[fx.Node], constants: Collection[fx.Node]) -> str | None:
    """Return why calls of linear layers cannot be one call, or None if they can."""
    first = parts[0]
    if any(part.target is not first.target for part in parts):
        return "the layers are of several kinds"
    joined = JOINED_ARGUMENTS[op_of(first).name]
    if any(part.kwargs[name] is not value for part in parts for name, value in first.kwargs.items()
           if name not in joined and isinstance(value, fx.Node)):  # fmt: skip
        return "the layers do not read the same input"
    if any(part.kwargs[name] != value for part in parts for name, value in first.kwargs.items() if name not in joined):
        return "the layers differ in more than their weights"
    for name in joined:
        columns = [part.kwargs[name] for part in parts]
        if any((column is None) != (columns[0] is None) for column in columns):
            return f"only some of the layers have a {name}"
        if any(isinstance(column, fx.Node) and column not in constants for column in columns):
            return f"a {name} is computed at run time"
        if (
            columns[0] is not None
            and len({(spec(c).shape[1:], spec(c).dtype) for c in columns if isinstance(c, fx.Node)}) > 1
        ):
            return f"the layers have {name}s of several shapes"
    return None


def join(network: Network, parts: Sequence[fx.Node], stem: str) -> fx.Node:
    """Insert the call that computes all parts side by side, before the first of them.

    Args:
        network: Mutated; the parts stay, for the caller to replace.
        parts: Calls of linear layers for which `why_not_joined` found nothing, in the order of their outputs.
        stem: What the joined layer is called in place of the parts' own last name, for example "qkv_proj".
    """
    first = min(parts)
    arguments: dict[str, Any] = dict(first.kwargs)
    for argument in JOINED_ARGUMENTS[op_of(first).name]:
        columns = [part.kwargs[argument] for part in parts]
        if columns[0] is not None:
            arguments[argument] = _concatenated(network, columns, first, stem)
    name = joined_name([weight_name(part.kwargs["weight"]) for part in parts], stem).rpartition(".")[0]
    with network.graph.inserting_before(first):
        return network.insert(op_of(first), arguments, name.replace(".", "_"))


def _concatenated(network: Network, columns: Sequence[Any], before: fx.Node, stem: str) -> fx.Node:
    for column in columns:
        move_before(column, before)
    whole = _whole(columns)
    if whole is not None:
        return whole
    name = joined_name([weight_name(column) for column in columns], stem)
    with network.graph.inserting_before(before):
        joined = network.insert(OPS["concat"], {"tensors": list(columns), "dim": 0}, name.replace(".", "_"))
    joined.meta["weight_name"] = name
    return joined


def _whole(columns: Sequence[fx.Node]) -> fx.Node | None:
    """Return the tensor whose consecutive slices along dim 0 these are, all of it, or None."""
    source, position = columns[0].kwargs.get("x"), 0
    for column in columns:
        given = column.kwargs
        if not is_call(column, "slice") or given["x"] is not source or given["dim"] != 0 or given["start"] != position:
            return None
        position = int(str(given["stop"]))
    assert isinstance(source, fx.Node)
    return source if spec(source).shape[0] == position else None


def move_before(constant: fx.Node, place: fx.Node) -> None:
    """Move a constant, and what it is made of, before a node, unless it is there already."""
    if constant < place:
        return
    for used in constant.all_input_nodes:
        move_before(used, place)
    place.prepend(constant)


def weight_name(constant: Any) -> str:
    """Return what a constant is called: its name in the checkpoint, what a pass calls it, or its node's name."""
    if constant.op == "get_attr":
        return str(constant.target)
    parts = weights_below(constant)
    return str(constant.meta.get("weight_name") or (parts[0] if len(parts) == 1 else constant.name))


def joined_name(names: Sequence[str], stem: str) -> str:
    """Return `a.b.qkv_proj.weight` for `a.b.q_proj.weight` and its kin."""
    levels = takewhile(lambda level: len(set(level)) == 1, zip(*(name.split(".")[:-2] for name in names), strict=False))
    return ".".join([*(level[0] for level in levels), stem, names[0].rpartition(".")[2]])
