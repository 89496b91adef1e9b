"""From what a person set to numbers: `EngineConfig` to `SchedulerConfig`, each choice logged with its reason."""

from __future__ import annotations

from collections.abc import Sequence

from quire.core.config import EngineConfig, SchedulerConfig
from quire.core.errors import ConfigError
from quire.core.log import get_logger
from quire.engine.capacity import divide, longest_kv_bytes, max_num_logits
from quire.plan.device import device_kind
from quire.plan.memory import MemoryPlan, mib
from quire.plan.plan import Plan
from quire.runner.device import available_memory_bytes

_log = get_logger(__name__)


def resolve(config: EngineConfig, plan: Plan, available_bytes: int | None = None) -> tuple[SchedulerConfig, MemoryPlan]:
    """Turn every None into a value that fits the machine.

    Args:
        config: What was set.
        plan: The model.
        available_bytes: Memory that there is for it; None takes what this machine has free.

    Returns:
        The scheduler's settings, and where the bytes go.

    Raises:
        ConfigError: A setting contradicts the model or another setting.
        CapacityError: The model does not fit.
    """
    available = available_memory_bytes(device_kind(config.device)) if available_bytes is None else available_bytes
    return resolve_parts(config, [(plan, available)])


def resolve_parts(config: EngineConfig, parts: Sequence[tuple[Plan, int]]) -> tuple[SchedulerConfig, MemoryPlan]:
    """Turn every None into a value that fits all parts of a model: one block table serves them all.

    Args:
        config: What was set.
        parts: Of the model, each with the memory that there is for it.

    Returns:
        The scheduler's settings, and where the bytes go in the part that holds the fewest blocks.

    Raises:
        ConfigError: A setting contradicts the model or another setting.
        CapacityError: A part does not fit.
    """
    longest = min(longest_sequence(config, part, available) for part, available in parts)
    divided = [(divide(config, part, longest, available), part) for part, available in parts]
    memory, plan = min(divided, key=lambda each: each[0].num_blocks)
    length = _fitting_length(config, plan, longest, memory)
    _check_ranges(config, plan, memory, -(-length // config.block_size))
    needs = memory.needs
    _log.info(
        "memory: weights %s, workspace %s (sampling %s), overhead %s, KV cache %s = %d blocks of %d tokens (%d "
        "sequences of %d tokens)",
        *map(mib, (needs.weights, needs.step, needs.sampling, needs.overhead, memory.kv_bytes)),
        memory.num_blocks,
        memory.block_size,
        memory.num_sequences(length),
        length,
    )
    return (
        SchedulerConfig(
            max_model_len=length,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            block_size=config.block_size,
            num_blocks=memory.num_blocks,
            enable_prefix_caching=config.enable_prefix_caching,
            enable_chunked_prefill=config.enable_chunked_prefill,
            scheduling_policy=config.scheduling_policy,
            max_num_logits=max_num_logits(config),
            max_num_prefill_tokens=config.max_num_prefill_tokens or config.max_num_batched_tokens,
            num_batches=config.pipeline_parallel_size,
        ),
        memory,
    )


def longest_sequence(config: EngineConfig, plan: Plan, available_bytes: int) -> int:
    """Return the longest sequence that there may be, in tokens.

    Args:
        config: What was set.
        plan: The model.
        available_bytes: Memory that there is for it.

    Raises:
        ConfigError: More was asked for than the model was made for.
    """
    most = plan.spec.max_position_embeddings
    length = config.max_model_len or most
    if length > most:
        raise ConfigError(f"max_model_len: expected at most {most}, which the model was made for, got {length}.")
    if config.max_model_len is not None:
        return length
    kv_bytes = longest_kv_bytes(config, available_bytes)
    return max(1, min(length, kv_bytes // plan.kv_bytes_per_token))  # what no KV cache can hold needs no workspace


def _fitting_length(config: EngineConfig, plan: Plan, length: int, memory: MemoryPlan) -> int:
    """Return a sequence length of which at least one fits; shorten only what nobody asked for."""
    fitting, most = min(length, memory.num_tokens), plan.spec.max_position_embeddings
    if config.max_model_len is None and fitting < most:
        _log.info("max_model_len: %d, because the KV cache holds no more (the model could take %d)", fitting, most)
    elif fitting < length:
        needed = (-(-length // memory.block_size) + 1) * memory.kv_bytes_per_block
        raise ConfigError(
            f"max_model_len: expected at most {memory.num_tokens} tokens, which the KV cache of "
            f"{mib(memory.kv_bytes)} holds, got {length}. Lower it, or set kv_cache_memory_bytes={needed}."
        )
    return fitting


def _check_ranges(config: EngineConfig, plan: Plan, memory: MemoryPlan, most_blocks: int) -> None:
    """Refuse settings under which a step may have a size out of the range that the network declares for it."""
    reached = {
        "num_tokens": ("max_num_batched_tokens", 1, config.max_num_batched_tokens),
        "num_seqs": ("max_num_seqs", 1, config.max_num_seqs),
        "num_boundaries": ("max_num_seqs + 1", 2, config.max_num_seqs + 1),
        "max_blocks": ("max_model_len / block_size", 1, most_blocks),
        "block_size": ("block_size", config.block_size, config.block_size),
        "num_blocks": ("KV cache blocks", memory.num_blocks, memory.num_blocks),
    }
    for size, (low, high) in plan.network.ranges.items():
        setting, least, most = reached.get(size, (size, low, high))
        if not low <= least <= most <= high:
            raise ConfigError(
                f"{setting}: expected {size} to stay in {low}..{high}, which the network declares, got {least}..{most}."
            )
