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
from quire.graph.nodes import is_call, spec
from quire.ops.layout import index_select
from quire.ops.spec import TensorSpec

# Ops whose row i depends on row i of `x` alone.
ROWWISE = frozenset(
    {"linear", "linear_w8a16", "linear_w4a16", "rms_norm", "layer_norm", "silu", "gelu", "relu", "cast"}
)
# Of `x` and its scales; what rounds `x` has two results and is left where it is.
ROWWISE_IN_TWO = "linear_w8a8"
INPUT = "logits_indices"


def gather_last_token(network: Network) -> Matches:
    """Select the rows named by the new input `logits_indices` before the row-wise ops that end in `logits`."""
    logits = network.outputs.get("logits")
    if logits is None or INPUT in network.inputs or spec(logits).shape[0] != "num_tokens":
        return Matches()
    chain = _rowwise_up_to(logits)
    with network.graph.inserting_before(_first_call(network)):
        indices = network.add_input(INPUT, "int32", ("num_logits",)).node
    if not chain:
        with network.graph.inserting_after(logits):
            gathered = network.insert(index_select, {"x": logits, "index": indices}, "logits_rows")
        network.replace(logits, gathered)
        return Matches(["logits_rows"], {logits.name: "not row-wise, or used elsewhere: computed for all tokens"})
    done = []
    with network.graph.inserting_before(chain[-1]):
        for name in ("x", "x_scales"):
            if name in chain[-1].kwargs:
                rows = {"x": chain[-1].kwargs[name], "index": indices}
                gathered = network.insert(index_select, rows, name.replace("x", "logits_rows"))
                chain[-1].update_kwarg(name, gathered)
                done.append(gathered.name)
    for changed in reversed(chain):
        changed.meta["spec"] = TensorSpec(("num_logits", *spec(changed).shape[1:]), spec(changed).dtype)
    return Matches(done)


def _rowwise_up_to(logits: fx.Node) -> list[fx.Node]:
    """Return row-wise calls that nothing else uses, from the last one upwards."""
    chain: list[fx.Node] = []
    node: object = logits
    while is_call(node, *ROWWISE, ROWWISE_IN_TWO) and len(node.users) <= 1:
        chain.append(node)
        if is_call(node, ROWWISE_IN_TWO):
            break
        node = node.kwargs["x"]
    return chain


def _first_call(network: Network) -> fx.Node:
    return network.calls()[0]
