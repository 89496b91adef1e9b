"""Fused ops: what their parts compute, bit for bit, with fewer calls and fewer tensors in between."""

from __future__ import annotations

import torch
from torch import Tensor

from quire.ops.cpu import attention, elementwise, rope
from quire.ops.cpu.quantize import quantize_rows

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
