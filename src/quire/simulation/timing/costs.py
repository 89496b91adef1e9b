"""What the calls of a network cost in operations and bytes, as functions of a step's shape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, NamedTuple

from torch import fx

from quire.core.request import ScheduledRow, SchedulerOutput
from quire.graph.network import Network
from quire.graph.nodes import is_call, op_of, results, spec
from quire.ops.spec import TensorSpec, dtype_name
from quire.plan.folding import constant_nodes
from quire.plan.tactics import describe

_VIEWS = ("view", "permute", "transpose", "slice", "split", "item", "expand")
"""Ops whose result lies in their argument."""

_EXCHANGES = ("all_reduce", "all_gather", "send", "recv")
"""Ops that wait for other ranks: `timing/exchanges.py` has what they take."""

_GATHERS = ("embedding", "sharded_embedding", "index_select", "gather", "rope", "rope_append_kv")
"""Ops that read as much as they write, not the whole of their table."""

Window = int | None


class Attended(NamedTuple):
    """What the queries of a step see in layers of one window.

    Attributes:
        decode_keys: Keys of rows with one token, summed over those rows.
        prefill_keys: Keys of rows with more, each counted once.
        prefill_pairs: Pairs of a query and a key that it sees, of rows with more than one token.
    """

    decode_keys: int
    prefill_keys: int
    prefill_pairs: int


class StepShape(NamedTuple):
    """As much of a step as decides how long it takes.

    Attributes:
        num_tokens: Tokens computed.
        num_logits: Of them, those whose logits are.
        num_rows: Rows.
        num_new: Of them, those that take a seat.
        attended: By window of the model's layers.
    """

    num_tokens: int
    num_logits: int
    num_rows: int
    num_new: int
    attended: Mapping[Window, Attended]


def step_shape(step: SchedulerOutput, windows: Sequence[Window]) -> StepShape:
    """Return the shape of a step.

    Args:
        step: What was scheduled.
        windows: Of the model, without repetition.
    """
    return StepShape(
        num_tokens=step.num_scheduled_tokens,
        num_logits=sum(row.is_sampled for row in step.rows),
        num_rows=len(step.rows),
        num_new=len(step.new_rows),
        attended={window: _attended(step.rows, window) for window in windows},
    )


def _attended(rows: Sequence[ScheduledRow], window: Window) -> Attended:
    decode = keys = pairs = 0
    for row in rows:
        start, count = row.num_computed_tokens, row.num_scheduled_tokens
        if count == 1:
            decode += start + 1 if window is None else min(start + 1, window)
        else:
            keys += start + count if window is None else min(start + count, window + count - 1)
            pairs += _pairs(start, count, window)
    return Attended(decode, keys, pairs)


def _pairs(start: int, count: int, window: Window) -> int:
    """Return how many keys queries `start .. start + count - 1` see together: each all up to its own, or a window."""
    growing = count if window is None else max(0, min(count, window - start))
    full = 0 if window is None else window * (count - growing)
    return growing * start + growing * (growing + 1) // 2 + full


@dataclass(frozen=True, slots=True)
class CallCost:
    """What calls that are alike cost.

    Attributes:
        call: What `plan.tactics.describe` says of them.
        count: How many there are.
        rows: The symbolic size that they grow with, "num_tokens" or "num_logits".
        arithmetic: Dtype of their products; empty without any.
        flops: Operations of each row.
        fixed_bytes: Of weights, read once whatever the number of rows.
        row_bytes: Read and written for each row.
        read_share: Of the weights, what one row reads: less than all of a mixture of experts.
    """

    call: str
    count: int
    rows: str
    arithmetic: str
    flops: float
    fixed_bytes: float
    row_bytes: float
    read_share: float = 1.0

    def num_bytes(self, rows: int) -> float:
        """Return the bytes that one of the calls moves; rows choose their experts independently."""
        share = 1.0 - (1.0 - self.read_share) ** rows
        return self.fixed_bytes * share + self.row_bytes * rows


@dataclass(frozen=True, slots=True)
class AttentionCost:
    """What attention of layers that are alike costs.

    Attributes:
        count: Layers.
        window: How many latest keys a query sees; None: all.
        arithmetic: Dtype of their products.
        is_narrow: Whether keys and values are kept in eight bits, and widened to be used.
        pair_flops: Operations for a query and a key that it sees.
        key_bytes: Of a key and its value.
        query_bytes: Of a token's queries and results.
    """

    count: int
    window: Window
    arithmetic: str
    is_narrow: bool
    pair_flops: float
    key_bytes: float
    query_bytes: float


@dataclass(frozen=True, slots=True)
class NetworkCosts:
    """What a network costs.

    Attributes:
        calls: All but attention, exchanges, and what only names memory anew.
        attention: Attention.
    """

    calls: tuple[CallCost, ...]
    attention: tuple[AttentionCost, ...]

    @property
    def windows(self) -> tuple[Window, ...]:
        """Windows of the layers, without repetition."""
        return tuple(dict.fromkeys(cost.window for cost in self.attention))


def network_costs(network: Network) -> NetworkCosts:
    """Return what a network costs.

    Args:
        network: Of a plan, whole or of one rank.
    """
    constants = constant_nodes(network)
    nodes = [node for node in network.calls() if node not in constants and op_of(node).name not in _VIEWS]
    attention = [node for node in nodes if is_call(node, "attention")]
    calls = [node for node in nodes if not is_call(node, "attention", *_EXCHANGES)]
    return NetworkCosts(
        _counted(_call_cost(node, constants) for node in calls), _counted(map(_attention_cost, attention))
    )


def _counted(costs: Iterable[Any]) -> tuple[Any, ...]:
    """Return equal costs once, with their number."""
    return tuple(replace(cost, count=count) for cost, count in Counter(costs).items())


def _attention_cost(node: fx.Node) -> AttentionCost:
    window = node.kwargs["window"]
    query, cache = _tensor(node, "query"), _tensor(node, "kv_cache")
    heads, head_dim, kv_heads = (_number(size) for size in (query.shape[1], query.shape[2], cache.shape[2]))
    return AttentionCost(
        count=1,
        window=window if isinstance(window, int) else None,
        arithmetic=dtype_name(query.dtype),
        is_narrow=cache.dtype.itemsize == 1,
        pair_flops=4.0 * heads * head_dim,  # a product with the key, another with the value
        key_bytes=2.0 * kv_heads * head_dim * cache.dtype.itemsize,
        query_bytes=2.0 * _row_bytes(query),
    )


def _call_cost(node: fx.Node, constants: set[fx.Node]) -> CallCost:
    flops, arithmetic = _FLOPS.get(op_of(node).name, _no_flops)(node)
    inputs = [used for used in node.all_input_nodes if not str(used.target).startswith("kv_cache.")]
    given = [result for used in inputs if used not in constants for result in results(used)]
    fixed = sum(_row_bytes(result) for used in inputs if used in constants for result in results(used))
    moved = [*given, *results(node)]
    if op_of(node).name in _GATHERS:
        fixed, moved = 0.0, [*results(node), *results(node)]
    rows = next((size for result in moved for size in result.shape if isinstance(size, str)), "num_tokens")
    row_bytes = sum(map(_row_bytes, moved))
    return CallCost(describe(node), 1, rows, arithmetic, flops, fixed, row_bytes, _read_share(node))


def _no_flops(node: fx.Node) -> tuple[float, str]:
    return 0.0, ""


def _linear_flops(node: fx.Node) -> tuple[float, str]:
    """Two operations for each weight; in the weight's dtype where activations have it, too, else in theirs."""
    x, out = _tensor(node, "x"), spec(node)
    return 2.0 * _number(x.shape[-1]) * _number(out.shape[-1]), dtype_name(x.dtype)


def _matmul_flops(node: fx.Node) -> tuple[float, str]:
    x, out = _tensor(node, "x"), spec(node)
    inner = x.shape[-1]
    per_row = prod(size for size in out.shape if isinstance(size, int))
    return 2.0 * per_row * (inner if isinstance(inner, int) else 1), dtype_name(x.dtype)


def _moe_flops(node: fx.Node) -> tuple[float, str]:
    gate, chosen = _tensor(node, "gate"), _tensor(node, "expert_ids")
    _, inner, hidden = (_number(size) for size in gate.shape)
    return 6.0 * inner * hidden * _number(chosen.shape[1]), dtype_name(gate.dtype)


_FLOPS: dict[str, Callable[[fx.Node], tuple[float, str]]] = {
    **dict.fromkeys(("linear", "linear_w8a16", "linear_w8a8", "linear_w4a16"), _linear_flops),
    "matmul": _matmul_flops,
    "moe": _moe_flops,
}


def _read_share(node: fx.Node) -> float:
    if op_of(node).name != "moe":
        return 1.0
    return _number(_tensor(node, "expert_ids").shape[1]) / _number(_tensor(node, "gate").shape[0])


def _tensor(node: fx.Node, name: str) -> TensorSpec:
    value = node.kwargs[name]
    assert isinstance(value, fx.Node), f"{name} of {node} is no tensor"
    return spec(value)


def _number(size: int | str) -> int:
    assert isinstance(size, int), f"expected a fixed size, got {size}"
    return size


def _row_bytes(tensor: TensorSpec) -> float:
    """Return the bytes of a tensor for each unit of its symbolic sizes."""
    return float(tensor.dtype.itemsize * prod(size for size in tensor.shape if isinstance(size, int)))
