"""Quantization: activations row by row as they come, weights once, each symmetric but for four bits."""

from __future__ import annotations

import torch
from torch import Tensor

from quire.core.errors import ShapeError
from quire.ops.op import op
from quire.ops.spec import FLOATS, Dim, Shapes, TensorLike, TensorSpec, dtype_of

LARGEST = {"int8": 127.0, "float8_e4m3fn": 448.0}
"""Largest magnitude that each 8-bit dtype is scaled to."""

SMALLEST_SCALE = 1e-12
"""Of a row of zeros, whose quotient must stay finite."""


def check_8bit(dtype: str) -> torch.dtype:
    """Return the torch dtype of a name in `LARGEST`.

    Raises:
        ShapeError: It is none of them.
    """
    if dtype not in LARGEST:
        raise ShapeError(f"Invalid dtype: expected one of {', '.join(LARGEST)}, got {dtype!r}.")
    return dtype_of(dtype)


def round_to(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return float32 values that are already scaled as int8 (round half to even) or float8_e4m3fn, saturated."""
    if dtype == torch.int8:
        return x.round().clamp_(-127, 127).to(torch.int8)
    return x.clamp(-448.0, 448.0).to(dtype)


def row_specs(x: TensorLike, dtype: str) -> tuple[TensorSpec, TensorSpec]:
    """Return the specs of quantized rows and their scales."""
    shape = tuple(x.shape)
    return TensorSpec(shape, check_8bit(dtype)), TensorSpec((*shape[:-1], 1), torch.float32)


def _infer_rows(x: TensorLike, dtype: str) -> tuple[TensorSpec, TensorSpec]:
    Shapes().check("x", x, "*rows width", FLOATS)
    return row_specs(x, dtype)


@op(_infer_rows)
def quantize_rows(x: Tensor, dtype: str = "int8") -> tuple[Tensor, Tensor]:
    """Quantize each row by a scale of its own: `scale = max|x| / largest`, `q = round(x / scale)`.

    Args:
        x: [*rows, width], float32 | bfloat16 | float16.
        dtype: "int8" (largest 127) or "float8_e4m3fn" (largest 448).

    Returns:
        Quantized rows [*rows, width], and scales [*rows, 1], float32. A row that is not finite has a scale that is not.
    """
    wide = x.float()
    scales = wide.abs().amax(-1, keepdim=True).div_(LARGEST[dtype]).clamp_(min=SMALLEST_SCALE)
    return round_to(wide / scales, dtype_of(dtype)), scales


def _infer_weight(weight: TensorLike, dtype: str) -> tuple[TensorSpec, TensorSpec]:
    Shapes().check("weight", weight, "out_features in_features", FLOATS)
    return TensorSpec(tuple(weight.shape), check_8bit(dtype)), TensorSpec((weight.shape[0],), torch.float32)


@op(_infer_weight)
def quantize_weight(weight: Tensor, dtype: str = "int8") -> tuple[Tensor, Tensor]:
    """Quantize each output channel by a scale of its own, as `quantize_rows` does rows.

    Args:
        weight: [out_features, in_features], float32 | bfloat16 | float16.
        dtype: "int8" or "float8_e4m3fn".

    Returns:
        Quantized weight, same shape, and scales [out_features], float32.
    """
    quantized, scales = quantize_rows.reference(weight, dtype)
    return quantized, scales.view(-1)


def num_groups(in_features: Dim, group_size: int) -> int:
    """Return how many groups of input channels share a scale.

    Raises:
        ShapeError: `in_features` is odd or no multiple of `group_size`.
    """
    if not isinstance(in_features, int) or in_features % 2 or group_size < 1 or in_features % group_size:
        raise ShapeError(f"Invalid group_size: expected an even in_features divisible by it, got {in_features} and "
                         f"{group_size}.")  # fmt: skip
    return in_features // group_size


def _infer_int4(
    weight: TensorLike, group_size: int, dtype: str | None, shares: TensorLike | None
) -> tuple[TensorSpec, TensorSpec, TensorSpec]:
    Shapes().check("weight", weight, "out_features in_features", FLOATS)
    out_features, in_features = weight.shape
    groups = num_groups(in_features, group_size)
    if shares is not None:
        Shapes().check("shares", shares, f"{out_features} {groups}", (torch.float32,))
    assert isinstance(in_features, int)
    return (
        TensorSpec((out_features, in_features // 2), torch.uint8),
        TensorSpec((out_features, groups), weight.dtype if dtype is None else dtype_of(dtype)),
        TensorSpec((out_features, groups), torch.uint8),
    )


@op(_infer_int4)
def quantize_weight_int4(
    weight: Tensor, group_size: int = 128, dtype: str | None = None, shares: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize groups of input channels to 0..15 with a scale and a zero point each.

    `scale = (max(w, 0) - min(w, 0)) * share / 15`, `zero_point = round(-min * share / scale)`, `q = round(w / scale) +
    zero_point`, saturated.

    Args:
        weight: [out_features, in_features], float32 | bfloat16 | float16.
        group_size: Input channels that share a scale; divides in_features.
        dtype: Of the scales; None takes that of `weight`.
        shares: [out_features, in_features / group_size], float32: how much of each group's range is kept; None keeps
            all.

    Returns:
        Weight [out_features, in_features / 2], uint8, two values a byte, the even channel in the low half; scales
        [out_features, in_features / group_size], `dtype`; zero points, same shape, uint8.
    """
    groups = weight.float().view(weight.shape[0], -1, group_size)
    low, high = groups.amin(-1).clamp_(max=0), groups.amax(-1).clamp_(min=0)
    if shares is not None:
        low, high = low * shares, high * shares
    kept = weight.dtype if dtype is None else dtype_of(dtype)
    scales = ((high - low) / 15).clamp_(min=SMALLEST_SCALE if kept != torch.float16 else 6e-8).to(kept)
    wide = scales.float()
    zero_points = (-low / wide).round_().clamp_(0, 15)
    quantized = (groups / wide.unsqueeze(-1)).round_().add_(zero_points.unsqueeze(-1)).clamp_(0, 15)
    flat = quantized.to(torch.uint8).view(weight.shape)
    return pack_int4.reference(flat), scales, zero_points.to(torch.uint8)


def _infer_pack(values: TensorLike) -> TensorSpec:
    Shapes().check("values", values, "out_features in_features", (torch.uint8,))
    return TensorSpec((values.shape[0], num_groups(values.shape[1], 2)), torch.uint8)


@op(_infer_pack)
def pack_int4(values: Tensor) -> Tensor:
    """Return [out_features, in_features] uint8 values 0..15 two a byte, the even channel in the low half."""
    return values[:, 0::2] | (values[:, 1::2] << 4)


def unpack_int4(packed: Tensor) -> Tensor:
    """Return [out_features, in_features] uint8 values 0..15 from what `pack_int4` made."""
    return torch.stack((packed & 15, packed >> 4), -1).view(packed.shape[0], -1)


def dequantize_int4(weight: Tensor, scales: Tensor, zero_points: Tensor) -> Tensor:
    """Return the float32 weight [out_features, in_features] that four-bit values stand for."""
    groups = unpack_int4(weight).view(*scales.shape, -1).float()
    return ((groups - zero_points.float().unsqueeze(-1)) * scales.float().unsqueeze(-1)).view(weight.shape[0], -1)
