"""Fused ops: what their parts compute, bit for bit, with fewer calls and fewer tensors in between."""

from __future__ import annotations

import torch
from torch import Tensor

from quire.ops.cpu import attention, elementwise, rope
from quire.ops.cpu.quantize import quantize_rows, quantize_rows_bytes
from quire.ops.spec import TensorLike, TensorSpec, num_bytes, sizes_of

Prepared = tuple[tuple[Tensor, Tensor], tuple[Tensor | None, Tensor, Tensor]]


def silu_mul(x: Tensor) -> Tensor:
    """Return `silu(gate) * up`; see `ops.fused.silu_mul`."""
    gate, up = x.chunk(2, -1)
    return elementwise.silu(gate).mul_(up)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return the norm; see `ops.norm.rms_norm`."""
    wide = x.float()
    scale = (wide * wide).mean(-1, keepdim=True).add_(eps).sqrt_()
    return (wide / scale).to(x.dtype).mul_(weight)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the norm of the sum, and the sum; see `ops.fused.add_rms_norm`."""
    total = x + residual
    return rms_norm(total, weight, eps), total


def rms_norm_quant(x: Tensor, weight: Tensor, eps: float, dtype: str = "int8") -> tuple[Tensor, Tensor]:
    """Return rows and scales; see `ops.fused.rms_norm_quant`."""
    return quantize_rows(rms_norm(x, weight, eps), dtype)


def add_rms_norm_quant(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, dtype: str = "int8"
) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows, scales and the sum; see `ops.fused.add_rms_norm_quant`."""
    total = x + residual
    return (*quantize_rows(rms_norm(total, weight, eps), dtype), total)


def silu_mul_quant(x: Tensor, dtype: str = "int8") -> tuple[Tensor, Tensor]:
    """Return rows and scales; see `ops.fused.silu_mul_quant`."""
    return quantize_rows(silu_mul(x), dtype)


def angles_and_slots(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: Tensor,
    table: Tensor,
    kv_cache: Tensor,
    slot_mapping: Tensor,
    kv_scales: Tensor | None = None,
) -> Prepared:
    """Return what `rope` and `append_kv` prepare."""
    return rope.angles(query, positions, table), attention.slots(key, value, kv_cache, slot_mapping)


def rope_append_kv(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: Tensor,
    table: Tensor,
    kv_cache: Tensor,
    slot_mapping: Tensor,
    kv_scales: Tensor | None = None,
    *,
    prepared: Prepared,
) -> Tensor:
    """Rotate queries and keys together, and write keys and values; see `ops.fused.rope_append_kv`."""
    angles, slots = prepared
    both = rope.rope(torch.cat((query, key), 1), positions, table, angles)
    rotated, key = both[:, : query.shape[1]], both[:, query.shape[1] :]
    attention.append_kv(key, value, kv_cache, slot_mapping, kv_scales, prepared=slots)
    return rotated


def rope_append_kv_apart(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: Tensor,
    table: Tensor,
    kv_cache: Tensor,
    slot_mapping: Tensor,
    kv_scales: Tensor | None = None,
    *,
    prepared: Prepared,
) -> Tensor:
    """Rotate queries and keys one after the other: no copy that joins them, but twice as many calls."""
    angles, slots = prepared
    key = rope.rope(key, positions, table, angles)
    attention.append_kv(key, value, kv_cache, slot_mapping, kv_scales, prepared=slots)
    return rope.rope(query, positions, table, angles)


# --------------------------------------------------------------------------------------------------- what they hold


def silu_mul_bytes(x: TensorLike) -> int:
    """Return the most bytes that `silu_mul` holds: as `silu` of one half."""
    return elementwise.silu_bytes(_half(x))


def rms_norm_bytes(x: TensorLike, weight: TensorLike, eps: float) -> int:
    """Return the most bytes that `rms_norm` holds: quotients in float32; if it is not, `x` and the result."""
    wide = num_bytes(x, torch.float32)
    return wide if x.dtype == torch.float32 else 2 * wide + num_bytes(x)


def add_rms_norm_bytes(x: TensorLike, residual: TensorLike, weight: TensorLike, eps: float) -> int:
    """Return the most bytes that `add_rms_norm` holds: the sum, and what its norm takes."""
    return num_bytes(x) + rms_norm_bytes(x, weight, eps)


def rms_norm_quant_bytes(x: TensorLike, weight: TensorLike, eps: float, dtype: str = "int8") -> int:
    """Return the most bytes that `rms_norm_quant` holds: as its parts, one after the other."""
    return max(rms_norm_bytes(x, weight, eps), num_bytes(x) + quantize_rows_bytes(x, dtype))


def add_rms_norm_quant_bytes(
    x: TensorLike, residual: TensorLike, weight: TensorLike, eps: float, dtype: str = "int8"
) -> int:
    """Return the most bytes that `add_rms_norm_quant` holds: the sum, and its parts, one after the other."""
    return num_bytes(x) + rms_norm_quant_bytes(x, weight, eps, dtype)


def silu_mul_quant_bytes(x: TensorLike, dtype: str = "int8") -> int:
    """Return the most bytes that `silu_mul_quant` holds: as its parts, one after the other."""
    half = _half(x)
    return max(silu_mul_bytes(x), num_bytes(half) + quantize_rows_bytes(half, dtype))


def _half(x: TensorLike) -> TensorSpec:
    *rows, width = sizes_of(x)
    return TensorSpec((*rows, width // 2), x.dtype)


def angles_and_slots_bytes(
    query: TensorLike, positions: TensorLike, table: TensorLike, slot_mapping: TensorLike, **rest: object
) -> tuple[int, int]:
    """Return the bytes of `angles_and_slots`, and the most that making them takes."""
    angles, making = rope.angles_bytes(query, positions, table)
    slots, splitting = attention.slots_bytes(slot_mapping)
    return angles + slots, max(making, angles + splitting)


def together_bytes(
    query: TensorLike,
    key: TensorLike,
    positions: TensorLike,
    table: TensorLike,
    kv_scales: TensorLike | None = None,
    **rest: object,
) -> int:
    """Return the most bytes that `rope_append_kv` holds: queries and keys joined, then turned, then the keys kept."""
    both = _joined(query, key)
    return num_bytes(both) + max(rope.rope_bytes(both, positions, table), attention.append_kv_bytes(key, kv_scales))


def together_result_bytes(query: TensorLike, key: TensorLike, **rest: object) -> int:
    """Return the bytes behind the result of `rope_append_kv`: the queries lie beside the keys."""
    return num_bytes(_joined(query, key))


def apart_bytes(
    query: TensorLike,
    key: TensorLike,
    positions: TensorLike,
    table: TensorLike,
    kv_scales: TensorLike | None = None,
    **rest: object,
) -> int:
    """Return the most bytes that `rope_append_kv_apart` holds: turned keys, kept or beside queries."""
    keeping, turning = attention.append_kv_bytes(key, kv_scales), rope.rope_bytes(query, positions, table)
    return max(rope.rope_bytes(key, positions, table), num_bytes(key) + max(keeping, turning))


def _joined(query: TensorLike, key: TensorLike) -> TensorSpec:
    num_tokens, num_heads, head_dim = sizes_of(query)
    return TensorSpec((num_tokens, num_heads + sizes_of(key)[1], head_dim), query.dtype)
