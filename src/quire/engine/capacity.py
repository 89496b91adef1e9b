"""What an `EngineConfig` asks of memory, and settings that fit where it asks too much."""

from __future__ import annotations

from dataclasses import replace

from quire.core.config import EngineConfig
from quire.core.errors import CapacityError
from quire.graph.nodes import spec
from quire.ops.tactics import table
from quire.plan.device import device_kind, num_threads, this_device
from quire.plan.memory import MemoryNeeds, MemoryPlan, StepLimits, memory_needs, mib, plan_memory
from quire.plan.plan import Plan
from quire.plan.tactics import choices
from quire.runner.device import GPU_PROCESS, PROCESS
from quire.sampling.workspace import SampledLogits, gpu_sampling_bytes, gpu_state_bytes, sampling_bytes

# Enough for long chats of many users with a small model; more would surprise on a laptop.
DEFAULT_KV_BYTES = 4 << 30
# Prompt tokens whose logprobs are computed at once where there are fewer seats: of 152,000 tokens, 19 MB in bfloat16.
_LEAST_LOGITS = 64


def max_num_logits(config: EngineConfig) -> int:
    """Return for how many tokens of a step logits may be computed."""
    most = config.max_num_batched_tokens
    return min(most, max(config.max_num_seqs, _LEAST_LOGITS)) if config.enable_chunked_prefill else most


def needs_of(config: EngineConfig, plan: Plan, max_model_len: int) -> MemoryNeeds:
    """Return what a model needs beside its KV cache.

    Args:
        config: How it is to run.
        plan: The model.
        max_model_len: Longest sequence, in tokens.
    """
    device = device_kind(config.device)
    table(device)  # raises where what a device's kernels are written in is missing
    num_logits = max_num_logits(config)
    is_gathered = "logits_indices" in plan.network.inputs
    return memory_needs(
        plan.network,
        StepLimits(config.max_num_batched_tokens, config.max_num_seqs, num_logits, max_model_len, config.block_size),
        sampling_bytes=_sampling_bytes(config, plan, max_model_len, device),
        chosen_bytes=0 if is_gathered else num_logits * _logits_row_bytes(plan),
        held_bytes=_held_bytes(config, plan, max_model_len) if device == "cuda" else 0,
        process=GPU_PROCESS if device == "cuda" else PROCESS,
        device=device,
        chosen=choices(plan.tactics, this_device(device), plan.network, deterministic=config.deterministic),
    )


def _logits_row_bytes(plan: Plan) -> int:
    """Return the bytes of the logits of one token; none in a part of a model that leaves them to others."""
    logits = plan.network.outputs.get("logits")
    return plan.spec.vocab_size * spec(logits).dtype.itemsize if logits is not None else 0


def _sampling_bytes(config: EngineConfig, plan: Plan, max_model_len: int, device: str) -> int:
    """Return what sampling takes beside the logits."""
    if "logits" not in plan.network.outputs:
        return 0
    num_sampled, vocab_size = min(config.max_num_seqs, config.max_num_batched_tokens), plan.spec.vocab_size
    if device == "cuda":
        return gpu_sampling_bytes(num_sampled, vocab_size)
    dtype = spec(plan.network.outputs["logits"]).dtype
    sampled = SampledLogits(num_sampled, max_num_logits(config), vocab_size, dtype, max_model_len)
    return sampling_bytes(sampled, num_threads())


def _held_bytes(config: EngineConfig, plan: Plan, max_model_len: int) -> int:
    """Return what a GPU keeps between steps.

    Block tables, twice; what sampling knows of rows; the logits of prompts whose logprobs are wanted, while the next
    step runs; and of captured graphs their logits and the most that one of them needs: they share one pool.
    """
    num_seqs, vocab_size = config.max_num_seqs, plan.spec.vocab_size
    row_bytes = _logits_row_bytes(plan)
    held = 2 * num_seqs * -(-max_model_len // config.block_size) * 4
    held += gpu_state_bytes(num_seqs, vocab_size) + max_num_logits(config) * row_bytes
    if config.enforce_eager:
        return held
    from quire.runner.captured import graph_sizes

    num_captured = graph_sizes(min(num_seqs, config.max_num_batched_tokens))[-1]
    largest = StepLimits(num_captured, num_captured, num_captured, max_model_len, config.block_size)
    captured = memory_needs(plan.network, largest, device="cuda").workspace
    sampling = gpu_sampling_bytes(num_captured, vocab_size, is_captured=True)
    return held + max(captured, sampling) + num_captured * row_bytes


def divide(config: EngineConfig, plan: Plan, max_model_len: int, available_bytes: int) -> MemoryPlan:
    """Divide the memory that there is: what is left beside the needs is KV cache, as far as it is of use.

    Args:
        config: How the model is to run.
        plan: The model.
        max_model_len: Longest sequence, in tokens.
        available_bytes: What the machine has left for it.

    Raises:
        CapacityError: It does not fit; the message names the largest term and settings that do.
    """
    needs = needs_of(config, plan, max_model_len)
    try:
        return _divide(config, plan, max_model_len, available_bytes, needs)
    except CapacityError as error:
        raise CapacityError(f"{error} {_advice(config, plan, max_model_len, available_bytes, needs)}") from None


def _divide(
    config: EngineConfig, plan: Plan, max_model_len: int, available_bytes: int, needs: MemoryNeeds
) -> MemoryPlan:
    per_block = plan.kv_bytes_per_token * config.block_size
    useful = config.max_num_seqs * -(-max_model_len // config.block_size) + 1
    kv_bytes = config.kv_cache_memory_bytes
    return plan_memory(
        needs,
        budget_bytes=budget_bytes(config, available_bytes),
        kv_bytes_per_block=per_block,
        block_size=config.block_size,
        most_blocks=useful if kv_bytes is not None else min(useful, max(2, _most_kv_bytes(config) // per_block)),
        kv_bytes=kv_bytes,
    )


def _most_kv_bytes(config: EngineConfig) -> int:
    """Return how large a KV cache may get that nobody asked for: a GPU's memory is there for it."""
    return DEFAULT_KV_BYTES if device_kind(config.device) == "cpu" else 1 << 62


def longest_kv_bytes(config: EngineConfig, available_bytes: int) -> int:
    """Return the bytes of KV cache of which no more can be had."""
    return config.kv_cache_memory_bytes or min(_most_kv_bytes(config), budget_bytes(config, available_bytes))


def budget_bytes(config: EngineConfig, available_bytes: int) -> int:
    """Return the bytes for everything: a share of what there is, or all if the size of the KV cache is given."""
    return available_bytes if config.kv_cache_memory_bytes else int(config.gpu_memory_utilization * available_bytes)


def _advice(config: EngineConfig, plan: Plan, max_model_len: int, available_bytes: int, needs: MemoryNeeds) -> str:
    """Return settings that fit, each on its own; what would have to change if there are none."""
    per_block = plan.kv_bytes_per_token * config.block_size
    budget, kv_bytes = budget_bytes(config, available_bytes), config.kv_cache_memory_bytes
    fitting = []
    if kv_bytes is not None and kv_bytes < 2 * per_block:
        fitting.append(f"kv_cache_memory_bytes={2 * per_block}")
    elif kv_bytes is not None and budget - needs.total >= 2 * per_block:
        fitting.append(f"kv_cache_memory_bytes={budget - needs.total}")
    share = -(-100 * (needs.total + 2 * per_block) // max(1, available_bytes)) / 100
    if kv_bytes is None and share <= 1:
        fitting.append(f"gpu_memory_utilization={share:g}")
    tokens = _fitting_tokens(config, plan, max_model_len, available_bytes)
    if tokens is not None:
        fitting.append(f"max_num_batched_tokens={tokens}")
    if fitting:
        return f"What fits: {', or '.join(fitting)}."
    least = needs.weights + needs.overhead + 2 * per_block
    return (
        f"No number of tokens in a step fits: weights, overhead and the smallest KV cache take {mib(least)}. Quantize "
        "the model (`quire plan` shows what that would save), or use a machine with more memory."
    )


def _fitting_tokens(config: EngineConfig, plan: Plan, max_model_len: int, available_bytes: int) -> int | None:
    """Return the largest half, quarter, ... of the token budget with which the model fits, and at most as many rows."""
    tokens = config.max_num_batched_tokens // 2
    while tokens >= 1:
        smaller = replace(config, max_num_batched_tokens=tokens)
        try:
            _divide(smaller, plan, max_model_len, available_bytes, needs_of(smaller, plan, max_model_len))
        except CapacityError:
            tokens //= 2
        else:
            return tokens
    return None
