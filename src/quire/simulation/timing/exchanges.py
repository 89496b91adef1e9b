"""How long ranks take to exchange tensors: the bytes of Quire's own collectives over a link's two numbers."""

from __future__ import annotations

from collections import Counter

from quire.core.mapping import Mapping
from quire.graph.network import Network
from quire.sharding.cost import Exchange, exchanges
from quire.simulation.timing.hardware import Link


class Exchanges:
    """What a rank exchanges in a step. A receiver waits for its sender, whose time it is, so receiving takes none.

    Args:
        network: Of the rank.
        mapping: Which rank it is, and how many are on a host.
        inside: The link between devices of a host.
        between: The link between hosts.
        whole_bytes: A sum of at most so many bytes goes whole to every rank (`communicator.WHOLE_BYTES`).
    """

    def __init__(self, network: Network, mapping: Mapping, inside: Link, between: Link, whole_bytes: int) -> None:
        self._whole_bytes = whole_bytes
        self._costs = [
            (each, count, inside if _is_one_host(each, mapping) else between)
            for each, count in Counter(exchanges(network, mapping)).items()
        ]

    def seconds(self, num_tokens: int, num_logits: int) -> float:
        """Return what all exchanges of a step take, one after the other."""
        rows = {"num_tokens": num_tokens, "num_logits": num_logits}
        return sum(
            count * exchange_s(each, rows[each.rows], link, self._whole_bytes) for each, count, link in self._costs
        )


def exchange_s(exchange: Exchange, num_rows: int, link: Link, whole_bytes: int) -> float:
    """Return what one exchange takes; none without rows.

    Args:
        exchange: Of one rank's network.
        num_rows: Rows of its tensor.
        link: Between its ranks.
        whole_bytes: As for `Exchanges`.
    """
    if num_rows == 0:
        return 0.0
    is_whole = exchange.kind != "all_reduce" or num_rows * exchange.row_bytes <= whole_bytes
    rounds = 1 if is_whole else 2  # pieces go out to be added, and the sums come back
    return rounds * link.latency_s + exchange.sent_bytes(num_rows, whole_bytes) / link.bytes_per_s


def _is_one_host(exchange: Exchange, mapping: Mapping) -> bool:
    return len({rank // mapping.gpus_per_node for rank in exchange.ranks}) == 1
