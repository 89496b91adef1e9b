"""Tactics that are one compiled kernel each."""

from __future__ import annotations

from quire.ops.native import rows, w8a8
from quire.ops.op import Kernel, Tactic


def _eps(eps: float, **others: object) -> tuple[float, ...]:
    return (eps,)


def _is_tanh(approximate: str = "none", **others: object) -> tuple[float, ...]:
    return (float(approximate == "tanh"),)


def _number(y: float, **others: object) -> tuple[float, ...]:
    return (y,)


_ROPE_KV = ("kv_cache", "query", "key", "value", "positions", "table", "slot_mapping", "kv_scales")

TACTICS = (
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
    Tactic("add", "native_number", rows.add_number, is_valid=rows.is_with_number,
           kernel=Kernel("add_number", ("x",), _number)),
    Tactic("mul", "native_number", rows.mul_number, is_valid=rows.is_with_number,
           kernel=Kernel("mul_number", ("x",), _number)),
    Tactic("rope", "native", rows.rope, kernel=Kernel("rope", ("x", "positions", "table"))),
    Tactic("append_kv", "native", rows.append_kv,
           kernel=Kernel("append_kv", ("kv_cache", "key", "value", "slot_mapping", "kv_scales"))),
    Tactic("rope_append_kv", "native", rows.rope_append_kv, kernel=Kernel("rope_append_kv", _ROPE_KV)),
    Tactic("embedding", "native", rows.embedding, is_valid=rows.is_row_embedding,
           kernel=Kernel("gather_rows", ("weight", "ids"))),
    Tactic("index_select", "native", rows.index_select, is_valid=rows.is_row_gather,
           kernel=Kernel("gather_rows", ("x", "index"))),
    Tactic("linear_w8a8", "native_int8", w8a8.run, w8a8.pack, ("weight", "scales"), w8a8.is_valid, w8a8.packed_bytes,
           kernel=Kernel("linear_w8a8", ("x", "x_scales", "weight.panels", "weight.scales", "weight.corrections",
                                         "bias"))),
)  # fmt: skip
"""In the order of the kernels in csrc/kernels/declarations.hpp."""
