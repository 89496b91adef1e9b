"""Give out what the logits are made of, for embeddings. It is computed anyway.

before                             after
  rms_norm                           rms_norm
  |                                  |       \\
  linear                             linear   hidden_states [num_logits, hidden_size]
  |                                  |
  logits [num_logits, vocab_size]    logits [num_logits, vocab_size]
"""

from __future__ import annotations

from torch import fx

from quire.graph.matches import Matches
from quire.graph.network import Network, Tensor
from quire.graph.nodes import is_call, spec
from quire.ops.spec import FLOATS

OUTPUT = "hidden_states"
_PROJECTIONS = ("linear", "linear_w8a16", "linear_w4a16")


def mark_hidden_states(network: Network) -> Matches:
    """Mark the argument of the projection that makes `logits` as the output `hidden_states`."""
    logits = network.outputs.get("logits")
    if logits is None or OUTPUT in network.outputs:
        return Matches()
    hidden = logits.kwargs["x"] if is_call(logits, *_PROJECTIONS) else None
    if not isinstance(hidden, fx.Node) or spec(hidden).dtype not in FLOATS:
        return Matches(missed={logits.name: "not projected from hidden states as they are"})
    if spec(hidden).shape[0] != "num_logits" or hidden in network.outputs.values():
        return Matches(missed={logits.name: "no row for each wanted one"})
    network.mark_output(Tensor.of(network, hidden), OUTPUT)
    return Matches([hidden.name])
