"""Tactics that are one compiled kernel each; none where this installation or the processor has no kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from quire.ops.native import attention, linear, rows, w8a8
from quire.ops.native.library import kernel_names
from quire.ops.op import Kernel, Tactic
from quire.ops.spec import TensorLike, sizes_of


def _eps(eps: float, **others: object) -> tuple[float, ...]:
    return (eps,)


def _is_tanh(approximate: str = "none", **others: object) -> tuple[float, ...]:
    return (float(approximate == "tanh"),)


def _number(y: float, **others: object) -> tuple[float, ...]:
    return (y,)


def _linear_bytes(x: TensorLike, zero_points: TensorLike | None = None, **others: object) -> int:
    num_groups = 0 if zero_points is None else sizes_of(zero_points)[1]
    return linear.scratch_bytes(x, num_groups, torch.get_num_threads())


def _w8a8_bytes(x: TensorLike, **others: object) -> int:
    return torch.get_num_threads() * w8a8.scratch_bytes(x)


def _attention_bytes(**arguments: Any) -> int:
    threads = torch.get_num_threads()
    return threads * attention.scratch_bytes(**arguments) + (threads > 1) * attention.shared_bytes(**arguments)


def _without_packed(count: int) -> Callable[..., Tensor]:
    """Return `linear.run` for an op with so many packed arguments, the first of which holds the others."""

    def run(x: Tensor, weight: linear.PackedLinear, *others: Tensor | None) -> Tensor:
        return linear.run(x, weight, *others[count - 1 :])

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
           kernel=Kernel(attention.KERNEL, attention.OPERANDS[1:], attention.numbers, _attention_bytes)),
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
