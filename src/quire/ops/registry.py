"""The one explicit table of ops. Graph files may name these and nothing else."""

from __future__ import annotations

from typing import Any

from quire.ops import activation, attention, elementwise, layout, linear, norm, rope
from quire.ops.op import Op

OPS: dict[str, Op[..., Any]] = {
    op.name: op
    for op in (
        linear.linear,
        linear.embedding,
        norm.rms_norm,
        norm.layer_norm,
        activation.silu,
        activation.gelu,
        activation.relu,
        elementwise.add,
        elementwise.sub,
        elementwise.mul,
        elementwise.div,
        rope.rope_table,
        rope.rope,
        attention.append_kv,
        attention.attention,
        layout.view,
        layout.permute,
        layout.slice,
        layout.concat,
        layout.cast,
        layout.index_select,
    )
}
