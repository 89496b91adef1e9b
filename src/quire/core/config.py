"""Configurations a person sets: `BuildConfig` for the build wing, `EngineConfig` for the run wing.

Command line options, their defaults and their help are generated from these fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from quire.core.errors import ConfigError, did_you_mean

DTYPES = ("auto", "float32", "bfloat16", "float16")


def _help(text: str, **more: Any) -> dict[str, Any]:
    return {"help": text, **more}


def choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise ConfigError unless `value` is one of `choices`."""
    if value not in choices:
        hint = did_you_mean(value, choices) if isinstance(value, str) else ""
        raise ConfigError(f"{name}: expected one of {', '.join(choices)}, got {value!r}.{hint}")


def at_least(name: str, value: int | None, low: int) -> None:
    """Raise ConfigError unless `value` is None or an integer of at least `low`."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < low):
        raise ConfigError(f"{name}: expected an integer of at least {low}, got {value!r}.")


@dataclass(frozen=True, slots=True)
class BuildConfig:
    """What turns a model into a Plan; hashed into it."""

    dtype: str = field(default="auto", metadata=_help("dtype of weights and activations", choices=DTYPES))
    quantization: str | None = field(default=None, metadata=_help("weight quantization scheme (none yet)"))
    load_format: str = field(
        default="auto", metadata=_help("where weights come from; dummy: seeded values", choices=("auto", "dummy"))
    )
    revision: str | None = field(default=None, metadata=_help("branch, tag or commit of a hub model"))
    hf_overrides: Mapping[str, Any] | None = field(
        default=None, metadata=_help("JSON object laid over the model's config.json")
    )
    seed: int = field(default=0, metadata=_help("seed of dummy weights and of requests without their own"))

    def __post_init__(self) -> None:
        choice("dtype", self.dtype, DTYPES)
        choice("load_format", self.load_format, ("auto", "dummy"))
        if self.quantization is not None:
            raise ConfigError(f"quantization: expected None (no scheme is supported yet), got {self.quantization!r}.")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What may change at every load of a Plan. None means: chosen at load, and logged with the reason."""

    max_model_len: int | None = field(default=None, metadata=_help("longest prompt plus output, in tokens"))
    max_num_seqs: int = field(default=256, metadata=_help("most sequences running at once"))
    max_num_batched_tokens: int = field(default=2048, metadata=_help("token budget of one step"))
    block_size: int = field(default=16, metadata=_help("tokens in a KV cache block"))
    gpu_memory_utilization: float = field(
        default=0.9, metadata=_help("share of the device's memory for weights, workspace and KV cache")
    )
    kv_cache_memory_bytes: int | None = field(default=None, metadata=_help("bytes of KV cache, instead of the share"))
    kv_cache_dtype: str = field(default="auto", metadata=_help("dtype of the KV cache", choices=("auto",)))
    enable_prefix_caching: bool = field(default=True, metadata=_help("share the blocks of common prefixes"))
    enable_chunked_prefill: bool = field(default=True, metadata=_help("split long prompts over several steps"))
    scheduling_policy: str = field(default="fcfs", metadata=_help("who is served first", choices=("fcfs", "priority")))
    seed: int = field(default=0, metadata=_help("seed of requests without their own"))
    disable_log_stats: bool = field(default=True, metadata=_help("do not log throughput every ten seconds"))

    def __post_init__(self) -> None:
        for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "block_size", "kv_cache_memory_bytes"):
            at_least(name, getattr(self, name), 1)
        choice("scheduling_policy", self.scheduling_policy, ("fcfs", "priority"))
        choice("kv_cache_dtype", self.kv_cache_dtype, ("auto",))
        share = self.gpu_memory_utilization
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
            raise ConfigError(f"gpu_memory_utilization: expected a number in (0, 1], got {share!r}.")


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """`EngineConfig` after resolution, as far as the scheduler and the block pool are concerned: no None left.

    Attributes:
        max_model_len: Longest prompt plus output, in tokens.
        max_num_seqs: Most rows in one step.
        max_num_batched_tokens: Token budget of one step.
        block_size: Tokens in a block.
        num_blocks: Blocks in the pool, the reserved null block 0 included.
        enable_prefix_caching: Share blocks of common prefixes.
        enable_chunked_prefill: Split prompts that exceed what is left of the budget.
        scheduling_policy: "fcfs" or "priority".
    """

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    num_blocks: int
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True
    scheduling_policy: str = "fcfs"
