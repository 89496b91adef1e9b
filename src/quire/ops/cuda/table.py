"""The tactics of NVIDIA GPUs, by op in order of preference: the first that is valid is the default."""

from __future__ import annotations

from quire.ops.cpu.references import BYTES
from quire.ops.cuda import vendor
from quire.ops.op import Fusion, Tactic
from quire.ops.triton import attention, attention_tiles, elementwise, gather, linear, moe, norm, packing, peers, rope
from quire.ops.triton import quantized_linear as quantized
from quire.ops.triton.fused import rope_attention

TACTICS: tuple[Tactic, ...] = (
    Tactic("embedding", "triton", gather.embedding),
    Tactic("index_select", "triton", gather.index_select, is_valid=gather.is_first),
    Tactic("rms_norm", "triton", norm.rms_norm),
    Tactic("add_rms_norm", "triton", norm.add_rms_norm),
    Tactic("rms_norm_quant", "triton", norm.rms_norm_quant, is_valid=elementwise.has_eight_bits),
    Tactic("add_rms_norm_quant", "triton", norm.add_rms_norm_quant, is_valid=elementwise.has_eight_bits),
    Tactic("layer_norm", "triton", norm.layer_norm),
    Tactic("silu", "triton", elementwise.silu),
    Tactic("gelu", "triton", elementwise.gelu),
    Tactic("silu_mul", "triton", elementwise.silu_mul),
    Tactic("silu_mul_quant", "triton", elementwise.silu_mul_quant, is_valid=elementwise.has_eight_bits),
    Tactic("quantize_rows", "triton", elementwise.quantize_rows, is_valid=elementwise.has_eight_bits),
    Tactic("linear", "cublas", vendor.linear, keeps_bits=False),
    Tactic("linear", "triton", linear.linear),
    Tactic("moe", "triton", moe.moe, workspace_bytes=moe.moe_bytes),
    Tactic("linear_w8a8", "scaled_mm", vendor.scaled_mm, is_valid=vendor.is_float8, keeps_bits=False),
    Tactic("linear_w8a8", "triton", quantized.linear_w8a8),
    Tactic("linear_w8a8", "int_mm", vendor.int_mm, is_valid=vendor.is_int8, workspace_bytes=vendor.int_mm_bytes,
           keeps_bits=False),
    Tactic("linear_w8a16", "triton", quantized.linear_w8a16, packing.pack_w8a16, ("weight",),
           packed_bytes=packing.packed_w8a16_bytes, workspace_bytes=quantized.w8a16_bytes),
    Tactic("linear_w4a16", "triton", quantized.linear_w4a16, packing.pack_w4a16, ("weight", "scales", "zero_points"),
           packed_bytes=packing.packed_w4a16_bytes),
    Tactic("all_reduce", "peers", peers.all_reduce, workspace_bytes=BYTES["all_reduce"]),
    Tactic("all_gather", "peers", peers.all_gather, workspace_bytes=BYTES["all_gather"]),
    Tactic("all_reduce_add_rms_norm", "peers", peers.all_reduce_add_rms_norm,
           workspace_bytes=BYTES["all_reduce_add_rms_norm"]),
    Tactic("rope", "rows", rope.rope),
    Tactic("append_kv", "rows", rope.append_kv),
    Tactic("rope_append_kv", "rows", rope.rope_append_kv),
    Tactic("attention", "splits", attention.attention, is_valid=attention.is_valid,
           workspace_bytes=attention_tiles.attention_bytes, prepare=attention.prepare,
           prepare_reads=("seq_lens", "query_start_loc", "window"), prepared_bytes=attention_tiles.items_bytes),
)  # fmt: skip

FUSIONS: tuple[Fusion, ...] = (
    Fusion(("rope_append_kv", "rows"), ("attention", "splits"), "query", rope_attention.rope_attention),
)
"""Calls of these tactics that are one kernel where a step is small, and what runs both."""
