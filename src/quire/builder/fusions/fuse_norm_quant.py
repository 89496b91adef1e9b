"""Round activations where they are made.

before                      after
  x                           x
  |                           |
  rms_norm                    rms_norm_quant
  |                           |-- 0: rows
  quantize_rows               |-- 1: scales
  |-- 0: rows
  |-- 1: scales

Likewise `add_rms_norm` and `silu_mul`.
"""

from __future__ import annotations

from torch import fx

from quire.graph.matches import Matches
from quire.graph.network import Network
from quire.graph.nodes import is_call, op_of
from quire.ops.registry import OPS


def fuse_norm_quant(network: Network) -> Matches:
    """Fuse every `quantize_rows` with the op that makes its input, where nobody else wants that."""
    matches = Matches()
    for rounding in network.calls():
        if not is_call(rounding, "quantize_rows"):
            continue
        x = rounding.kwargs["x"]
        assert isinstance(x, fx.Node)
        source = x.kwargs["results"] if is_call(x, "item") and x.kwargs["index"] == 0 else x
        if not is_call(source, "rms_norm", "add_rms_norm", "silu_mul"):
            matches.missed[rounding.name] = f"what makes its input, {_maker(x)}, has no form that rounds"
        elif set(x.users) != {rounding} or x in network.outputs.values():
            matches.missed[rounding.name] = "its input is used unrounded, too"
        else:
            matches.done.append(_fuse(network, rounding, x, source))
    return matches


def _maker(x: fx.Node) -> str:
    return op_of(x).name if x.op == "call_function" else f"the input {x.target}"


def _fuse(network: Network, rounding: fx.Node, x: fx.Node, source: fx.Node) -> str:
    with network.graph.inserting_before(source):
        arguments = {**source.kwargs, "dtype": rounding.kwargs["dtype"]}
        fused = network.insert(OPS[f"{op_of(source).name}_quant"], arguments, f"{source.name}_quant")
    _move_items(network, rounding, fused, 0)
    network.erase(rounding)
    if source is not x:
        network.erase(x)
        _move_items(network, source, fused, 1)
    network.erase(source)
    return fused.name


def _move_items(network: Network, old: fx.Node, new: fx.Node, shift: int) -> None:
    """Take the results of one call from another, whose results are `shift` places further on."""
    after = new
    for item in sorted(user for user in old.users if is_call(user, "item")):
        with network.graph.inserting_after(after):
            after = network.item(new, int(str(item.kwargs["index"])) + shift, f"{item.name}_of_{new.name}")
        name = item.name
        network.replace(item, after)
        network.erase(item)
        after.name = name
