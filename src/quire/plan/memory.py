"""What a network needs in memory, computed from the graph before a byte is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import fx

from quire.core.errors import CapacityError
from quire.graph.network import Network
from quire.graph.nodes import op_of, spec, spec_argument
from quire.ops.op import Tactic
from quire.ops.spec import num_bytes, sizes_of
from quire.plan.folding import constant_nodes
from quire.plan.liveness import arguments_of, step_memory
from quire.plan.programs import Storage, storages
from quire.plan.tactics import choose


@dataclass(frozen=True, slots=True)
class StepLimits:
    """The largest step.

    Attributes:
        max_num_batched_tokens: Tokens.
        max_num_seqs: Sequences.
        max_num_logits: Tokens whose logits are computed: the sampled ones, and prompt tokens whose logprobs are wanted.
        max_model_len: Tokens of a sequence, those in the cache included.
        block_size: Tokens in a KV cache block.
    """

    max_num_batched_tokens: int
    max_num_seqs: int
    max_num_logits: int
    max_model_len: int
    block_size: int

    def sizes(self) -> dict[str, int]:
        """Return a number for every symbolic size of a network that is served."""
        num_seqs = min(self.max_num_seqs, self.max_num_batched_tokens)
        return {
            "num_tokens": self.max_num_batched_tokens,
            "num_logits": self.max_num_logits,
            "num_seqs": num_seqs,
            "num_boundaries": num_seqs + 1,
            "max_blocks": -(-self.max_model_len // self.block_size),
            "block_size": self.block_size,
            "num_blocks": 1,  # whatever depends on it is KV cache, which is counted in blocks
        }


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """What a process takes beside tensors.

    Attributes:
        code_bytes: Pages of code that the first steps touch.
        slack: Of a step's bytes, what the allocator holds beside them because free pieces do not fit.
    """

    code_bytes: int
    slack: float


@dataclass(frozen=True, slots=True)
class MemoryNeeds:
    """What a network needs beside its KV cache, in bytes.

    Attributes:
        weights: Weights as executed; a table that is both embedding and output projection may count twice.
        workspace: Most bytes at once while the network runs the largest step.
        sampling: Most bytes at once while the largest step's tokens are sampled; the workspace is free by then.
        overhead: What the process takes beside tensors: code, kernels that libraries make, what the allocator wastes.
        largest: The call of the network in which the workspace is largest.
    """

    weights: int
    workspace: int
    sampling: int
    overhead: int
    largest: str

    @property
    def step(self) -> int:
        """Most bytes at once in a step, beside weights and KV cache."""
        return max(self.workspace, self.sampling)

    @property
    def total(self) -> int:
        """All of it, in bytes."""
        return self.weights + self.step + self.overhead


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Where the bytes go.

    Attributes:
        needs: All but the KV cache.
        kv_bytes_per_block: Keys and values of one block over all layers.
        num_blocks: Blocks that fit what is left, the null block included.
        block_size: Tokens in a block.
    """

    needs: MemoryNeeds
    kv_bytes_per_block: int
    num_blocks: int
    block_size: int

    @property
    def kv_bytes(self) -> int:
        """Bytes of the whole KV cache."""
        return self.num_blocks * self.kv_bytes_per_block

    @property
    def total_bytes(self) -> int:
        """Most bytes at once."""
        return self.needs.total + self.kv_bytes

    @property
    def num_tokens(self) -> int:
        """Tokens that the KV cache holds, the null block excluded."""
        return (self.num_blocks - 1) * self.block_size

    def num_sequences(self, length: int) -> int:
        """Return how many sequences of `length` tokens fit at once."""
        return (self.num_blocks - 1) // -(-length // self.block_size)


def memory_needs(
    network: Network,
    limits: StepLimits,
    *,
    sampling_bytes: int = 0,
    chosen_bytes: int = 0,
    held_bytes: int = 0,
    process: ProcessMemory | None = None,
    device: str = "cpu",
    chosen: Mapping[str, str] | None = None,
) -> MemoryNeeds:
    """Return what a network needs beside its KV cache.

    Args:
        network: What will be executed.
        limits: The largest step.
        sampling_bytes: Most bytes that sampling takes beside the logits.
        chosen_bytes: Of the rows of logits that are chosen when the network has computed those of all tokens.
        held_bytes: Of what is there between steps, too, beside weights and KV cache; part of the overhead.
        process: What the process takes beside tensors; None leaves the overhead out.
        device: Kind of device.
        chosen: Names of measured tactics, by what `plan.tactics.describe` says of a call.

    Raises:
        ShapeError: The network has a size that `limits` does not name.
    """
    step = step_memory(network, limits.sizes(), device, chosen)
    weights, sampling = weight_bytes(network, device, chosen), step.left + sampling_bytes
    if chosen_bytes:
        sampling = max(step.left + chosen_bytes, step.inputs + chosen_bytes + sampling_bytes)
    overhead = held_bytes
    if process is not None:
        kept = library_bytes(network, limits.sizes(), device, chosen)
        overhead += process.code_bytes + kept + int(process.slack * max(step.peak, sampling))
    return MemoryNeeds(weights, step.peak, sampling, overhead, step.largest)


def library_bytes(
    network: Network, sizes: Mapping[str, int], device: str = "cpu", chosen: Mapping[str, str] | None = None
) -> int:
    """Return what libraries keep for the calls of a network once all steps up to the largest have occurred.

    Args:
        network: What will be executed.
        sizes: A number for every symbolic size.
        device: Kind of device.
        chosen: Names of measured tactics, by what `plan.tactics.describe` says of a call.
    """
    constants = constant_nodes(network)
    kept: dict[object, int] = {}
    for node in network.calls():
        tactic = None if node in constants else choose(node, constants, device, chosen)
        if tactic is not None and tactic.library_bytes is not None:
            shared, size = tactic.library_bytes(**arguments_of(node, sizes))
            kept[shared] = max(size, kept.get(shared, 0))
    return sum(kept.values())


def weight_bytes(network: Network, device: str = "cpu", chosen: Mapping[str, str] | None = None) -> int:
    """Return the bytes of all weights as they are executed, packed layouts and constants of the graph included.

    Args:
        network: What will be executed.
        device: Kind of device.
        chosen: Names of measured tactics, by what `plan.tactics.describe` says of a call.
    """
    constants = constant_nodes(network)
    packed: dict[Any, int] = {}
    kept: dict[Storage, int] = {}

    def keep(value: object) -> None:
        if isinstance(value, (list, tuple)):
            for item in value:
                keep(item)
        elif isinstance(value, fx.Node) and value in constants:
            kept.update((storage, _storage_bytes(storage)) for storage in storages(value))

    for node in network.calls():
        if node in constants:
            continue
        tactic = choose(node, constants, device, chosen)
        size = _packed_bytes(node, tactic)
        if size is not None:
            packed[(tactic.pack, *(node.kwargs[name] for name in tactic.pack_args))] = size
        for name, value in node.kwargs.items():
            if size is None or name not in tactic.pack_args:
                keep(value)
    keep(list(network.outputs.values()))
    return sum(packed.values()) + sum(kept.values())


def _packed_bytes(node: fx.Node, tactic: Tactic) -> int | None:
    """Return the bytes of what a tactic makes of a call's constants; None if it keeps them."""
    if tactic.pack is None or tactic.packed_bytes is None:
        return None
    return tactic.packed_bytes(**{name: spec_argument(node.kwargs[name]) for name in tactic.pack_args})


def _storage_bytes(storage: Storage) -> int:
    node, index = storage
    found = node.meta["spec"]
    return num_bytes(found[index] if isinstance(found, tuple) else found)


def flops_per_token(network: Network) -> int:
    """Return the floating point operations of all linear layers for one token; attention comes on top."""
    weights = (node.kwargs["weight"] for node in network.calls() if op_of(node).name == "linear")
    return sum(2 * prod(sizes_of(spec(weight))) for weight in weights if isinstance(weight, fx.Node))


def bytes_read_per_token(network: Network) -> int:
    """Return the bytes of all matrices of linear layers: what decoding one token reads of the weights."""
    weights = (node.kwargs["weight"] for node in network.calls() if op_of(node).name == "linear")
    return sum(num_bytes(spec(weight)) for weight in weights if isinstance(weight, fx.Node))


def plan_memory(
    needs: MemoryNeeds,
    *,
    budget_bytes: int,
    kv_bytes_per_block: int,
    block_size: int,
    most_blocks: int,
    kv_bytes: int | None = None,
) -> MemoryPlan:
    """Divide a budget: what is left beside the needs is KV cache.

    Args:
        needs: All but the KV cache.
        budget_bytes: Bytes for everything.
        kv_bytes_per_block: Of keys and values of one block over all layers.
        block_size: Tokens in a block.
        most_blocks: Blocks beyond which more are of no use.
        kv_bytes: Bytes of KV cache, instead of what is left of the budget.

    Raises:
        CapacityError: Not even two blocks fit, one of which is never anybody's; the message names all terms and the
            largest.
    """
    if kv_bytes is not None and kv_bytes < 2 * kv_bytes_per_block:
        raise CapacityError(
            f"the KV cache is too small: expected at least {2 * kv_bytes_per_block} bytes for two blocks, one of which "
            f"is never anybody's, got {kv_bytes}."
        )
    left = budget_bytes - needs.total
    wanted = min(left if kv_bytes is None else kv_bytes, most_blocks * kv_bytes_per_block)
    num_blocks = wanted // kv_bytes_per_block
    if num_blocks < 2 or wanted > left:
        raise CapacityError(_too_small(needs, max(num_blocks, 2) * kv_bytes_per_block, budget_bytes))
    return MemoryPlan(needs, kv_bytes_per_block, num_blocks, block_size)


def _too_small(needs: MemoryNeeds, kv_bytes: int, budget_bytes: int) -> str:
    terms = {
        "weights": needs.weights,
        "workspace" if needs.workspace >= needs.sampling else "sampling": needs.step,
        "overhead": needs.overhead,
        "KV cache": kv_bytes,
    }
    shown = ", ".join(f"{name} {mib(size)}" for name, size in terms.items())
    largest = max(terms, key=lambda term: terms[term])
    return (
        f"the memory budget is too small: expected at least {mib(sum(terms.values()))} ({shown}), got "
        f"{mib(budget_bytes)}. The largest term is {largest}."
    )


def mib(num_bytes: int) -> str:
    """Return bytes for people, in MiB."""
    return f"{num_bytes / 2**20:,.1f} MiB"
