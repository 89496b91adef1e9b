"""Quantized checkpoints made from small models by plain loops, after the descriptions of the formats alone.

Every packer takes a weight [out, in] and returns the tensors that a checkpoint holds for it, and the float32 weight
that they stand for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from tests.support.hf_models import hf_model

GROUP = 16
BLOCK = (12, 20)  # of float8 weights; divides neither side of a weight
Packed = tuple[dict[str, torch.Tensor], torch.Tensor]

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
_OTHER_SIZES = {
    "opt": {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48, "num_attention_heads": 4},
    "gpt2": {"n_embd": 48, "n_head": 3},
}
_LAYER = re.compile(r"(.*(?:_proj|c_attn|c_fc|c_proj|fc1|fc2))\.weight")


@dataclass(frozen=True)
class Format:
    """One kind of checkpoint.

    Attributes:
        config: Its `quantization_config`.
        pack: Weight to tensors by suffix, and what they stand for.
        op: The op that its layers become.
        rounds_to: Dtype that inputs are rounded to, None if they are not.
        options: More of `pack`.
    """

    config: dict[str, Any]
    pack: Callable[..., Packed]
    op: str
    rounds_to: torch.dtype | None = None
    options: dict[str, Any] = field(default_factory=dict)


def words(values: np.ndarray, bits: int, order: tuple[int, ...] | None = None) -> np.ndarray:
    """Pack [rows, columns] unsigned values row by row into 32-bit words, the first in the lowest bits."""
    count = 32 // bits
    rows, columns = values.shape
    packed = np.zeros((rows, -(-columns // count)), dtype=np.uint32)
    for row in range(rows):
        for word in range(packed.shape[1]):
            for place in range(count):
                column = word * count + (order[place] if order else place)
                if column < columns:
                    packed[row, word] |= np.uint32(int(values[row, column]) << (bits * place))
    return packed.view(np.int32)


def _groups(in_features: int, group_size: int, order: np.ndarray | None) -> np.ndarray:
    """Return the group of every input channel; `order` says which channel is the first, second, ... in them."""
    groups = np.arange(in_features) // group_size
    if order is None:
        return groups
    index = np.empty(in_features, dtype=np.int64)
    index[order] = groups
    return index


def _quantize(
    weight: torch.Tensor, bits: int, index: np.ndarray, symmetric: bool, scale_dtype: torch.dtype
) -> tuple[np.ndarray, torch.Tensor, np.ndarray, torch.Tensor]:
    """Round to unsigned values [out, in], scales and zero points [out, groups]; also returns what they stand for."""
    out_features, in_features = weight.shape
    num_groups, top = int(index.max()) + 1, 2**bits - 1
    values = np.zeros((out_features, in_features), dtype=np.int64)
    scales = torch.zeros(out_features, num_groups)
    zeros = np.zeros((out_features, num_groups), dtype=np.int64)
    meant = torch.zeros(out_features, in_features)
    for row in range(out_features):
        for group in range(num_groups):
            columns = np.flatnonzero(index == group)
            part = weight[row, columns].double()
            low, high = min(float(part.min()), 0.0), max(float(part.max()), 0.0)
            wide = 2 * max(-low, high) / (top - 1) if symmetric else (high - low) / top
            scale = float(torch.tensor(wide).to(scale_dtype))
            zero = (top + 1) // 2 if symmetric else round(-low / scale)
            rounded = (part / scale).round().add(zero).clamp(0, top)
            values[row, columns] = rounded.long().numpy()
            scales[row, group], zeros[row, group] = scale, zero
            meant[row, columns] = ((rounded - zero) * scale).float()
    return values, scales.to(scale_dtype), zeros, meant


def pack_awq(weight: torch.Tensor) -> Packed:
    """AutoAWQ's GEMM version: everything transposed, words along the output, even channels of eight first."""
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    values, scales, zeros, meant = _quantize(weight, 4, _groups(weight.shape[1], GROUP, None), False, torch.float16)
    return {
        "qweight": torch.from_numpy(words(values.T, 4, order)),
        "qzeros": torch.from_numpy(words(zeros.T, 4, order)),
        "scales": scales.t().contiguous(),
    }, meant


def pack_gptq(
    weight: torch.Tensor, bits: int = 4, symmetric: bool = True, v2: bool = False, act: bool = False
) -> Packed:
    """AutoGPTQ: words of values along the input, of zero points along the output, less one before version 2."""
    in_features = weight.shape[1]
    index = _groups(in_features, GROUP, np.random.default_rng(in_features).permutation(in_features) if act else None)
    values, scales, zeros, meant = _quantize(weight, bits, index, symmetric, torch.float16)
    if not v2:  # version 1 cannot store a zero point of zero
        assert zeros.min() > 0
        zeros = zeros - 1
    return {
        "qweight": torch.from_numpy(words(values, bits).T.copy()),
        "qzeros": torch.from_numpy(words(zeros.T, bits)),
        "scales": scales.t().contiguous(),
        "g_idx": torch.from_numpy(index.astype(np.int32)),
    }, meant


def pack_compressed(
    weight: torch.Tensor, bits: int = 4, symmetric: bool = True, group_size: int = GROUP, act: bool = False
) -> Packed:
    """compressed-tensors' pack-quantized: words of values along the input, of zero points along the output."""
    out_features, in_features = weight.shape
    order = np.random.default_rng(in_features).permutation(in_features) if act else None
    index = _groups(in_features, in_features if group_size < 0 else group_size, order)
    values, scales, zeros, meant = _quantize(weight, bits, index, symmetric, torch.bfloat16)
    tensors = {
        "weight_packed": torch.from_numpy(words(values, bits)),
        "weight_scale": scales,
        "weight_shape": torch.tensor([out_features, in_features]),
    }
    if not symmetric:
        tensors["weight_zero_point"] = torch.from_numpy(words(zeros.T, bits).T.copy())
    if act:
        tensors["weight_g_idx"] = torch.from_numpy(index.astype(np.int32))
    return tensors, meant


def pack_int8(weight: torch.Tensor, strategy: str = "channel") -> Packed:
    """compressed-tensors' int-quantized: int8 values, a scale for each output channel or for all."""
    largest = weight.abs().amax(1, keepdim=True) if strategy == "channel" else weight.abs().max().view(1)
    scale = (largest / 127).bfloat16()
    values = (weight / scale.float()).round().clamp(-128, 127).to(torch.int8)
    return {"weight": values, "weight_scale": scale}, values.float() * scale.float()


def pack_fp8(weight: torch.Tensor, strategy: str = "tensor", name: str = "weight_scale") -> Packed:
    """Float8 values and a scale: for all (a scalar, or one of one), an output channel, or a block."""
    if strategy == "block":
        return _pack_blocks(weight, name)
    per_row = strategy == "channel"
    largest = weight.abs().amax(1, keepdim=True) if per_row else weight.abs().max()
    scale = largest / 448
    values = (weight / scale).to(torch.float8_e4m3fn)
    stored = scale.view(1) if strategy == "one" else scale
    return {"weight": values, name: stored.clone()}, values.float() * scale


def _pack_blocks(weight: torch.Tensor, name: str) -> Packed:
    rows, columns = BLOCK
    scales = torch.zeros(-(-weight.shape[0] // rows), -(-weight.shape[1] // columns))
    values, meant = torch.zeros(weight.shape).to(torch.float8_e4m3fn), torch.zeros(weight.shape)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            place = (slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns))
            scales[i, j] = weight[place].abs().max() / 448
            values[place] = (weight[place] / scales[i, j]).to(torch.float8_e4m3fn)
            meant[place] = values[place].float() * scales[i, j]
    return {"weight": values, name: scales}, meant


def _compressed(stored_as: str, weights: dict[str, Any], inputs: dict[str, Any] | None = None) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": stored_as,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "global_compression_ratio": 1.5,
        "version": "0.9.3",
    }


def _arguments(bits: int, strategy: str, **more: Any) -> dict[str, Any]:
    return {"num_bits": bits, "type": "int", "symmetric": True, "strategy": strategy, "dynamic": False,
            "group_size": None, "block_structure": None, "actorder": None, "observer": "minmax",
            "observer_kwargs": {}, **more}  # fmt: skip


def _dynamic(kind: str, strategy: str = "token") -> dict[str, Any]:
    return {**_arguments(8, strategy), "type": kind, "dynamic": True, "observer": None}


def _gptq(bits: int, **more: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "desc_act": False, "sym": True, "lm_head": False,
            "checkpoint_format": "gptq", "pack_dtype": "int32", "meta": {"quantizer": ["tool:1"]}, **more}  # fmt: skip


AWQ = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm",
       "modules_to_not_convert": None}  # fmt: skip
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}
_FLOAT = {"type": "float"}

FORMATS: dict[str, Format] = {
    "awq": Format(AWQ, pack_awq, "linear_w4a16"),
    "gptq": Format(_gptq(4), pack_gptq, "linear_w4a16"),
    "gptq-asym": Format(_gptq(4, sym=False), pack_gptq, "linear_w4a16", options={"symmetric": False}),
    "gptq-v2": Format(
        _gptq(4, sym=False, checkpoint_format="gptq_v2"), pack_gptq, "linear_w4a16",
        options={"symmetric": False, "v2": True},
    ),
    "gptq-act": Format(_gptq(4, desc_act=True), pack_gptq, "linear_w4a16", options={"act": True}),
    "gptq-8bit": Format(_gptq(8), pack_gptq, "linear", options={"bits": 8}),
    "gptq-8bit-act": Format(_gptq(8, desc_act=True), pack_gptq, "linear", options={"bits": 8, "act": True}),
    "compressed-w4a16": Format(
        _compressed("pack-quantized", _arguments(4, "group", group_size=GROUP)), pack_compressed, "linear_w4a16"
    ),
    "compressed-w4a16-asym": Format(
        _compressed("pack-quantized", _arguments(4, "group", group_size=GROUP, symmetric=False)),
        pack_compressed, "linear_w4a16", options={"symmetric": False},
    ),
    "compressed-w4a16-channel": Format(
        _compressed("pack-quantized", _arguments(4, "channel")), pack_compressed, "linear_w4a16",
        options={"group_size": -1},
    ),
    "compressed-w4a16-act": Format(
        _compressed("pack-quantized", _arguments(4, "group", group_size=GROUP, actorder="group")),
        pack_compressed, "linear_w4a16", options={"act": True},
    ),
    "compressed-w8a16": Format(
        _compressed("pack-quantized", _arguments(8, "channel")), pack_compressed, "linear_w8a16",
        options={"bits": 8, "group_size": -1},
    ),
    "compressed-w8a16-group": Format(
        _compressed("pack-quantized", _arguments(8, "group", group_size=GROUP)), pack_compressed, "linear",
        options={"bits": 8},
    ),
    "compressed-w8a8": Format(
        _compressed("int-quantized", _arguments(8, "channel"), _dynamic("int")), pack_int8, "linear_w8a8", torch.int8
    ),
    "compressed-w8a8-tensor": Format(
        _compressed("int-quantized", _arguments(8, "tensor"), _dynamic("int")), pack_int8, "linear_w8a8", torch.int8,
        options={"strategy": "tensor"},
    ),
    "compressed-fp8": Format(
        _compressed("float-quantized", _arguments(8, "channel", **_FLOAT), _dynamic("float")), pack_fp8,
        "linear_w8a8", torch.float8_e4m3fn, {"strategy": "channel"},
    ),
    "compressed-fp8-tensor": Format(
        _compressed("float-quantized", _arguments(8, "tensor", **_FLOAT), _dynamic("float")), pack_fp8,
        "linear_w8a8", torch.float8_e4m3fn, {"strategy": "one"},
    ),
    "compressed-fp8-weights": Format(
        _compressed("naive-quantized", _arguments(8, "channel", **_FLOAT)), pack_fp8, "linear_w8a16", None,
        {"strategy": "channel"},
    ),
    "compressed-fp8-block": Format(
        _compressed("float-quantized", _arguments(8, "block", block_structure=list(BLOCK), **_FLOAT),
                    {**_dynamic("float", "group"), "group_size": 128}),
        pack_fp8, "linear", None, {"strategy": "block"},
    ),
    "fp8": Format(FP8, pack_fp8, "linear_w8a8", torch.float8_e4m3fn),
    "fp8-channel": Format(FP8, pack_fp8, "linear_w8a8", torch.float8_e4m3fn, {"strategy": "channel"}),
    "fp8-inverse": Format(
        {**FP8, "weight_block_size": None}, pack_fp8, "linear_w8a8", torch.float8_e4m3fn, {"name": "weight_scale_inv"}
    ),
    "fp8-block": Format(
        {**FP8, "weight_block_size": list(BLOCK)}, pack_fp8, "linear", None,
        {"strategy": "block", "name": "weight_scale_inv"},
    ),
}  # fmt: skip
"""All that is read, by a name for tests."""


def write_quantized(
    directory: Path, form: Format, case: str = "llama", kept: str | None = None, **changes: Any
) -> PreTrainedModel:
    """Write a small model quantized to a directory.

    Args:
        directory: Made.
        form: How.
        case: Name of the model.
        kept: A regular expression of layers that stay as they are.
        changes: More changes of the model's config.

    Returns:
        The model with the weights that the checkpoint stands for, in float32; it rounds inputs as the checkpoint asks.
    """
    model = hf_model(case, **{**_OTHER_SIZES.get(case, SIZES), **changes})
    model.save_pretrained(directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "quantization_config": form.config}))
    tensors = load_file(directory / "model.safetensors")
    for name in list(tensors):
        found = _LAYER.fullmatch(name)
        if found is None or (kept and re.search(kept, name)):
            continue
        is_transposed = "c_" in name  # GPT-2 stores its projections transposed, until they are quantized
        weight = tensors.pop(name)
        parts, meant = form.pack(weight.t() if is_transposed else weight, **form.options)
        tensors.update({f"{found[1]}.{suffix}": tensor for suffix, tensor in parts.items()})
        module = model.get_submodule(found[1])
        module.weight.data.copy_(meant.t() if is_transposed else meant)
        if form.rounds_to is not None:
            module.register_forward_pre_hook(_rounding(form.rounds_to))
    save_file(tensors, directory / "model.safetensors")
    return model


def _rounding(dtype: torch.dtype) -> Callable[..., Any]:
    """Return a hook that rounds the input of a layer, each row by a scale of its own."""
    largest = 127.0 if dtype == torch.int8 else 448.0

    def hook(module: torch.nn.Module, given: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        scale = (given[0].abs().amax(-1, keepdim=True) / largest).clamp(min=1e-12)
        quotient = given[0] / scale
        rounded = quotient.round() if dtype == torch.int8 else quotient.to(dtype).float()
        return (rounded * scale,)

    return hook
