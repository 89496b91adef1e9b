"""Tactics that are one compiled kernel each; none where this installation or the processor has no kernels."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor

from quire.ops.native import attention, linear, rows, w8a8
from quire.ops.native.library import kernel_names, scratch_bytes
from quire.ops.op import Kernel, Tactic
from quire.ops.spec import TensorLike, TensorSpec, dtype_of, sizes_of


def _eps(eps: float, **others: object) -> tuple[float, ...]:
    return (eps,)


def _is_tanh(approximate: str = "none", **others: object) -> tuple[float, ...]:
    return (float(approximate == "tanh"),)


def _number(y: float, **others: object) -> tuple[float, ...]:
    return (y,)


def _linear_bytes(
    x: TensorLike, weight: TensorLike, zero_points: TensorLike | None = None, **others: object
) -> tuple[int, int]:
    """Return what a product works in at most: with all rows, or with as many as each worker lays out for itself."""
    held = TensorSpec(tuple(weight.shape), linear.held_dtype(weight.dtype))
    scales = zero_points and TensorSpec(tuple(zero_points.shape), torch.float32)

    def counted(rows: TensorSpec) -> tuple[int, int]:
        out = TensorSpec((rows.shape[0], weight.shape[0]), rows.dtype)
        return scratch_bytes(linear.KERNEL, [out, rows, held, scales, zero_points, None])

    return _most(counted, x)


def _w8a8_bytes(x: TensorLike, weight: TensorLike, dtype: str = "bfloat16", **others: object) -> tuple[int, int]:
    plain = TensorSpec((1, 1), torch.float32)

    def counted(rows: TensorSpec) -> tuple[int, int]:
        out = TensorSpec((rows.shape[0], weight.shape[0]), dtype_of(dtype))
        return scratch_bytes("linear_w8a8", [out, rows, plain, weight, plain, plain, None])

    return _most(counted, x)


_FEW_ROWS = 32
"""Up to so many rows kernels may work otherwise than with some more, and with many otherwise than with those."""


def _most(counted: Callable[[TensorSpec], tuple[int, int]], x: TensorLike) -> tuple[int, int]:
    *leading, width = sizes_of(x)
    counts = {prod(leading), min(prod(leading), _FEW_ROWS), min(prod(leading), _FEW_ROWS + 1)}
    sizes = (TensorSpec((count, width), x.dtype) for count in counts)
    own, shared = zip(*map(counted, sizes), strict=True)
    return max(own), max(shared)


def _without_packed(count: int) -> Callable[..., Tensor]:
    """Return `linear.run` for an op with so many packed arguments, the first of which holds the others."""

    def run(x: Tensor, weight: linear.PackedLinear, *others: Tensor | None, **named: Tensor | None) -> Tensor:
        return linear.run(x, weight, *others[count - 1 :], **named)

    return run


def _linear(op: str, pack: Callable[..., Any], packed_bytes: Callable[..., int], packed: tuple[str, ...]) -> Tactic:
    operands = ("x", "weight.weight", "weight.scales", "weight.zero_points", "bias")
    kernel = Kernel(linear.KERNEL, operands, scratch_bytes=_linear_bytes)
    return Tactic(
        op, "native", _without_packed(len(packed)), pack, packed, linear.is_valid, packed_bytes, kernel=kernel
    )


_ROPE_KV = ("kv_cache", "query", "key", "value", "positions", "table", "slot_mapping", "kv_scales")

_ALL = (
    _linear("linear", linear.pack, linear.packed_bytes, ("weight",)),
    _linear("linear_w8a16", linear.pack_8bit, linear.packed_8bit_bytes, ("weight", "scales")),
    _linear("linear_w4a16", linear.pack_int4, linear.packed_int4_bytes, ("weight", "scales", "zero_points")),
    Tactic("attention", "native", attention.attention, is_valid=attention.is_valid,
           kernel=Kernel(attention.KERNEL, attention.OPERANDS[1:], attention.numbers, attention.scratch_bytes)),
    Tactic("rms_norm", "native", rows.rms_norm, kernel=Kernel("rms_norm", ("x", "weight"), _eps)),
    Tactic("layer_norm", "native", rows.layer_norm, kernel=Kernel("layer_norm", ("x", "weight", "bias"), _eps)),
    Tactic("add_rms_norm", "native", rows.add_rms_norm,
           kernel=Kernel("add_rms_norm", ("x", "residual", "weight"), _eps)),
    Tactic("rms_norm_quant", "native", rows.rms_norm_quant, kernel=Kernel("rms_norm_quant", ("x", "weight"), _eps)),
    Tactic("add_rms_norm_quant", "native", rows.add_rms_norm_quant,
           kernel=Kernel("add_rms_norm_quant", ("x", "residual", "weight"), _eps)),
    Tactic("quantize_rows", "native", rows.quantize_rows, kernel=Kernel("quantize_rows", ("x",))),
    Tactic("silu_mul", "native", rows.silu_mul, kernel=Kernel("silu_mul", ("x",))),
    Tactic("silu_mul_quant", "native", rows.silu_mul_quant, kernel=Kernel("silu_mul_quant", ("x",))),
    Tactic("silu", "native", rows.silu, kernel=Kernel("silu", ("x",))),
    Tactic("relu", "native", rows.relu, kernel=Kernel("relu", ("x",))),
    Tactic("gelu", "native", rows.gelu, kernel=Kernel("gelu", ("x",), _is_tanh)),
    Tactic("add", "native", rows.add, is_valid=rows.is_of_rows, kernel=Kernel("add", ("x", "y"))),
    Tactic("mul", "native", rows.mul, is_valid=rows.is_of_rows, kernel=Kernel("mul", ("x", "y"))),
    Tactic("add", "native", rows.add_number, is_valid=rows.is_with_number,
           kernel=Kernel("add_number", ("x",), _number)),
    Tactic("mul", "native", rows.mul_number, is_valid=rows.is_with_number,
           kernel=Kernel("mul_number", ("x",), _number)),
    Tactic("rope", "native", rows.rope, kernel=Kernel("rope", ("x", "positions", "table"))),
    Tactic("append_kv", "native", rows.append_kv,
           kernel=Kernel("append_kv", ("kv_cache", "key", "value", "slot_mapping", "kv_scales"))),
    Tactic("rope_append_kv", "native", rows.rope_append_kv, kernel=Kernel("rope_append_kv", _ROPE_KV)),
    Tactic("embedding", "native", rows.embedding, is_valid=rows.is_row_embedding,
           kernel=Kernel("gather_rows", ("weight", "ids"))),
    Tactic("index_select", "native", rows.index_select, is_valid=rows.is_row_gather,
           kernel=Kernel("gather_rows", ("x", "index"))),
    Tactic("linear_w8a8", "native", w8a8.run, w8a8.pack, ("weight", "scales"), w8a8.is_valid, w8a8.packed_bytes,
           kernel=Kernel("linear_w8a8", ("x", "x_scales", "weight.panels", "weight.scales", "weight.corrections",
                                         "bias"), scratch_bytes=_w8a8_bytes)),
)  # fmt: skip

TACTICS: tuple[Tactic, ...] = _ALL if kernel_names() else ()
