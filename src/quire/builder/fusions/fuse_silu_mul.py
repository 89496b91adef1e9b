"""Gate in one op what lies side by side.

before                           after
  x                                x
  |-- slice (first half)           |
  |     |                          silu_mul
  |   silu
  |     |
  |-----|-- slice (second half)
        |    |
         mul
"""

from __future__ import annotations

from torch import fx

from quire.graph.matches import Matches
from quire.graph.network import Network
from quire.graph.nodes import is_call, spec
from quire.ops.registry import OPS


def fuse_silu_mul(network: Network) -> Matches:
    """Replace `silu(gate) * up` where gate and up are the halves of one tensor."""
    matches = Matches()
    for product in network.calls():
        if not is_call(product, "mul"):
            continue
        silu, up = product.kwargs["x"], product.kwargs["y"]
        if is_call(up, "silu"):
            silu, up = up, silu
        if not is_call(silu, "silu"):
            continue
        gate = silu.kwargs["x"]
        reason = _why_not(silu, gate, up)
        if reason is not None:
            matches.missed[product.name] = reason
            continue
        matches.done.append(_fuse(network, product, silu, gate, up))
    return matches


def _why_not(silu: fx.Node, gate: object, up: object) -> str | None:
    if len(silu.users) > 1:
        return "the gate is used elsewhere, too"
    if not (is_call(gate, "slice") and is_call(up, "slice") and gate.kwargs["x"] is up.kwargs["x"]):
        return "gate and up are not side by side in one tensor"
    whole, last = gate.kwargs["x"], len(spec(gate).shape) - 1
    assert isinstance(whole, fx.Node)
    width = spec(whole).shape[-1]
    halves = [(part.kwargs["dim"], part.kwargs["start"], part.kwargs["stop"]) for part in (gate, up)]
    if any(dim not in (-1, last) for dim, _, _ in halves) or not isinstance(width, int):
        return "gate and up are not side by side in the last dimension"
    if [half[1:] for half in halves] != [(0, width // 2), (width // 2, width)]:
        return "gate and up are not the first and the second half of one tensor"
    return None


def _fuse(network: Network, product: fx.Node, silu: fx.Node, gate: object, up: object) -> str:
    assert isinstance(gate, fx.Node) and isinstance(up, fx.Node)
    with network.graph.inserting_before(product):
        fused = network.insert(OPS["silu_mul"], {"x": gate.kwargs["x"]})
    network.replace(product, fused)
    for node in (product, silu, gate, up):
        if not node.users:
            network.erase(node)
    return fused.name
