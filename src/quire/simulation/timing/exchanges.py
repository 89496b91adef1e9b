"""How long ranks take to exchange tensors, by the bytes of Quire's own collectives and a link's two numbers."""

from __future__ import annotations

from quire.core.mapping import Mapping
from quire.simulation.timing.costs import ExchangeCost
from quire.simulation.timing.hardware import Link


class Exchanges:
    """The links of one stage of a pipeline.

    Args:
        mapping: Of a rank of the stage.
        inside: The link between devices of a host.
        between: The link between hosts.
    """

    def __init__(self, mapping: Mapping, inside: Link, between: Link) -> None:
        group = mapping.tp_group
        self._num_ranks = mapping.tp_size
        self._group = inside if _is_one_host(group[0], group[-1], mapping) else between
        self._next = inside if _is_one_host(mapping.rank, mapping.next_pp_rank, mapping) else between

    def seconds(self, cost: ExchangeCost, rows: int) -> float:
        """Return the seconds of one exchange; what one rank sends, another waits for, so receiving takes none."""
        if rows == 0 or cost.op == "recv":
            return 0.0
        size, others, link = cost.row_bytes * rows, self._num_ranks - 1, self._group
        if cost.op == "send":
            return self._next.latency_s + size / self._next.bytes_per_s
        gather = link.latency_s + others * size / link.bytes_per_s
        if cost.op == "all_gather":
            return gather
        # Few bytes: everything to everybody, summed there. Many: a piece to each, and the sums back.
        pieces = 2 * link.latency_s + 2 * others / self._num_ranks * size / link.bytes_per_s
        return min(gather, pieces)


def _is_one_host(rank: int, other: int, mapping: Mapping) -> bool:
    return rank // mapping.gpus_per_node == other // mapping.gpus_per_node
