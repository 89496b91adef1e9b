"""What a layout costs, counted from the ranks' networks: bytes that a rank holds, bytes that it sends in a step.

An exchange is counted by its tensor, and held against the fewest bytes that any way of doing it could send:

    all_reduce of b bytes, n ranks     each sends at least 2 (n - 1) / n b    (n - 1) b if small: one exchange, not two
    all_gather of n times b bytes      each sends at least (n - 1) b          as much
    send of b bytes, n ranks a stage   each sends at least b / n              b: no exchange among the next stage's

(Chan et al. 2007, Collective communication: theory, practice, and experience, section 4.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping as Dictionary
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate

from torch import fx

from quire.core.config import BALANCED, EngineConfig
from quire.core.mapping import Mapping
from quire.graph.network import Network
from quire.graph.nodes import is_call, op_of, results, spec
from quire.ops.spec import num_bytes
from quire.plan.folding import constant_nodes
from quire.plan.plan import Plan
from quire.sharding.cut_stages import check_stages
from quire.sharding.shard import shard

_KINDS = {
    "all_reduce": "all_reduce",
    "all_reduce_add_rms_norm": "all_reduce",
    "all_gather": "all_gather",
    "send": "send",
}
"""Kind of exchange by op."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One exchange of a step, as one of its ranks sees it.

    Attributes:
        kind: "all_reduce", "all_gather" or "send".
        ranks: All that take part; of a send the sender and the receiver.
        row_bytes: Bytes of a row of what this rank gives: its term of a sum, its piece, or what it sends.
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
        return others * total

    def least_bytes(self, num_rows: int) -> float:
        """Return what this rank must send at least, however it is done."""
        total, others = num_rows * self.row_bytes, self.stage_size - 1
        factors = {"send": 1, "all_reduce": 2 * others, "all_gather": others * self.stage_size}
        return total * factors[self.kind] / self.stage_size


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


def layout_costs(plan: Plan, tp_size: int, pp_size: int) -> list[RankCost]:
    """Return the costs of all ranks of a layout, in order of ranks; nothing is read.

    Args:
        plan: Of the whole model.
        tp_size: Ranks that share every layer.
        pp_size: Stages.

    Raises:
        ConfigError: The model cannot be dealt out like that.
    """
    world_size = tp_size * pp_size
    first = Mapping(world_size, 0, tp_size=tp_size, pp_size=pp_size)
    mappings = [replace(first, rank=rank) for rank in range(world_size)]
    return [rank_cost(shard(plan, mapping), mapping) for mapping in mappings]


def pp_partition_of(plan: Plan, config: EngineConfig) -> tuple[int, ...] | None:
    """Return the layers of each stage as the settings ask; None leaves them to `Mapping.pp_layers`.

    Raises:
        ConfigError: There are fewer layers than stages.
    """
    asked = config.pipeline_partition
    if asked is None:
        return None
    if asked == BALANCED:
        return balanced_stages(plan, config.pipeline_parallel_size)
    return tuple(map(int, asked.split(",")))


def balanced_stages(plan: Plan, pp_size: int) -> tuple[int, ...]:
    """Return layers for each stage such that the largest stage reads the fewest bytes of weights for a token.

    Embedding and head count: a lookup reads no table but one row, the head reads all of its own. In the bytes' place
    stands time where decoding is bound by memory, and nearly so elsewhere, since all layers are products of one shape.

    Args:
        plan: Of the whole model.
        pp_size: Stages.

    Raises:
        ConfigError: There are fewer layers than stages.
    """
    layer_bytes, head_bytes = _read_bytes(plan)
    check_stages(len(layer_bytes), pp_size)
    starts = [0, *accumulate(layer_bytes)]

    @cache
    def best(first: int, stages: int) -> tuple[int, tuple[int, ...]]:
        """Return the bytes of the largest of some stages from a layer on, and the layers of each."""
        if stages == 1:
            return starts[-1] - starts[first] + head_bytes, (len(layer_bytes) - first,)
        found = []
        for count in range(1, len(layer_bytes) - first - stages + 2):
            rest, layers = best(first + count, stages - 1)
            found.append((max(starts[first + count] - starts[first], rest), (count, *layers)))
        return min(found)

    return best(0, pp_size)[1]


def _read_bytes(plan: Plan) -> tuple[list[int], int]:
    """Return the bytes of constants that each layer reads for a token, and those that are read after the last layer."""
    constants, caches = constant_nodes(plan.network), list(plan.kv_caches)
    layers, head, seen = [0] * len(caches), 0, 0
    logits = plan.network.outputs.get("logits")
    for node in plan.network.calls():
        if node in constants or is_call(node, "embedding"):
            continue
        size = sum(_num_bytes(used) for used in node.all_input_nodes if used in constants)
        cache_name = str(getattr(node.kwargs.get("kv_cache"), "target", ""))
        seen = max(seen, caches.index(cache_name) if cache_name in caches else 0)
        if node is logits:
            head += size
        else:
            layers[seen] += size
    return layers, head


def _num_bytes(constant: fx.Node) -> int:
    return sum(num_bytes(each) for each in results(constant))


def exchanges(network: Network, mapping: Mapping) -> list[Exchange]:
    """Return what a rank's network exchanges in a step, in order."""
    found = []
    for node in network.calls():
        if not is_call(node, *_KINDS):
            continue
        kind = _KINDS[op_of(node).name]
        tensor = spec(_node(node.kwargs["x"]))
        ranks = (mapping.rank, int(str(node.kwargs["rank"]))) if kind == "send" else tuple(mapping.tp_group)
        row_bytes = int(tensor.shape[-1]) * tensor.dtype.itemsize
        found.append(Exchange(kind, ranks, row_bytes, str(tensor.shape[0]), mapping.tp_size))
    return found


def _node(value: object) -> fx.Node:
    assert isinstance(value, fx.Node), f"{value} is no node"
    return value
