"""The CPU's tactics, by op in order of preference: the first that is valid is the default."""

from __future__ import annotations

import torch

from quire.ops.cpu import (
    attention,
    attention_bytes,
    dense_attention,
    elementwise,
    fused,
    linear,
    moe,
    quantize,
    references,
    rope,
)
from quire.ops.cpu import quantized_linear as quantized
from quire.ops.native import table as native
from quire.ops.op import REFERENCE, Tactic
from quire.ops.registry import OPS
from quire.ops.spec import dtype_name


def reference(op: str, *, keeps_bits: bool = True) -> Tactic:
    """Return the tactic that every op has: its definition."""
    return Tactic(op, REFERENCE, OPS[op].reference, keeps_bits=keeps_bits, workspace_bytes=references.BYTES.get(op))


def _expanded(dtype: torch.dtype) -> tuple[Tactic, ...]:
    """Return the tactics that expand weights of eight bits to a dtype when they are packed."""
    name, scaled = f"expanded_{dtype_name(dtype)}", ("weight", "scales")
    pack, is_valid = quantized.expand_8bit(dtype), quantized.is_expanded_to(dtype)
    packed, held = quantized.expanded_bytes(dtype), quantized.w8a16_bytes(dtype)
    results, kernels = quantized.w8a16_result_bytes(dtype), quantized.expanded_kernels_bytes(dtype)
    return (
        Tactic("linear_w8a16", name, quantized.linear_w8a16, pack, scaled, is_valid, packed, held, results,
               library_bytes=kernels),
        Tactic("linear_w8a8", name, quantized.linear_fp8, pack, scaled, is_valid, packed, held, results,
               library_bytes=kernels),
    )  # fmt: skip


_ROTATES = ("positions", "table", "slot_mapping")
_ATTENDS = ("block_table", "seq_lens", "query_start_loc", "window")

TACTICS = (
    *native.TACTICS,
    Tactic("linear", "onednn_rows", linear.run, pack=linear.pack, pack_args=("weight",),
           packed_bytes=linear.packed_bytes, workspace_bytes=linear.linear_bytes, result_bytes=linear.result_bytes,
           library_bytes=linear.kernels_bytes),
    Tactic("moe", "onednn_rows", moe.run, pack=moe.pack, pack_args=("gate", "up", "down"),
           packed_bytes=moe.packed_bytes, workspace_bytes=moe.moe_bytes),
    Tactic("silu", "exp", elementwise.silu, workspace_bytes=elementwise.silu_bytes),
    Tactic("gelu", "tanh_erf", elementwise.gelu, workspace_bytes=elementwise.gelu_bytes),
    Tactic("rope", "shared_angles", rope.rope, workspace_bytes=rope.rope_bytes,
           prepare=rope.angles, prepare_reads=("positions", "table"), prepared_bytes=rope.angles_bytes),
    Tactic("append_kv", "indexed", attention.append_kv, workspace_bytes=attention.append_kv_bytes,
           prepare=attention.slots, prepare_reads=("slot_mapping",), prepared_bytes=attention.slots_bytes),
    Tactic("attention", "tiled", attention.attention, workspace_bytes=attention_bytes.attention_bytes,
           prepare=attention.tiles, prepare_reads=_ATTENDS, prepared_bytes=attention_bytes.tiles_bytes,
           reads_unwritten=True),
    Tactic("attention", "dense", dense_attention.attention, is_valid=dense_attention.has_no_soft_cap,
           keeps_bits=False),
    Tactic("rms_norm", "in_place", fused.rms_norm, workspace_bytes=fused.rms_norm_bytes),
    reference("rms_norm"),
    Tactic("silu_mul", "in_place", fused.silu_mul, workspace_bytes=fused.silu_mul_bytes),
    Tactic("add_rms_norm", "in_place", fused.add_rms_norm, workspace_bytes=fused.add_rms_norm_bytes),
    reference("add_rms_norm"),
    Tactic("rope_append_kv", "together", fused.rope_append_kv, workspace_bytes=fused.together_bytes,
           result_bytes=fused.together_result_bytes, prepare=fused.angles_and_slots, prepare_reads=_ROTATES,
           prepared_bytes=fused.angles_and_slots_bytes),
    Tactic("rope_append_kv", "apart", fused.rope_append_kv_apart, workspace_bytes=fused.apart_bytes,
           prepare=fused.angles_and_slots, prepare_reads=_ROTATES, prepared_bytes=fused.angles_and_slots_bytes),
    Tactic("quantize_rows", "in_place", quantize.quantize_rows, workspace_bytes=quantize.quantize_rows_bytes),
    reference("quantize_rows"),
    Tactic("rms_norm_quant", "in_place", fused.rms_norm_quant, workspace_bytes=fused.rms_norm_quant_bytes),
    reference("rms_norm_quant"),
    Tactic("add_rms_norm_quant", "in_place", fused.add_rms_norm_quant, workspace_bytes=fused.add_rms_norm_quant_bytes),
    reference("add_rms_norm_quant"),
    Tactic("silu_mul_quant", "in_place", fused.silu_mul_quant, workspace_bytes=fused.silu_mul_quant_bytes),
    Tactic("linear_w8a8", "onednn_int8", quantized.linear_w8a8, quantized.pack_int8, ("weight", "scales"),
           quantized.is_exact_int8, quantized.int8_bytes, quantized.w8a8_bytes, quantized.w8a8_result_bytes,
           library_bytes=quantized.int8_kernels_bytes),
    Tactic("linear_w8a8", "int_mm", OPS["linear_w8a8"].reference, is_valid=quantized.is_int8,
           workspace_bytes=quantized.int_mm_bytes),
    *_expanded(torch.bfloat16), *_expanded(torch.float32),
    Tactic("linear_w4a16", "expanded", quantized.linear_w4a16, quantized.expand_int4,
           ("weight", "scales", "zero_points"), packed_bytes=quantized.expanded_int4_bytes,
           workspace_bytes=quantized.w4a16_bytes, result_bytes=quantized.w4a16_result_bytes,
           library_bytes=quantized.w4a16_kernels_bytes),
)  # fmt: skip
