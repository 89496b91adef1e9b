"""What a network needs in memory, computed from the graph before a byte is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from torch import fx

from quire.core.errors import CapacityError
from quire.graph.network import Network
from quire.graph.nodes import is_call, op_of, results, spec
from quire.ops.spec import TensorSpec
from quire.plan.folding import constant_nodes

# Attention computes scores in float32 and keeps its tiles beside the network's own tensors.
_ATTENTION_BYTES_PER_ELEMENT = 4


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Where the bytes go.

    Attributes:
        weight_bytes: Weights as executed; a table that is both embedding and output projection counts twice.
        workspace_bytes: Most bytes of activations alive at once in the largest step.
        kv_bytes_per_block: Keys and values of one block over all layers.
        num_blocks: Blocks that fit what is left, the null block included.
        block_size: Tokens in a block.
    """

    weight_bytes: int
    workspace_bytes: int
    kv_bytes_per_block: int
    num_blocks: int
    block_size: int

    @property
    def kv_bytes(self) -> int:
        """Bytes of the whole KV cache."""
        return self.num_blocks * self.kv_bytes_per_block

    @property
    def num_tokens(self) -> int:
        """Tokens that the KV cache holds, the null block excluded."""
        return (self.num_blocks - 1) * self.block_size

    def num_sequences(self, length: int) -> int:
        """Return how many sequences of `length` tokens fit at once."""
        return (self.num_blocks - 1) // -(-length // self.block_size)


def weight_bytes(network: Network) -> int:
    """Return the bytes of all weights as they are executed, constants of the graph included."""
    constants = constant_nodes(network)
    total = 0
    for node in constants:
        uses = {op_of(user).name for user in node.users if user not in constants}
        copies = len(uses & {"linear"}) + bool(uses - {"linear"})
        total += copies * sum(_num_bytes(result, {}) for result in results(node))
    return total


def flops_per_token(network: Network) -> int:
    """Return the floating point operations of all linear layers for one token; attention comes on top."""
    weights = (node.kwargs["weight"] for node in network.calls() if op_of(node).name == "linear")
    return sum(2 * prod(_sizes(spec(weight), {})) for weight in weights if isinstance(weight, fx.Node))


def bytes_read_per_token(network: Network) -> int:
    """Return the bytes of all matrices of linear layers: what decoding one token reads of the weights."""
    weights = (node.kwargs["weight"] for node in network.calls() if op_of(node).name == "linear")
    return sum(_num_bytes(spec(weight), {}) for weight in weights if isinstance(weight, fx.Node))


def workspace_bytes(network: Network, sizes: Mapping[str, int]) -> int:
    """Return the most bytes of activations alive at once, by liveness over the graph.

    Args:
        network: The network.
        sizes: A number for every symbolic size.
    """
    constants = constant_nodes(network)
    order = [node for node in network.calls() if node not in constants]
    last_use = {used: i for i, node in enumerate(order) for used in node.all_input_nodes}
    last_use.update(dict.fromkeys(network.outputs.values(), len(order)))
    alive, peak = 0, 0
    for i, node in enumerate(order):
        alive += _held_bytes(node, sizes)
        extra = 0
        if is_call(node, "attention"):
            extra = 3 * prod(_sizes(spec(node), sizes)) * _ATTENTION_BYTES_PER_ELEMENT
        peak = max(peak, alive + extra)
        alive -= sum(
            _held_bytes(used, sizes)
            for used in {*node.all_input_nodes, node}
            if used.op == "call_function" and used not in constants and _is_dead(used, i, last_use)
        )
    return peak


def _held_bytes(node: fx.Node, sizes: Mapping[str, int]) -> int:
    """Return the bytes that a node holds; of several results each is held by the node that takes it."""
    found = node.meta["spec"]
    return _num_bytes(found, sizes) if isinstance(found, TensorSpec) else 0


def _is_dead(node: fx.Node, step: int, last_use: Mapping[fx.Node, int]) -> bool:
    """Return whether a call's result is not used after `step`; calls without a result hold nothing."""
    return node.meta["spec"] is not None and last_use.get(node, step) == step


def plan_memory(
    network: Network,
    kv_bytes_per_token: int,
    *,
    budget_bytes: int,
    block_size: int,
    max_num_batched_tokens: int,
    max_num_seqs: int,
    most_blocks: int,
    kv_bytes: int | None = None,
) -> MemoryPlan:
    """Divide a budget into weights, workspace and KV blocks.

    Args:
        network: What will be executed.
        kv_bytes_per_token: Of keys and values over all layers.
        budget_bytes: Bytes for everything.
        block_size: Tokens in a block.
        max_num_batched_tokens: Tokens of the largest step.
        max_num_seqs: Rows of the largest step, whose logits are alive at once.
        most_blocks: Blocks beyond which more are of no use.
        kv_bytes: Bytes of KV cache, instead of what is left of the budget.

    Raises:
        CapacityError: Not even two blocks fit; the message names the largest term and what would fit.
    """
    sizes = {"num_tokens": max_num_batched_tokens, "num_logits": max_num_seqs, "num_seqs": max_num_seqs,
             "num_boundaries": max_num_seqs + 1, "block_size": block_size, "num_blocks": most_blocks,
             "max_blocks": most_blocks}  # fmt: skip
    weights, workspace = weight_bytes(network), workspace_bytes(network, sizes)
    per_block = kv_bytes_per_token * block_size
    left = budget_bytes - weights - workspace if kv_bytes is None else kv_bytes
    num_blocks = min(left // per_block, most_blocks)
    if num_blocks < 2:
        terms = {"weights": weights, "workspace": workspace, "two KV blocks": 2 * per_block}
        largest = max(terms, key=lambda term: terms[term])
        shown = ", ".join(f"{name} {size / 2**20:,.1f} MiB" for name, size in terms.items())
        raise CapacityError(
            f"the memory budget is too small: expected at least {sum(terms.values()) / 2**20:,.1f} MiB ({shown}), got "
            f"{(budget_bytes if kv_bytes is None else kv_bytes) / 2**20:,.1f} MiB. The largest term is {largest}; "
            "raise gpu_memory_utilization or kv_cache_memory_bytes, or lower max_num_batched_tokens."
        )
    return MemoryPlan(weights, workspace, per_block, num_blocks, block_size)


def _sizes(declared: TensorSpec, sizes: Mapping[str, int]) -> list[int]:
    return [size if isinstance(size, int) else sizes[size] for size in declared.shape]


def _num_bytes(declared: TensorSpec, sizes: Mapping[str, int]) -> int:
    return prod(_sizes(declared, sizes)) * declared.dtype.itemsize
