"""The one explicit table of ops. Graph files may name these and nothing else."""

from __future__ import annotations

from typing import Any

from quire.ops import attention, elementwise, fused, layout, linear, norm, quantize, rope
from quire.ops.collective import exchange, share
from quire.ops.op import Op

OPS: dict[str, Op[..., Any]] = {
    op.name: op
    for op in (
        linear.linear,
        linear.embedding,
        linear.matmul,
        linear.moe,
        norm.rms_norm,
        norm.layer_norm,
        norm.softmax,
        elementwise.silu,
        elementwise.gelu,
        elementwise.relu,
        elementwise.add,
        elementwise.sub,
        elementwise.mul,
        elementwise.div,
        elementwise.eq,
        elementwise.ne,
        elementwise.lt,
        elementwise.gt,
        elementwise.le,
        elementwise.ge,
        elementwise.where,
        rope.rope_table,
        rope.rope,
        attention.append_kv,
        attention.attention,
        layout.view,
        layout.permute,
        layout.transpose,
        layout.slice,
        layout.split,
        layout.concat,
        layout.cast,
        layout.index_select,
        layout.argsort,
        layout.expand,
        layout.full,
        layout.gather,
        layout.topk,
        layout.argmax,
        layout.item,
        quantize.quantize_rows,
        quantize.quantize_weight,
        quantize.quantize_weight_int4,
        quantize.pack_int4,
        quantize.unpack_int32,
        quantize.dequantize_weight,
        linear.linear_w8a16,
        linear.linear_w8a8,
        linear.linear_w4a16,
        fused.silu_mul,
        fused.add_rms_norm,
        fused.rope_append_kv,
        fused.rms_norm_quant,
        fused.add_rms_norm_quant,
        fused.silu_mul_quant,
        exchange.all_reduce,
        exchange.all_gather,
        share.sharded_embedding,
        share.all_reduce_add_rms_norm,
        exchange.send,
        exchange.recv,
    )
}
