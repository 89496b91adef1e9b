"""The readable printer: a network as text, one line a node, that a reader who knows the architecture recognises."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile
from typing import Any

from torch import fx

from quire.graph.nodes import is_call, op_of, results


def format_graph(
    name: str, graph: fx.Graph, outputs: Mapping[str, fx.Node], ranges: Mapping[str, tuple[int, int]]
) -> str:
    """Return a network as text: ranges of sizes, inputs, then calls with their result's spec, then outputs.

    Weights appear by their checkpoint names where they are used, and so does what is computed from weights for one
    user; neither needs lines of its own.
    """
    lines = [f"network {name}"]
    lines += [f"  size   {size}: {low}..{high}" for size, (low, high) in ranges.items()]
    lines += [f"  input  {node.target}: {node.meta['spec']}" for node in graph.nodes if node.op == "placeholder"]
    lines += [f"  {_line(node)}" for node in graph.nodes if node.op == "call_function" and not _is_inside(node)]
    lines += [f"  output {output} = %{node.name}" for output, node in outputs.items()]
    return "\n".join(lines)


def _is_inside(node: fx.Node) -> bool:
    """Return whether a call is shown within another line: where its one user is, or as one of several results."""
    return is_call(node, "item") or (
        len(node.users) == 1
        and len(results(node)) == 1
        and bool(node.all_input_nodes)
        and all(used.op == "get_attr" or (used.op == "call_function" and _is_inside(used) and not is_call(used, "item"))
                for used in node.all_input_nodes)
    )  # fmt: skip


def _line(node: fx.Node) -> str:
    if node.meta["spec"] is None:
        return _call(node)
    names = _result_names(node) if isinstance(node.meta["spec"], tuple) else [f"%{node.name}"]
    return f"{', '.join(names)} = {_call(node)}  : {', '.join(map(str, results(node)))}"


def _call(node: fx.Node) -> str:
    op = op_of(node)
    defaults = {name: p.default for name, p in op.signature.parameters.items()}
    shown = [
        _argument(value) if isinstance(value, (fx.Node, list, tuple)) else f"{name}={_argument(value)}"
        for name, value in node.kwargs.items()
        if isinstance(value, fx.Node) or value != defaults[name]
    ]
    return f"{op.name}({', '.join(shown)})"


def _result_names(node: fx.Node) -> list[str]:
    """Return the names of the nodes that take a call's several results, `_` for one that nobody takes."""
    names = ["_"] * len(results(node))
    for user in node.users:
        if is_call(user, "item"):
            names[int(str(user.kwargs["index"]))] = f"%{user.name}"
    return names


def _argument(value: Any) -> str:
    if isinstance(value, fx.Node):
        if value.op in ("get_attr", "placeholder"):
            return str(value.target)
        return f"%{value.name}" if is_call(value, "item") or not _is_inside(value) else _call(value)
    if isinstance(value, (list, tuple)):
        return _list([_argument(item) for item in value])
    return f"{value:g}" if isinstance(value, float) else repr(value)


def _list(items: list[str]) -> str:
    """Return a list, what its items begin and end with written once: `a.{q,k,v}_proj.weight`."""
    before = _common(items).rpartition(".")[0] + "."
    after = _common([item[len(before) :][::-1] for item in items])[::-1]
    if len(items) < 2 or len(before) == 1 or not after or "(" in before:
        return f"[{', '.join(items)}]"
    middle = ",".join(item[len(before) : len(item) - len(after)] for item in items)
    return f"{before}{{{middle}}}{after}"


def _common(texts: list[str]) -> str:
    """Return what all texts begin with."""
    return "".join(
        letters[0] for letters in takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False))
    )
