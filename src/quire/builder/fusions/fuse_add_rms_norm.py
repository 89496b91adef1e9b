"""Add the residual and normalise the sum in one op that gives both.

before                         after
  x   residual                   x   residual
   \\ /                            \\ /
   add                            add_rms_norm
   |-- (next residual)            |-- 0: normed
   |                              |-- 1: sum (next residual)
  rms_norm
"""

from __future__ import annotations

from torch import fx

from quire.builder.fusions.joining import move_before
from quire.graph.matches import Matches
from quire.graph.network import Network
from quire.graph.nodes import is_call, spec
from quire.ops.registry import OPS
from quire.plan.folding import constant_nodes


def fuse_add_rms_norm(network: Network) -> Matches:
    """Fuse every `rms_norm` with the `add` that it reads."""
    matches, constants = Matches(), constant_nodes(network)
    for norm in network.calls():
        total = norm.kwargs.get("x")
        if not is_call(norm, "rms_norm") or not is_call(total, "add"):
            continue
        x, y = total.kwargs["x"], total.kwargs["y"]
        if not isinstance(x, fx.Node) or not isinstance(y, fx.Node) or spec(x) != spec(y):
            matches.missed[norm.name] = "its sum is not of two tensors of one shape"
        elif norm.kwargs["weight"] not in constants:
            matches.missed[norm.name] = "its weight is computed at run time"
        else:
            matches.done.append(_fuse(network, norm, total, max(x, y), min(x, y)))
    return matches


def _fuse(network: Network, norm: fx.Node, total: fx.Node, x: fx.Node, residual: fx.Node) -> str:
    """Put the fused op where the sum was; of its terms the older is the residual."""
    weight = norm.kwargs["weight"]
    assert isinstance(weight, fx.Node)
    move_before(weight, total)
    with network.graph.inserting_before(total):
        arguments = {"x": x, "residual": residual, "weight": weight, "eps": norm.kwargs["eps"]}
        fused = network.insert(OPS["add_rms_norm"], arguments, f"{norm.name}_and_sum")
    is_kept = len(total.users) > 1 or total in network.outputs.values()
    for index, old in enumerate((norm, total) if is_kept else (norm,)):
        with network.graph.inserting_before(total):
            new = network.item(fused, index, f"{old.name}_of_sum")
        network.replace(old, new)
        new.name = old.name
    network.erase(norm)
    network.erase(total)
    return fused.name
