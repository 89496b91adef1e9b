"""The reference interpreter: every op by its plain-torch reference, in order. It defines what a network means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from quire.core.errors import ShapeError
from quire.graph.declared import check_range
from quire.graph.nodes import check_binding, op_of


def interpret(
    graph: fx.Graph,
    outputs: Mapping[str, fx.Node],
    inputs: Mapping[str, torch.Tensor],
    weights: Mapping[str, torch.Tensor],
    ranges: Mapping[str, tuple[int, int]],
) -> dict[str, torch.Tensor]:
    """Run a graph; see `Network.run`."""
    values: dict[fx.Node, torch.Tensor] = {}
    sizes: dict[str, int] = {}
    given = {"placeholder": inputs, "get_attr": weights}
    for node in graph.nodes:
        if node.op in given:
            values[node] = _given(node, given[node.op], sizes)
            check_range(str(node.target), node.meta["spec"], sizes, ranges)
        else:
            arguments = {name: _value(argument, values) for name, argument in node.kwargs.items()}
            values[node] = op_of(node)(**arguments)
    return {name: values[node] for name, node in outputs.items()}


def _given(node: fx.Node, source: Mapping[str, torch.Tensor], sizes: dict[str, int]) -> torch.Tensor:
    name = str(node.target)
    if name not in source:
        kind = "input" if node.op == "placeholder" else "weight"
        raise ShapeError(f"Missing {kind} {name!r}: expected {node.meta['spec']}, got nothing.")
    check_binding(name, node.meta["spec"], source[name], sizes)
    return source[name]


def _value(argument: Any, values: Mapping[fx.Node, torch.Tensor]) -> Any:
    if isinstance(argument, fx.Node):
        return values[argument]
    if isinstance(argument, (list, tuple)):
        return [_value(item, values) for item in argument]
    return argument
