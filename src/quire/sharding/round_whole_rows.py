"""Have rows rounded by a scale of all their channels, as one rank does it, not of those that a rank has.

before                        after
  x                             x
  |                             |
  silu_mul_quant                silu_mul
  |-- 0: rows                   |                 ranks gather here
  |-- 1: scales                 quantize_rows     (marked)
                                |-- 0: rows
                                |-- 1: scales

A `quantize_rows` that stands alone is only marked. `shard_linear` ends a region of shared channels before it.
"""

from __future__ import annotations

from quire.graph.matches import Matches
from quire.graph.network import Network
from quire.graph.nodes import is_call, results
from quire.ops.registry import OPS
from quire.sharding.channels import WHOLE_ROWS


def round_whole_rows(network: Network) -> Matches:
    """Mark what rounds rows of [num_tokens, width], split from the gate before it."""
    matches = Matches()
    for node in network.calls():
        if is_call(node, "silu_mul_quant"):
            with network.graph.inserting_before(node):
                gated = network.insert(OPS["silu_mul"], {"x": node.kwargs["x"]}, f"{node.name}_x")
            node.target = OPS["quantize_rows"]
            node.update_kwarg("x", gated)
        if is_call(node, "quantize_rows") and len(results(node)[0].shape) == 2:
            node.meta[WHOLE_ROWS] = True
            matches.done.append(node.name)
    return matches
