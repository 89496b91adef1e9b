"""Configurations a person sets: `BuildConfig` for the build wing, `EngineConfig` for the run wing.

Command line options, their defaults and their help are generated from these fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quire.core.errors import ConfigError, did_you_mean

DTYPES = ("auto", "float32", "bfloat16", "float16")
SCHEMES = ("w8a16", "w8a8", "w4a16", "fp8")
KV_CACHE_DTYPES = ("auto", "int8", "fp8")
DEVICES = ("auto", "cpu", "cuda")
EXECUTOR_BACKENDS = ("mp", "ray", "external_launcher")
BALANCED = "balanced"


def option(text: str, **more: Any) -> dict[str, Any]:
    """Return a field's metadata: the help of its command line option, and more: `choices`, other `flags`."""
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


def in_range(name: str, value: float | None, low: float, high: float) -> None:
    """Raise ConfigError unless `value` is None or a number in [low, high]."""
    if value is not None and (
        isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high
    ):
        raise ConfigError(f"{name}: expected a number in [{low:g}, {high:g}], got {value!r}.")


def _check_partition(value: object, pp_size: int) -> None:
    """Raise ConfigError unless `value` is as many numbers of layers as there are stages, with commas between them."""
    sizes = value.split(",") if isinstance(value, str) else []
    if len(sizes) != pp_size or not all(size.strip().isdecimal() and int(size) > 0 for size in sizes):
        expected = f"{BALANCED!r} or a number of layers for each of {pp_size} stages, with commas between them"
        raise ConfigError(f"pipeline_partition: expected {expected}, got {value!r}.")


def _strings(name: str, value: Any) -> tuple[str, ...]:
    """Return a list of strings as a tuple."""
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(item, str) for item in value):
        raise ConfigError(f"{name}: expected a list of strings, got {value!r}.")
    return tuple(value)


@dataclass(frozen=True, slots=True)
class BuildConfig:
    """What turns a model into a Plan; hashed into it."""

    dtype: str = field(default="auto", metadata=option("dtype of weights and activations", choices=DTYPES))
    quantization: str | None = field(default=None, metadata=option("scheme of all linear layers", choices=SCHEMES))
    kv_cache_dtype: str = field(
        default="auto", metadata=option("dtype of the KV cache; auto: that of activations", choices=KV_CACHE_DTYPES)
    )
    group_size: int = field(default=128, metadata=option("w4a16: input channels that share a scale", choices=(64, 128)))
    smooth: bool = field(
        default=True,
        metadata=option(
            "w8a8, w4a16: move range between activations and weights, and clip four-bit weights (SmoothQuant, AWQ)"
        ),
    )
    smooth_alpha: float | None = field(default=None, metadata=option("its exponent for all layers; None searches it"))
    exclude: tuple[str, ...] = field(
        default=("lm_head",), metadata=option("JSON list of layers that stay unquantized, by name or part of it")
    )
    calibration: str | None = field(
        default=None, metadata=option("text or JSONL file to calibrate and evaluate on; None takes the built-in text")
    )
    num_calibration_samples: int = field(default=128, metadata=option("pieces of text to calibrate on"))
    calibration_length: int = field(default=512, metadata=option("tokens in each of them"))
    max_kl: float | None = field(
        default=None,
        metadata=option(
            "mean KL divergence, in nats a token, over which a quantized build is refused; None: 0.004 for eight bits, "
            "0.01 for fp8, 0.1 for w4a16"
        ),
    )
    without_passes: tuple[str, ...] = field(default=(), metadata=option("JSON list of passes to leave out"))
    load_format: str = field(
        default="auto", metadata=option("where weights come from; dummy: seeded values", choices=("auto", "dummy"))
    )
    revision: str | None = field(default=None, metadata=option("branch, tag or commit of a hub model"))
    hf_overrides: Mapping[str, Any] | None = field(
        default=None, metadata=option("JSON object laid over the model's config.json")
    )
    seed: int = field(default=0, metadata=option("seed of dummy weights and of requests without their own"))

    def __post_init__(self) -> None:
        choice("dtype", self.dtype, DTYPES)
        choice("load_format", self.load_format, ("auto", "dummy"))
        choice("kv_cache_dtype", self.kv_cache_dtype, KV_CACHE_DTYPES)
        if self.quantization is not None:
            choice("quantization", self.quantization, SCHEMES)
        if self.group_size not in (64, 128):
            raise ConfigError(f"group_size: expected 64 or 128, got {self.group_size!r}.")
        at_least("num_calibration_samples", self.num_calibration_samples, 1)
        at_least("calibration_length", self.calibration_length, 2)
        in_range("smooth_alpha", self.smooth_alpha, 0, 1)
        in_range("max_kl", self.max_kl, 0, float("inf"))
        for name in ("exclude", "without_passes"):
            object.__setattr__(self, name, _strings(name, getattr(self, name)))


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What may change at every load of a Plan. None means: chosen at load, and logged with the reason."""

    device: str = field(
        default="auto", metadata=option("where to compute; auto: a GPU if there is one", choices=DEVICES)
    )
    deterministic: bool = field(
        default=True,
        metadata=option(
            "keep every request's bits whatever else runs, and with w8a8 and fp8 those of one rank; without it kernels "
            "and exchanges may be used that do not"
        ),
    )
    enforce_eager: bool = field(default=False, metadata=option("on a GPU, launch every kernel: no captured graphs"))
    tensor_parallel_size: int = field(
        default=1,
        metadata=option("ranks that share every layer, each a process with a device of its own", flags=("-tp",)),
    )
    pipeline_parallel_size: int = field(
        default=1, metadata=option("stages into which the layers are cut, each of so many ranks", flags=("-pp",))
    )
    pipeline_partition: str | None = field(
        default=None,
        metadata=option(
            "layers of each stage, as 9,9,8,6; balanced: such that no stage reads more bytes for a token than it must, "
            "the head included; None: as many each"
        ),
    )
    distributed_executor_backend: str | None = field(
        default=None,
        metadata=option(
            "who starts the ranks: mp, this process; ray, on its hosts; external_launcher, torchrun; None: mp",
            choices=EXECUTOR_BACKENDS,
        ),
    )
    max_model_len: int | None = field(default=None, metadata=option("longest prompt plus output, in tokens"))
    max_num_seqs: int = field(default=256, metadata=option("most sequences running at once"))
    max_num_batched_tokens: int = field(default=2048, metadata=option("token budget of one step"))
    block_size: int = field(default=16, metadata=option("tokens in a KV cache block"))
    gpu_memory_utilization: float = field(
        default=0.9, metadata=option("share of the device's memory for weights, workspace and KV cache")
    )
    kv_cache_memory_bytes: int | None = field(
        default=None, metadata=option("bytes of KV cache, of each rank, instead of the share")
    )
    enable_prefix_caching: bool = field(default=True, metadata=option("share the blocks of common prefixes"))
    enable_chunked_prefill: bool = field(default=True, metadata=option("split long prompts over several steps"))
    max_num_prefill_tokens: int | None = field(
        default=None,
        metadata=option(
            "prompt tokens in a step while other sequences generate; None: all of a step, in a server a 4th"
        ),
    )
    scheduling_policy: str = field(default="fcfs", metadata=option("who is served first", choices=("fcfs", "priority")))
    seed: int = field(default=0, metadata=option("seed of requests without their own"))
    disable_log_stats: bool = field(default=True, metadata=option("do not log throughput every ten seconds"))

    def __post_init__(self) -> None:
        for name in (
            "max_model_len",
            "max_num_seqs",
            "max_num_batched_tokens",
            "max_num_prefill_tokens",
            "block_size",
            "kv_cache_memory_bytes",
            "tensor_parallel_size",
            "pipeline_parallel_size",
        ):
            at_least(name, getattr(self, name), 1)
        if self.pipeline_partition not in (None, BALANCED):
            _check_partition(self.pipeline_partition, self.pipeline_parallel_size)
        if self.distributed_executor_backend is not None:
            choice("distributed_executor_backend", self.distributed_executor_backend, EXECUTOR_BACKENDS)
        choice("device", self.device, DEVICES)
        choice("scheduling_policy", self.scheduling_policy, ("fcfs", "priority"))
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
        max_num_logits: Tokens of one step whose logits are computed: sampled ones, and prompt tokens whose logprobs are
            wanted; at least `max_num_seqs`, or no less than the token budget.
        max_num_prefill_tokens: Tokens of one step for rows with more than one to compute, while another row has one.
        num_batches: Steps that are to be in flight with rows of their own each. With more than one a row waits for its
            token before the next is computed, and a step takes only its share of the rows.
    """

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    num_blocks: int
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True
    scheduling_policy: str = "fcfs"
    max_num_logits: int = 1 << 30
    max_num_prefill_tokens: int = 1 << 30
    num_batches: int = 1
