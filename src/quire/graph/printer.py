"""The readable printer: a network as text, one line a node, that a reader who knows the architecture recognises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx

from quire.graph.nodes import is_call, op_of, results


def format_graph(
    name: str, graph: fx.Graph, outputs: Mapping[str, fx.Node], ranges: Mapping[str, tuple[int, int]]
) -> str:
    """Return a network as text: ranges of sizes, inputs, then calls with their result's spec, then outputs.

    Weights appear by their checkpoint names where they are used, so they need no lines of their own.
    """
    lines = [f"network {name}"]
    lines += [f"  size   {size}: {low}..{high}" for size, (low, high) in ranges.items()]
    lines += [f"  input  {node.target}: {node.meta['spec']}" for node in graph.nodes if node.op == "placeholder"]
    lines += [f"  {_call(node)}" for node in graph.nodes if node.op == "call_function" and not is_call(node, "item")]
    lines += [f"  output {output} = %{node.name}" for output, node in outputs.items()]
    return "\n".join(lines)


def _call(node: fx.Node) -> str:
    op = op_of(node)
    defaults = {name: p.default for name, p in op.signature.parameters.items()}
    shown = [
        _argument(value) if isinstance(value, (fx.Node, list, tuple)) else f"{name}={_argument(value)}"
        for name, value in node.kwargs.items()
        if isinstance(value, fx.Node) or value != defaults[name]
    ]
    call = f"{op.name}({', '.join(shown)})"
    if node.meta["spec"] is None:
        return call
    names = _result_names(node) if isinstance(node.meta["spec"], tuple) else [f"%{node.name}"]
    return f"{', '.join(names)} = {call}  : {', '.join(map(str, results(node)))}"


def _result_names(node: fx.Node) -> list[str]:
    """Return the names of the nodes that take a call's several results, `_` for one that nobody takes."""
    names = ["_"] * len(results(node))
    for user in node.users:
        if is_call(user, "item"):
            names[int(str(user.kwargs["index"]))] = f"%{user.name}"
    return names


def _argument(value: Any) -> str:
    if isinstance(value, fx.Node):
        return str(value.target) if value.op in ("get_attr", "placeholder") else f"%{value.name}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_argument, value))}]"
    return f"{value:g}" if isinstance(value, float) else repr(value)
