"""`linear_w8a8` of int8 by a kernel of our own: exact sums, so the bits of the reference at any number of rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quire.ops.native.library import call
from quire.ops.spec import TensorLike, dtype_of, num_bytes, sizes_of

PANEL_COLUMNS = 32
"""Output channels that lie together; see csrc/kernels/panels.hpp."""

STEP_CHANNELS = 64
"""Input channels that a panel has beside each other."""

GROUP_BYTES = 1 << 20
"""Of rows that a worker prepares at once; see csrc/kernels/w8a8.hpp."""


@dataclass(frozen=True, slots=True)
class PackedW8A8:
    """An int8 weight in panels.

    Attributes:
        panels: [num_panels, num_steps * 2048], int8; see csrc/kernels/panels.hpp.
        scales: [out_features], float32.
        corrections: [num_panels * 32], int32: what kernels that multiply by unsigned rows start sums at.
    """

    panels: Tensor
    scales: Tensor
    corrections: Tensor


def _counts(weight: TensorLike) -> tuple[int, int]:
    """Return the panels of a weight [out_features, in_features], and the steps of each."""
    out_features, in_features = sizes_of(weight)
    return -(-out_features // PANEL_COLUMNS), -(-in_features // STEP_CHANNELS)


def pack(weight: Tensor, scales: Tensor) -> PackedW8A8:
    """Reorder an int8 weight [out_features, in_features]."""
    num_panels, num_steps = _counts(weight)
    panels = torch.empty(num_panels, num_steps * PANEL_COLUMNS * STEP_CHANNELS, dtype=torch.int8)
    corrections = torch.empty(num_panels * PANEL_COLUMNS, dtype=torch.int32)
    call("pack_linear", [panels, weight if weight.stride(-1) == 1 else weight.contiguous()])
    call("correct_w8a8", [corrections, panels])
    return PackedW8A8(panels, scales.contiguous(), corrections)


def packed_bytes(weight: TensorLike, scales: TensorLike) -> int:
    """Return the bytes that `pack` makes, and those of the scales."""
    num_panels, num_steps = _counts(weight)
    return num_panels * PANEL_COLUMNS * (num_steps * STEP_CHANNELS + 4) + num_bytes(scales)


def is_valid(x: TensorLike, weight: TensorLike, **others: object) -> bool:
    """Return whether a layer is one of int8."""
    return x.dtype == weight.dtype == torch.int8


def run(
    x: Tensor, x_scales: Tensor, weight: PackedW8A8, scales: None, bias: Tensor | None = None, dtype: str = "bfloat16"
) -> Tensor:
    """Return the product; see `ops.linear.linear_w8a8`."""
    rows = x.reshape(-1, x.shape[-1])
    rows = rows if rows.stride(-1) == 1 else rows.contiguous()
    out = torch.empty((*x.shape[:-1], len(weight.scales)), dtype=dtype_of(dtype))
    flat, rows_scales = out.view(-1, len(weight.scales)), x_scales.reshape(-1, 1)
    call("linear_w8a8", [flat, rows, rows_scales, weight.panels, weight.scales, weight.corrections, bias])
    return out
