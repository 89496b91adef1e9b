"""Compute only for the rows that somebody wants what ends in logits row by row.

before                                      after
  attention        residual                   attention        residual
  |                  |                        |                  |     logits_indices [num_logits]
  linear             |                        index_select       index_select
  |                  |                        |                  |
  add_rms_norm ------'                        linear             |
  |        \\                                  |                  |
  ...       add                               add_rms_norm ------'
             |                                ...
  linear                                      linear
  |                                           |
  logits [num_tokens, vocab_size]             logits [num_logits, vocab_size]

So the last layer's MLP, too, sees a prompt's last token only.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import fx

from quire.graph.matches import Matches
from quire.graph.network import Network
from quire.graph.nodes import is_call, op_of, results, spec
from quire.ops.layout import index_select
from quire.ops.spec import TensorSpec

ROWWISE = frozenset(
    {"linear", "linear_w8a16", "linear_w8a8", "linear_w4a16", "quantize_rows", "rms_norm", "layer_norm", "add_rms_norm",
     "rms_norm_quant", "add_rms_norm_quant", "silu", "gelu", "relu", "silu_mul", "silu_mul_quant", "add", "sub", "mul",
     "div", "cast", "slice", "view", "item"}
)  # fmt: skip
"""Ops whose row i depends on row i of their inputs alone, where inputs and results all have a row for each token."""

INPUT = "logits_indices"


def gather_last_token(network: Network) -> Matches:
    """Select the rows named by the new input `logits_indices` before the row-wise ops that end in `logits`."""
    logits = network.outputs.get("logits")
    if logits is None or INPUT in network.inputs or spec(logits).shape[0] != "num_tokens":
        return Matches()
    with network.graph.inserting_before(network.calls()[0]):
        indices = network.add_input(INPUT, "int32", ("num_logits",)).node
    region = _region(network, logits)
    if not region:
        with network.graph.inserting_after(logits):
            rows = network.insert(index_select, {"x": logits, "index": indices}, "logits_rows")
        network.replace(logits, rows)
        return Matches([rows.name], {logits.name: "not row-wise, or used elsewhere: computed for all tokens"})
    gathered: dict[fx.Node, fx.Node] = {}
    for node in region:
        for used in [used for used in node.all_input_nodes if used not in region and _has_rows(used)]:
            if used not in gathered:
                with network.graph.inserting_before(node):
                    gathered[used] = network.insert(index_select, {"x": used, "index": indices}, "logits_rows")
            node.replace_input_with(used, gathered[used])
    for node in region:
        node.meta["spec"] = _of_rows(node.meta["spec"])
    return Matches([node.name for node in gathered.values()])


def _region(network: Network, logits: fx.Node) -> list[fx.Node]:
    """Return, in order, the row-wise calls whose results only the logits depend on."""
    found: set[fx.Node] = set()
    others = {node for name, node in network.outputs.items() if name != "logits"}
    for node in reversed(network.calls()):
        if found.issuperset(node.users) and node not in others and _is_rowwise(node):
            found.add(node)
    if logits not in found:
        return []
    return [node for node in network.calls() if node in found and (not is_call(node, "item") or _source(node) in found)]


def _source(item: fx.Node) -> object:
    return item.kwargs["results"]


def _is_rowwise(node: fx.Node) -> bool:
    """Return whether all of a call's results and non-constant arguments have a row for each token."""
    if op_of(node).name not in ROWWISE or not _has_rows(node):
        return False
    if is_call(node, "item"):
        return True
    return all(_has_rows(used) or _is_fixed(used) for used in node.all_input_nodes)


def _has_rows(node: fx.Node) -> bool:
    found = results(node)
    return bool(found) and all(result.shape[:1] == ("num_tokens",) for result in found)


def _is_fixed(node: fx.Node) -> bool:
    """Return whether no size of a node is known only at run time, as of weights."""
    return all(isinstance(size, int) for result in results(node) for size in result.shape)


def _of_rows(found: TensorSpec | Collection[TensorSpec]) -> TensorSpec | tuple[TensorSpec, ...]:
    """Return specs with a row for each of the wanted ones."""
    if isinstance(found, TensorSpec):
        return TensorSpec(("num_logits", *found.shape[1:]), found.dtype)
    return tuple(TensorSpec(("num_logits", *each.shape[1:]), each.dtype) for each in found)
