"""Remove what nobody uses.

before                         after
  a = silu(x)                    output a
  b = relu(x)   (no users)
  output a
"""

from __future__ import annotations

from quire.graph.matches import Matches
from quire.graph.network import Network
from quire.graph.nodes import op_of


def drop_dead(network: Network) -> Matches:
    """Erase calls whose result is unused and which mutate nothing, then weights without users."""
    dropped = Matches()
    kept = set(network.outputs.values())
    for node in reversed(list(network.graph.nodes)):
        if node.users or node in kept or node.op == "placeholder":
            continue
        if node.op == "get_attr" or not op_of(node).mutates:
            dropped.done.append(node.name)
            network.erase(node)
    return dropped
