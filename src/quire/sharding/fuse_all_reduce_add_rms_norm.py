"""Sum over ranks, add the residual and normalise in one op.

before                                after
  x                                     x   residual
  |                                      \\ /
  all_reduce   residual                  all_reduce_add_rms_norm
   \\          /                          |-- 0: normed
    add_rms_norm                         |-- 1: sum (next residual)
    |-- 0: normed
    |-- 1: sum (next residual)

It pays only where a kernel does all three while data comes in, so `shard` runs it only for devices that have one.
"""

from __future__ import annotations

from torch import fx

from quire.graph.matches import Matches
from quire.graph.network import Network
from quire.graph.nodes import is_call
from quire.ops.op import REFERENCE
from quire.ops.registry import OPS
from quire.ops.tactics import tactics_for

_OP = "all_reduce_add_rms_norm"


def has_kernel(device: str) -> bool:
    """Return whether a kind of device has more than the reference of the fused op."""
    return any(tactic.name != REFERENCE for tactic in tactics_for(_OP, device))


def fuse_all_reduce_add_rms_norm(network: Network) -> Matches:
    """Fuse every `add_rms_norm` with the `all_reduce` that it reads, where nobody else wants that sum alone."""
    matches = Matches()
    for node in network.calls():
        x = node.kwargs.get("x")
        if not is_call(node, "add_rms_norm") or not is_call(x, "all_reduce"):
            continue
        if set(x.users) != {node} or x in network.outputs.values():
            matches.missed[node.name] = "the sum over ranks is used elsewhere, too"
            continue
        term = x.kwargs["x"]
        assert isinstance(term, fx.Node)
        node.target = OPS[_OP]
        node.update_kwarg("x", term)
        network.erase(x)
        matches.done.append(node.name)
    return matches
