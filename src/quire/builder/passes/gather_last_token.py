"""Compute logits only for the rows that somebody wants.

before                                      after
  hidden [num_tokens, hidden]                 hidden [num_tokens, hidden]
    |                                           |   logits_indices [num_logits]
  norm                                          |  /
    |                                         index_select
  linear                                        |
    |                                         norm
  logits [num_tokens, vocab_size]               |
                                              linear
                                                |
                                              logits [num_logits, vocab_size]
"""

from __future__ import annotations

from torch import fx

from quire.builder.passes.matches import Matches
from quire.graph.network import Network
from quire.graph.nodes import op_of, spec
from quire.ops.layout import index_select
from quire.ops.spec import TensorSpec

# Ops whose row i depends on row i of `x` alone.
ROWWISE = frozenset({"linear", "rms_norm", "layer_norm", "silu", "gelu", "relu", "cast"})
INPUT = "logits_indices"


def gather_last_token(network: Network) -> Matches:
    """Select the rows named by the new input `logits_indices` before the row-wise ops that end in `logits`."""
    logits = network.outputs.get("logits")
    if logits is None or INPUT in network.inputs or spec(logits).shape[0] != "num_tokens":
        return Matches()
    chain: list[fx.Node] = []
    node = logits
    while node.op == "call_function" and op_of(node).name in ROWWISE and len(node.users) <= 1:
        chain.append(node)
        node = node.kwargs["x"]  # type: ignore[assignment]
    if not chain:
        return Matches(missed={logits.name: "not row-wise, or used elsewhere"})
    with network.graph.inserting_before(_first_call(network)):
        indices = network.add_input(INPUT, "int32", ("num_logits",)).node
    with network.graph.inserting_before(chain[-1]):
        gathered = network.insert(index_select, {"x": node, "index": indices}, "logits_rows")
    chain[-1].update_kwarg("x", gathered)
    for changed in reversed(chain):
        changed.meta["spec"] = TensorSpec(("num_logits", *spec(changed).shape[1:]), spec(changed).dtype)
    return Matches([gathered.name])


def _first_call(network: Network) -> fx.Node:
    return network.calls()[0]
