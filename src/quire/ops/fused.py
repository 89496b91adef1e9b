"""What the builder's passes make of several ops: defined as exactly those ops, one after the other."""

from __future__ import annotations

from torch import Tensor

from quire.core.errors import ShapeError
from quire.ops.attention import append_kv, infer_append_kv
from quire.ops.elementwise import silu
from quire.ops.norm import rms_norm
from quire.ops.op import op
from quire.ops.quantize import quantize_rows, row_specs
from quire.ops.rope import rope
from quire.ops.spec import FLOATS, Shapes, TensorLike, TensorSpec, same_dtype, spec_of


def _infer_silu_mul(x: TensorLike) -> TensorSpec:
    Shapes().check("x", x, "*rows twice_width", FLOATS)
    width = x.shape[-1]
    if not isinstance(width, int) or width % 2:
        raise ShapeError(f"Invalid shape of x: expected an even last size, got {width}.")
    return TensorSpec((*tuple(x.shape)[:-1], width // 2), x.dtype)


@op(_infer_silu_mul)
def silu_mul(x: Tensor) -> Tensor:
    """Return `silu(gate) * up` of `gate` and `up` side by side (Shazeer 2020, https://arxiv.org/abs/2002.05202).

    Args:
        x: [*rows, 2 * width], float32 | bfloat16 | float16: gate, then up.

    Returns:
        [*rows, width], same dtype; `silu(gate)` is rounded to it before the product.
    """
    gate, up = x.chunk(2, -1)
    return silu.reference(gate) * up


def _infer_add_rms_norm(
    x: TensorLike, residual: TensorLike, weight: TensorLike, eps: float
) -> tuple[TensorSpec, TensorSpec]:
    shapes = Shapes()
    shapes.check("x", x, "*rows hidden_size", FLOATS)
    shapes.check("residual", residual, "*rows hidden_size", FLOATS)
    shapes.check("weight", weight, "hidden_size", FLOATS)
    same_dtype(x=x, residual=residual, weight=weight)
    return spec_of(x), spec_of(x)


@op(_infer_add_rms_norm)
def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return `rms_norm(x + residual)` and the sum.

    Args:
        x: [*rows, hidden_size], float32 | bfloat16 | float16.
        residual: Same shape and dtype.
        weight: [hidden_size], same dtype.
        eps: Added to the mean square.

    Returns:
        The norm and the sum, each [*rows, hidden_size], same dtype; the sum is rounded before it is normalised.
    """
    total = x + residual
    return rms_norm.reference(total, weight, eps), total


def _infer_rms_norm_quant(x: TensorLike, weight: TensorLike, eps: float, dtype: str) -> tuple[TensorSpec, TensorSpec]:
    rms_norm.check(x, weight, eps)
    return row_specs(x, dtype)


@op(_infer_rms_norm_quant)
def rms_norm_quant(x: Tensor, weight: Tensor, eps: float, dtype: str = "int8") -> tuple[Tensor, Tensor]:
    """Return `quantize_rows(rms_norm(x))`: rows [*rows, hidden_size] in `dtype`, scales [*rows, 1], float32."""
    return quantize_rows.reference(rms_norm.reference(x, weight, eps), dtype)


def _infer_add_rms_norm_quant(
    x: TensorLike, residual: TensorLike, weight: TensorLike, eps: float, dtype: str
) -> tuple[TensorSpec, TensorSpec, TensorSpec]:
    _, total = _infer_add_rms_norm(x, residual, weight, eps)
    return (*row_specs(x, dtype), total)


@op(_infer_add_rms_norm_quant)
def add_rms_norm_quant(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, dtype: str = "int8"
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `quantize_rows(rms_norm(x + residual))`: rows in `dtype`, scales [*rows, 1], float32; and the sum."""
    normed, total = add_rms_norm.reference(x, residual, weight, eps)
    return (*quantize_rows.reference(normed, dtype), total)


def _infer_silu_mul_quant(x: TensorLike, dtype: str) -> tuple[TensorSpec, TensorSpec]:
    return row_specs(_infer_silu_mul(x), dtype)


@op(_infer_silu_mul_quant)
def silu_mul_quant(x: Tensor, dtype: str = "int8") -> tuple[Tensor, Tensor]:
    """Return `quantize_rows(silu_mul(x))`: rows [*rows, width] in `dtype`, scales [*rows, 1], float32."""
    return quantize_rows.reference(silu_mul.reference(x), dtype)


def _infer_rope_append_kv(
    query: TensorLike,
    key: TensorLike,
    value: TensorLike,
    positions: TensorLike,
    table: TensorLike,
    kv_cache: TensorLike,
    slot_mapping: TensorLike,
    kv_scales: TensorLike | None,
) -> TensorSpec:
    rope.check(key, positions, table)
    infer_append_kv(key, value, kv_cache, slot_mapping, kv_scales)
    same_dtype(query=query, key=key)
    found: TensorSpec = rope.check(query, positions, table)  # type: ignore[assignment]
    return found


@op(_infer_rope_append_kv, mutates=("kv_cache",))
def rope_append_kv(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: Tensor,
    table: Tensor,
    kv_cache: Tensor,
    slot_mapping: Tensor,
    kv_scales: Tensor | None = None,
) -> Tensor:
    """Rotate queries and keys by their positions, and write keys and values into their KV cache slots.

    Args:
        query: [num_tokens, num_heads, head_dim], float32 | bfloat16 | float16.
        key: [num_tokens, num_kv_heads, head_dim], same dtype.
        value: Same shape and dtype as `key`.
        positions: [num_tokens], int32 | int64.
        table: [max_position, rotary_dim], float32, from `rope_table`.
        kv_cache: [2, num_blocks, num_kv_heads, block_size, head_dim]. Mutated.
        slot_mapping: [num_tokens], int32 | int64; -1 skips a padding token.
        kv_scales: As for `append_kv`.

    Returns:
        Rotated queries, [num_tokens, num_heads, head_dim], same dtype.
    """
    append_kv.reference(rope.reference(key, positions, table), value, kv_cache, slot_mapping, kv_scales)
    return rope.reference(query, positions, table)
