"""A network as JSON text: one line a node, diffable, and nothing in it that could be run.

A reference to a node is written `"%name"`; weights and inputs are nodes too. Ops are looked up in `ops.registry`.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
from torch import fx

from quire.core.errors import BuildError, PlanError, ShapeError
from quire.graph.legality import DEFINED, check_network
from quire.graph.network import Network, Tensor
from quire.graph.nodes import op_of, spec
from quire.ops.registry import OPS
from quire.ops.spec import dtype_name

FORMAT = 1


class _Value(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    dtype: str
    shape: list[int | str]
    node: str = ""
    shard_dim: int | None = None


class _Call(msgspec.Struct, forbid_unknown_fields=True):
    node: str
    op: str
    args: dict[str, Any]


class _Output(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    node: str


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    format: int
    name: str
    inputs: list[_Value]
    weights: list[_Value]
    calls: list[_Call]
    outputs: list[_Output]
    ranges: dict[str, tuple[int, int]] = {}


def network_to_text(network: Network) -> str:
    """Return the network as JSON, one line for each input, weight, call and output."""
    nodes = list(network.graph.nodes)
    sections = {
        "inputs": [_value(n) for n in nodes if n.op == "placeholder"],
        "weights": [_value(n) for n in nodes if n.op == "get_attr"],
        "calls": [{"node": n.name, "op": op_of(n).name, "args": _out(dict(n.kwargs))} for n in network.calls()],
        "outputs": [{"name": name, "node": f"%{node.name}"} for name, node in network.outputs.items()],
    }
    body = ",\n".join(f"{json.dumps(key)}: {_lines(rows)}" for key, rows in sections.items())
    ranges = f'"ranges": {json.dumps(network.ranges)},\n' if network.ranges else ""
    return f'{{"format": {FORMAT}, "name": {json.dumps(network.name)},\n{ranges}{body}}}\n'


def _lines(rows: list[Any]) -> str:
    return "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]"


def _value(node: fx.Node) -> dict[str, Any]:
    found, shard_dim = spec(node), node.meta.get("shard_dim")
    shard = {} if shard_dim is None else {"shard_dim": shard_dim}
    return {"name": str(node.target), "dtype": dtype_name(found.dtype), "shape": list(found.shape), "node": node.name,
            **shard}  # fmt: skip


def _out(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return f"%{value.name}"
    if isinstance(value, (list, tuple)):
        return [_out(item) for item in value]
    if isinstance(value, dict):
        return {key: _out(item) for key, item in value.items()}
    return value


def network_from_text(text: str, source: str) -> Network:
    """Return the network that a text describes, checked as if it had just been defined.

    Args:
        text: What `network_to_text` wrote.
        source: Where the text is from, for errors.

    Raises:
        PlanError: The text is damaged, of another format version, or describes an illegal network.
    """
    try:
        document = msgspec.json.decode(text, type=_Document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PlanError(f"{source}: expected a graph, got damaged text: {error}. Build the engine again.") from None
    if document.format != FORMAT:
        raise PlanError(f"{source}: expected format {FORMAT}, got {document.format}. Build the engine again.")
    try:
        network = _rebuild(document)
        check_network(network, DEFINED)
    except (BuildError, ShapeError, KeyError) as error:
        raise PlanError(f"{source}: the graph is not legal: {error}. Build the engine again.") from None
    return network


def _rebuild(document: _Document) -> Network:
    network = Network(document.name)
    made: dict[str, fx.Node] = {}
    for value in document.inputs:
        ranges = {size: document.ranges[size] for size in document.ranges if size in value.shape}
        made[value.node] = network.add_input(value.name, value.dtype, value.shape, ranges).node
    for value in document.weights:
        made[value.node] = network.add_weight(value.name, value.dtype, value.shape, value.shard_dim).node
    for call in document.calls:
        if call.op not in OPS:
            raise BuildError(f"node %{call.node}: expected a known op, got {call.op!r}")
        arguments = {name: _in(value, made) for name, value in call.args.items()}
        made[call.node] = network.insert(OPS[call.op], arguments, call.node)
    for output in document.outputs:
        network.mark_output(Tensor.of(network, made[output.node.removeprefix("%")]), output.name)
    return network


def _in(value: Any, made: dict[str, fx.Node]) -> Any:
    if isinstance(value, str) and value.startswith("%"):
        if value[1:] not in made:
            raise BuildError(f"expected a node before its use, got {value}")
        return made[value[1:]]
    if isinstance(value, list):
        return [_in(item, made) for item in value]
    return value
