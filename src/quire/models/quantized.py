"""How a checkpoint is quantized: `quantization_config` of its `config.json`, every field honoured or refused by name.

Formats: compressed-tensors (https://github.com/vllm-project/compressed-tensors), AWQ as AutoAWQ's GEMM version stores
it (Lin et al. 2023, https://arxiv.org/abs/2306.00978), GPTQ as AutoGPTQ and GPTQModel store it (Frantar et al. 2022,
https://arxiv.org/abs/2210.17323), and FP8 with scales per tensor, channel or block.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from quire.models.config_reader import MAX_WIDTH, ConfigReader

WHOLE = -1
"""As a size of a block: all channels."""

_MAX_PATTERN = 512
_SECTIONS = ("quantization_config", "compression_config")
_PACKED, _PLAIN = "pack-quantized", ("int-quantized", "float-quantized", "naive-quantized")

# What tools note beside the fields that say how tensors are stored.
_ARGUMENTS = "observer observer_kwargs scale_dtype zp_dtype"
_FORMAT = "global_compression_ratio version run_compressed quantization_status"
_FP8 = "dequantize expert_dtype scale_fmt"
_CALIBRATION = """
    method pack_impl sym true_sequential static_groups act_group_aware damp_percent damp_auto_increment mse meta
    quantizer uri model_name_or_path model_file_base_name model_seqlen tokenizer dataset batch_size
    pad_token_id block_name_to_quantize module_name_preceding_first_block cache_block_outputs max_input_length
    backend use_exllama disable_exllama exllama_config use_cuda_fp16 do_fuse fuse_max_seq_len modules_to_fuse
    autoround_version iters lr minmax_lr amp nsamples seqlen train_bs low_gpu_mem_usage gradient_accumulate_steps
    enable_minmax_tuning enable_norm_bias_tuning enable_quanted_input to_quant_block_names scale_dtype
"""


@dataclass(frozen=True, slots=True)
class StoredScheme:
    """How a checkpoint stores a quantized linear layer.

    Attributes:
        layout: "plain" (`weight` of 8 bits and `weight_scale`), "packed" (compressed-tensors' `weight_packed`), "awq"
            or "gptq" (`qweight`, `qzeros`, `scales`).
        dtype: "int4", "int8" or "float8_e4m3fn".
        block: Output and input channels that share a scale.
        has_zero_points: Whether zero points are stored; without, the middle of the range stands for zero.
        zero_point_offset: What was subtracted from zero points before they were stored.
        has_group_order: Whether `g_idx` says which group each input channel is in.
        rounds_activations: Whether inputs are rounded to the dtype of the weight, too, each row by a scale of its own.
    """

    layout: str
    dtype: str
    block: tuple[int, int]
    has_zero_points: bool = False
    zero_point_offset: int = 0
    has_group_order: bool = False
    rounds_activations: bool = False

    @property
    def bits(self) -> int:
        """Bits of a weight."""
        return 4 if self.dtype == "int4" else 8


@dataclass(frozen=True, slots=True)
class LayerPattern:
    """Which layers an entry of a list in the config means.

    Attributes:
        written: The entry.
        expression: A regular expression of whole names of layers.
    """

    written: str
    expression: str

    def matches(self, layer: str) -> bool:
        """Return whether it means the layer of this name."""
        return re.fullmatch(self.expression, layer, re.DOTALL) is not None


@dataclass(frozen=True, slots=True)
class CheckpointQuantization:
    """How a checkpoint is quantized.

    Attributes:
        method: "compressed-tensors", "awq", "gptq" or "fp8".
        groups: Layers and how they are stored; the first that fits a layer counts.
        ignored: Layers that are stored as they were.
    """

    method: str
    groups: tuple[tuple[LayerPattern, StoredScheme], ...]
    ignored: tuple[LayerPattern, ...] = ()

    def scheme_of(self, layer: str) -> StoredScheme | str:
        """Return how a linear layer is stored, or why it is not quantized.

        Args:
            layer: Its name in the network, such as "model.layers.0.mlp.up_proj".
        """
        kept = next((pattern.written for pattern in self.ignored if pattern.matches(layer)), None)
        if kept is not None:
            return f"kept unquantized by {kept!r} in the checkpoint's quantization_config"
        found = next((scheme for pattern, scheme in self.groups if pattern.matches(layer)), None)
        return found or "named by no group of the checkpoint's quantization_config"


def read_quantization(reader: ConfigReader) -> CheckpointQuantization | None:
    """Read how a checkpoint is quantized.

    Args:
        reader: The whole `config.json`.

    Returns:
        None for a checkpoint that is not quantized.

    Raises:
        ConfigError: A field cannot be honoured; it is named.
    """
    found = [name for name in _SECTIONS if reader.section(name, frozenset())]
    if not found:
        return None
    if len(found) > 1:
        reader.fail(found[1], f"nothing beside {found[0]}")
    section = reader.section(found[0], frozenset())
    assert section is not None
    method = section.choice(
        "quant_method",
        {name: name for name in _METHODS},
        hint=" Use a checkpoint of one of these, or the unquantized one with quantization='w8a16' or another scheme.",
    )
    harmless, read = _METHODS[method]
    section = reader.section(found[0], frozenset(harmless.split()))
    assert section is not None
    section.ignore("quant_method")
    quantization = read(section)
    section.finish()
    return quantization


def _read_awq(section: ConfigReader) -> CheckpointQuantization:
    """Read AutoAWQ's fields, in its own spelling or that of transformers."""
    _one_of(section, "w_bit" if section.has("w_bit") else "bits", (4,))
    for name in ("version", "format", "checkpoint_format"):
        section.choice(name, {"gemm": "gemm", "GEMM": "gemm"}, "gemm")
    section.expect("zero_point", True)
    section.expect("desc_act", False)
    section.expect("pack_dtype", "int32")
    group_size = _group_size(section, "q_group_size" if section.has("q_group_size") else "group_size")
    scheme = StoredScheme("awq", "int4", (1, group_size), has_zero_points=True)
    return CheckpointQuantization("awq", ((_EVERYTHING, scheme),), _kept(section))


def _read_gptq(section: ConfigReader) -> CheckpointQuantization:
    """Read the fields of AutoGPTQ, GPTQModel and those who write the same format."""
    bits = _one_of(section, "bits", (4, 8))
    offsets = {"gptq": 1, "gptq_v2": 0}
    offset = section.choice("checkpoint_format", offsets, "gptq_v2" if section.holds("format", "gptq_v2") else "gptq")
    section.choice("format", {name: name for name in offsets}, "gptq")
    section.expect("is_marlin_format", False)
    section.expect("pack_dtype", "int32")
    section.expect("data_type", "int")
    section.expect("adapter", None)
    scheme = StoredScheme(
        "gptq",
        f"int{bits}",
        (1, _group_size(section, "group_size")),
        has_zero_points=True,
        zero_point_offset=offset,
        has_group_order=section.boolean("desc_act", False),
    )
    chosen = section.nested_strings("modules_in_block_to_quantize")
    targets = (_EVERYTHING,) if chosen is None else _parts(chosen)
    return CheckpointQuantization("gptq", tuple((target, scheme) for target in targets), _kept(section))


def _kept(section: ConfigReader) -> tuple[LayerPattern, ...]:
    """Return the layers that AWQ and GPTQ leave out; layers with settings of their own (`dynamic`) are refused."""
    named = section.strings("modules_to_not_convert") or ()
    head = () if section.boolean("lm_head", False) else ("lm_head",)
    dynamic = section.section("dynamic", frozenset())
    names = () if dynamic is None else dynamic.names()
    for name in names:
        if dynamic is not None and not name.startswith("-:"):
            dynamic.fail(name, "only entries that leave layers out ('-:...')")
    skipped = (LayerPattern(name, _compiled(section, "dynamic", name[2:])) for name in names)
    return (*_parts((*named, *head)), *skipped)


def _read_fp8(section: ConfigReader) -> CheckpointQuantization:
    """Read the fields of transformers' and vLLM's FP8."""
    section.expect("activation_scheme", "dynamic", ": static scales of activations are not supported")
    section.expect("fmt", "e4m3")
    section.expect("modules_to_convert", None)
    _refuse_cache_scales(section, "kv_cache_scheme", "kv_cache_quant_method")
    block = section.sizes("weight_block_size", 2)
    scheme = StoredScheme("plain", "float8_e4m3fn", (block[0], block[1]) if block else (WHOLE, WHOLE),
                          rounds_activations=True)  # fmt: skip
    kept = [name for key in ("modules_to_not_convert", "ignored_layers") for name in section.strings(key) or ()]
    return CheckpointQuantization("fp8", ((_EVERYTHING, scheme),), _parts((*kept, "lm_head")))


def _read_compressed_tensors(section: ConfigReader) -> CheckpointQuantization:
    """Read the fields of compressed-tensors."""
    _refuse_cache_scales(section, "kv_cache_scheme")
    section.expect("transform_config", {})
    sparsity = section.section("sparsity_config", frozenset())
    if sparsity is not None:
        sparsity.choice("format", {"dense": "dense"}, "dense")
    groups = section.section("config_groups", frozenset())
    if groups is None:
        section.fail("config_groups", "at least one group")
    formats = {name: name for name in (_PACKED, *_PLAIN, "mixed-precision")}
    stored_as = section.choice("format", formats)
    found: list[tuple[LayerPattern, StoredScheme]] = []
    for name in groups.names():
        group = groups.section(name, frozenset())
        if group is None:
            groups.fail(name, "an object")
        scheme = _read_group(group, stored_as)
        found += [(_layer(group, "targets", target), scheme) for target in group.strings("targets") or ()]
        group.finish()
    # Names go before regular expressions, and those before classes.
    found.sort(key=lambda pair: (pair[0] == _EVERYTHING, pair[0].written.startswith("re:")))
    ignored = tuple(_layer(section, "ignore", entry) for entry in section.strings("ignore") or ())
    return CheckpointQuantization("compressed-tensors", tuple(found), ignored)


def _read_group(group: ConfigReader, stored_as: str) -> StoredScheme:
    """Read one scheme of compressed-tensors."""
    if stored_as == "mixed-precision" or group.has("format"):
        default = None if stored_as == "mixed-precision" else stored_as
        stored_as = group.choice("format", {name: name for name in (_PACKED, *_PLAIN)}, default)
    weights = group.section("weights", frozenset(_ARGUMENTS.split()))
    if weights is None:
        group.fail("weights", "an object: layers with quantized weights")
    is_packed = stored_as == _PACKED
    kinds = {"int": "int"} if is_packed else {"int": "int", "float": "float"}
    kind = weights.choice("type", kinds, "int")
    bits = _one_of(weights, "num_bits", (4, 8) if is_packed else (8,))
    weights.expect("dynamic", False)
    is_symmetric = weights.boolean("symmetric", True)
    if not is_symmetric and not is_packed:
        weights.fail("symmetric", f"true for {stored_as} weights")
    has_group_order = _has_group_order(weights)
    block = _block(weights, is_packed)
    weights.finish()
    rounds = _rounds_activations(group, kind, is_packed)
    return StoredScheme(
        "packed" if is_packed else "plain",
        f"int{bits}" if kind == "int" else "float8_e4m3fn",
        block,
        has_zero_points=not is_symmetric,
        has_group_order=has_group_order,
        rounds_activations=rounds,
    )


def _has_group_order(weights: ConfigReader) -> bool:
    """Return whether input channels are in groups that do not follow their order."""
    if weights.holds("actorder", True) or weights.holds("actorder", False):
        return weights.holds("actorder", True)
    return weights.choice("actorder", {"group": True, "dynamic": True, "weight": False, "static": False}, "weight")


def _block(weights: ConfigReader, is_packed: bool) -> tuple[int, int]:
    """Return which channels share a scale."""
    size = weights.optional_integer("group_size", MAX_WIDTH, low=-1)
    block = weights.sizes("block_structure", 2)
    default = {None: "tensor", WHOLE: "channel"}.get(size, "group")
    names = ("channel", "group") if is_packed else ("tensor", "channel", "group", "block")
    strategy = weights.choice("strategy", {name: name for name in names}, default)
    if strategy == "group" and (size is None or size < 1):
        weights.fail("group_size", "a positive integer for the strategy 'group'")
    if strategy == "block" and block is None:
        weights.fail("block_structure", "a list of 2 positive integers for the strategy 'block'")
    if strategy == "block" and block is not None:
        return block[0], block[1]
    return {"tensor": (WHOLE, WHOLE), "channel": (1, WHOLE), "group": (1, size or WHOLE)}[strategy]


def _rounds_activations(group: ConfigReader, kind: str, is_packed: bool) -> bool:
    """Return whether inputs are rounded, which must be done as they come."""
    group.expect("output_activations", None)
    inputs = group.section("input_activations", frozenset([*_ARGUMENTS.split(), "group_size"]))
    if inputs is None:
        return False
    if is_packed:
        group.fail("input_activations", f"null for {_PACKED} weights")
    inputs.expect("num_bits", 8)
    inputs.choice("type", {kind: kind}, kind)
    inputs.expect("symmetric", True)
    if not inputs.boolean("dynamic", False):
        inputs.fail("dynamic", "true: static scales of activations are not supported")
    inputs.choice("strategy", dict.fromkeys(("token", "tensor", "group"), ""), "token")
    for name in ("block_structure", "actorder"):
        inputs.expect(name, None)
    inputs.finish()
    return True


def _refuse_cache_scales(section: ConfigReader, *names: str) -> None:
    for name in names:
        if section.has(name) and not section.holds(name, None):
            section.fail(
                name,
                "null: stored scales of the KV cache are not read",
                " Use a checkpoint without them; kv_cache_dtype='fp8' finds scales when the plan is built.",
            )


_EVERYTHING = LayerPattern("Linear", ".*")


def _parts(names: Iterable[str]) -> tuple[LayerPattern, ...]:
    """Return patterns of names that mean every layer which has them as whole dotted parts of its own."""
    return tuple(LayerPattern(name, rf"(?:.*\.)?{re.escape(name)}(?:\..*)?") for name in dict.fromkeys(names))


def _layer(reader: ConfigReader, name: str, entry: str) -> LayerPattern:
    """Return the pattern of compressed-tensors' own: a class, a name, or a regular expression of its beginning."""
    if entry == "Linear":
        return _EVERYTHING
    if entry.startswith("re:"):
        return LayerPattern(entry, _compiled(reader, name, entry.removeprefix("re:")))
    return LayerPattern(entry, re.escape(entry))


def _compiled(reader: ConfigReader, name: str, expression: str) -> str:
    """Check a regular expression that matches where a name begins."""
    try:
        re.compile(expression)
    except (re.error, RecursionError, OverflowError):
        reader.fail(name, "regular expressions that Python understands")
    if len(expression) > _MAX_PATTERN:
        reader.fail(name, f"regular expressions of at most {_MAX_PATTERN} characters")
    return f"(?:{expression}).*"


def _one_of(reader: ConfigReader, name: str, values: tuple[int, ...]) -> int:
    """Return an integer that must be there and one of a few."""
    value = reader.integer(name, max(values), low=0, default=0)
    if value not in values:
        reader.fail(name, " or ".join(map(str, values)))
    return value


def _group_size(reader: ConfigReader, name: str) -> int:
    """Return how many input channels share a scale, `WHOLE` for all."""
    size = reader.integer(name, MAX_WIDTH, low=-1)
    return size if size else reader.fail(name, "-1 or a positive integer")


_METHODS: Mapping[str, tuple[str, Callable[[ConfigReader], CheckpointQuantization]]] = {
    "compressed-tensors": (_FORMAT, _read_compressed_tensors),
    "awq": (_CALIBRATION, _read_awq),
    "gptq": (_CALIBRATION, _read_gptq),
    "fp8": (_FP8, _read_fp8),
}
"""By `quant_method`: keys that may be there whatever they hold, and what reads the others."""
