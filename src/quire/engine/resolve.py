"""From what a person set to numbers: `EngineConfig` to `SchedulerConfig`, each choice logged with its reason."""

from __future__ import annotations

from quire.core.config import EngineConfig, SchedulerConfig
from quire.core.errors import ConfigError
from quire.core.log import get_logger
from quire.plan.memory import MemoryPlan, plan_memory
from quire.plan.plan import Plan
from quire.runner.device import available_memory_bytes

_log = get_logger(__name__)

# Enough for long chats of many users with a small model; more would surprise on a laptop.
DEFAULT_KV_BYTES = 4 << 30


def resolve(config: EngineConfig, plan: Plan) -> tuple[SchedulerConfig, MemoryPlan]:
    """Turn every None into a value that fits this machine.

    Args:
        config: What was set.
        plan: The model.

    Returns:
        The scheduler's settings, and where the bytes go.

    Raises:
        ConfigError: A setting contradicts the model or another setting.
        CapacityError: The model does not fit.
    """
    most = plan.spec.max_position_embeddings
    length = config.max_model_len or most
    if length > most:
        raise ConfigError(f"max_model_len: expected at most {most}, which the model was made for, got {length}.")
    kv_bytes = config.kv_cache_memory_bytes
    budget = int(config.gpu_memory_utilization * available_memory_bytes())
    blocks_per_sequence = -(-length // config.block_size)
    useful = config.max_num_seqs * blocks_per_sequence + 1
    affordable = max(2, DEFAULT_KV_BYTES // (plan.kv_bytes_per_token * config.block_size))
    memory = plan_memory(
        plan.network,
        plan.kv_bytes_per_token,
        budget_bytes=budget,
        block_size=config.block_size,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_num_seqs=config.max_num_seqs,
        most_blocks=useful if kv_bytes is not None else min(useful, affordable),
        kv_bytes=kv_bytes,
    )
    length = _fitting_length(config, length, memory)
    _check_ranges(config, plan, memory, -(-length // config.block_size))
    _log.info(
        "memory: weights %s, workspace %s, KV cache %s = %d blocks of %d tokens (%d sequences of %d tokens)",
        mib(memory.weight_bytes),
        mib(memory.workspace_bytes),
        mib(memory.kv_bytes),
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
        ),
        memory,
    )


def _fitting_length(config: EngineConfig, length: int, memory: MemoryPlan) -> int:
    """Return a sequence length of which at least one fits; shorten only what nobody asked for."""
    if memory.num_tokens >= length:
        return length
    if config.max_model_len is not None:
        raise ConfigError(
            f"max_model_len: expected at most {memory.num_tokens} tokens, which the KV cache of "
            f"{mib(memory.kv_bytes)} holds, got {length}. Lower it or raise kv_cache_memory_bytes."
        )
    _log.info(
        "max_model_len: %d, because the KV cache holds no more (the model could take %d)", memory.num_tokens, length
    )
    return memory.num_tokens


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


def mib(num_bytes: int) -> str:
    """Return bytes for people, in MiB."""
    return f"{num_bytes / 2**20:,.1f} MiB"
