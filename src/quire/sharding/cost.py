"""What a layout costs, counted from the ranks' networks: bytes that a rank holds, bytes that it sends in a step.

An exchange is counted by its tensor, and held against the fewest bytes that any way of doing it could send:

    all_reduce of b bytes, n ranks     each sends at least 2 (n - 1) / n b    (n - 1) b if small: one exchange, not two
    all_gather to b bytes, n ranks     each sends at least (n - 1) / n b      as much
    send of b bytes, n ranks a stage   each sends at least b / n              b: no exchange among the next stage's

(Chan et al. 2007, Collective communication: theory, practice, and experience, section 4.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping as Dictionary
from collections.abc import Sequence
from dataclasses import dataclass, replace

from quire.core.mapping import Mapping
from quire.graph.network import Network
from quire.graph.nodes import is_call, spec
from quire.ops.spec import num_bytes
from quire.plan.plan import Plan
from quire.sharding.shard import shard

_KINDS = ("all_reduce", "all_gather", "send")


@dataclass(frozen=True, slots=True)
class Exchange:
    """One exchange of a step, as one of its ranks sees it.

    Attributes:
        kind: "all_reduce", "all_gather" or "send".
        ranks: All that take part; of a send the sender and the receiver.
        row_bytes: Bytes of a row of the tensor: of a sum, of what is gathered when it is whole, of what is sent.
        rows: What a row is of: "num_tokens" or "num_logits".
        stage_size: Ranks of a stage, `tp_size`.
    """

    kind: str
    ranks: tuple[int, ...]
    row_bytes: int
    rows: str
    stage_size: int

    def sent_bytes(self, num_rows: int, whole_bytes: int = 0) -> int:
        """Return what this rank sends.

        Args:
            num_rows: Rows of the tensor.
            whole_bytes: A sum of at most so many bytes goes whole to every rank (`communicator.WHOLE_BYTES`).
        """
        total, others = num_rows * self.row_bytes, self.stage_size - 1
        if self.kind == "send":
            return total
        if self.kind == "all_reduce":
            return others * total if total <= whole_bytes else 2 * others * -(-total // self.stage_size)
        return others * -(-total // self.stage_size)

    def least_bytes(self, num_rows: int) -> float:
        """Return what this rank must send at least, however it is done."""
        share = num_rows * self.row_bytes / self.stage_size
        return (
            share * {"send": 1, "all_reduce": 2 * (self.stage_size - 1), "all_gather": self.stage_size - 1}[self.kind]
        )


@dataclass(frozen=True, slots=True)
class RankCost:
    """What one rank holds and exchanges.

    Attributes:
        mapping: Which rank, of how many.
        layers: Layers of its stage.
        weight_bytes: Of its weights as they are stored.
        kv_bytes_per_token: Of keys and values of one token.
        exchanges: What a step exchanges, in order.
    """

    mapping: Mapping
    layers: int
    weight_bytes: int
    kv_bytes_per_token: int
    exchanges: tuple[Exchange, ...]

    def sent_bytes(self, num_tokens: int, num_logits: int, whole_bytes: int = 0) -> int:
        """Return what this rank sends in a step.

        Args:
            num_tokens: Tokens of the step.
            num_logits: Tokens whose logits are computed.
            whole_bytes: As for `Exchange.sent_bytes`.
        """
        return sum(self.link_bytes(num_tokens, num_logits, whole_bytes).values())

    def least_bytes(self, num_tokens: int, num_logits: int) -> float:
        """Return what this rank must send in a step at least, given its layout."""
        rows = {"num_tokens": num_tokens, "num_logits": num_logits}
        return sum(each.least_bytes(rows[each.rows]) for each in self.exchanges)

    def link_bytes(self, num_tokens: int, num_logits: int, whole_bytes: int = 0) -> Dictionary[int, int]:
        """Return what this rank sends to each other rank in a step.

        Args:
            num_tokens: Tokens of the step.
            num_logits: Tokens whose logits are computed.
            whole_bytes: As for `Exchange.sent_bytes`.
        """
        rows, links = {"num_tokens": num_tokens, "num_logits": num_logits}, Counter[int]()
        for each in self.exchanges:
            others = [rank for rank in each.ranks if rank != self.mapping.rank]
            for rank in others:
                links[rank] += each.sent_bytes(rows[each.rows], whole_bytes) // len(others)
        return links


def rank_cost(local: Plan, mapping: Mapping) -> RankCost:
    """Return the cost of a rank, given what `shard` made for it."""
    return RankCost(
        mapping=mapping,
        layers=len(local.kv_caches),
        weight_bytes=sum(num_bytes(each) for each in local.network.weights.values()),
        kv_bytes_per_token=local.kv_bytes_per_token,
        exchanges=tuple(exchanges(local.network, mapping)),
    )


def layout_costs(plan: Plan, tp_size: int, pp_size: int, stages: Sequence[int] | None = None) -> list[RankCost]:
    """Return the costs of all ranks of a layout, in order of ranks; nothing is read.

    Args:
        plan: Of the whole model.
        tp_size: Ranks that share every layer.
        pp_size: Stages.
        stages: Layers of each stage, as for `shard`.

    Raises:
        ConfigError: The model cannot be dealt out like that.
    """
    world_size = tp_size * pp_size
    first = Mapping(world_size, 0, tp_size=tp_size, pp_size=pp_size)
    mappings = [replace(first, rank=rank) for rank in range(world_size)]
    return [rank_cost(shard(plan, mapping, stages), mapping) for mapping in mappings]


def exchanges(network: Network, mapping: Mapping) -> list[Exchange]:
    """Return what a rank's network exchanges in a step, in order."""
    found = []
    for node in network.calls():
        if not is_call(node, *_KINDS):
            continue
        x = node.kwargs["x"] if is_call(node, "send") else node
        tensor = spec(x)  # type: ignore[arg-type]
        ranks = (mapping.rank, int(str(node.kwargs["rank"]))) if is_call(node, "send") else tuple(mapping.tp_group)
        row_bytes = int(tensor.shape[-1]) * tensor.dtype.itemsize
        kind = next(kind for kind in _KINDS if is_call(node, kind))
        found.append(Exchange(kind, ranks, row_bytes, str(tensor.shape[0]), mapping.tp_size))
    return found
