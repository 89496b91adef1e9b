"""`scheduler_config`: how many blocks a replica has on devices that are not here, and what its scheduler is told."""

from __future__ import annotations

from collections.abc import Sequence

from quire.core.config import EngineConfig, SchedulerConfig
from quire.core.errors import CapacityError, ConfigError
from quire.plan.memory import ProcessMemory, StepLimits, memory_needs, plan_memory
from quire.plan.plan import Plan
from quire.simulation.timing.hardware import Hardware


def scheduler_config(
    stages: Sequence[Plan], config: EngineConfig, hardware: Hardware, process: ProcessMemory
) -> SchedulerConfig:
    """Return what the scheduler of a replica decides by: the block pool is the smallest of its stages'.

    Args:
        stages: The plan of one rank of each stage.
        config: What was set.
        hardware: The device of each rank.
        process: What a process takes of a device's memory beside tensors.

    Raises:
        ConfigError: A setting contradicts the model.
        CapacityError: The model does not fit.
    """
    most = stages[0].spec.max_position_embeddings
    length = config.max_model_len or most
    if length > most:
        raise ConfigError(f"max_model_len: expected at most {most}, which the model was made for, got {length}.")
    num_blocks = min(_num_blocks(stage, config, hardware, process, length) for stage in stages)
    fitting = (num_blocks - 1) * config.block_size
    if config.max_model_len is not None and length > fitting:
        raise CapacityError(
            f"max_model_len: expected at most {fitting} tokens, which the KV cache of a {hardware.name} holds, got "
            f"{length}. Lower it, or spread the model over more devices."
        )
    return SchedulerConfig(
        max_model_len=min(length, fitting),
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        block_size=config.block_size,
        num_blocks=num_blocks,
        enable_prefix_caching=config.enable_prefix_caching,
        enable_chunked_prefill=config.enable_chunked_prefill,
        scheduling_policy=config.scheduling_policy,
        max_num_prefill_tokens=config.max_num_prefill_tokens or config.max_num_batched_tokens,
        num_batches=config.pipeline_parallel_size,
    )


def _num_blocks(stage: Plan, config: EngineConfig, hardware: Hardware, process: ProcessMemory, length: int) -> int:
    """Return how many blocks fit beside the weights and the largest step of a stage."""
    logits = min(config.max_num_seqs, config.max_num_batched_tokens)
    limits = StepLimits(config.max_num_batched_tokens, config.max_num_seqs, logits, length, config.block_size)
    needs = memory_needs(stage.network, limits, process=process, device=hardware.kind)
    return plan_memory(
        needs,
        budget_bytes=int(config.gpu_memory_utilization * hardware.memory_bytes),
        kv_bytes_per_block=stage.kv_bytes_per_token * config.block_size,
        block_size=config.block_size,
        most_blocks=config.max_num_seqs * -(-length // config.block_size) + 1,
        kv_bytes=config.kv_cache_memory_bytes,
    ).num_blocks
