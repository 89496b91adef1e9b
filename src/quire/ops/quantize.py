"""Quantization: activations row by row as they come, weights once, each symmetric but for four bits."""

from __future__ import annotations

from collections.abc import Sequence

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
    pairs = packed.to(torch.int16, memory_format=torch.contiguous_format)
    values = pairs.bitwise_or_(pairs << 4).bitwise_and_(0x0F0F).view(torch.uint8)  # little-endian: low halves first
    return values.view(packed.shape[0], 2 * packed.shape[1])


def dequantize_int4(weight: Tensor, scales: Tensor, zero_points: Tensor) -> Tensor:
    """Return the float32 weight [out_features, in_features] that four-bit values stand for."""
    groups = unpack_int4(weight).view(*scales.shape, -1).float()
    return ((groups - zero_points.float().unsqueeze(-1)) * scales.float().unsqueeze(-1)).view(weight.shape[0], -1)


def _infer_unpack_int32(packed: TensorLike, bits: int, dim: int, is_interleaved: bool, is_signed: bool) -> TensorSpec:
    Shapes().check("packed", packed, "rows columns", (torch.int32,))
    sizes = [size for size in packed.shape if isinstance(size, int)]
    if bits not in (4, 8) or dim not in (0, 1) or len(sizes) != 2 or (is_interleaved and bits != 4):
        raise ShapeError(f"Invalid packing: expected 4 or 8 bits along dim 0 or 1 of fixed sizes, interleaved only for "
                         f"4 bits, got {bits} bits along dim {dim} of {list(packed.shape)}.")  # fmt: skip
    sizes[dim] *= 32 // bits
    return TensorSpec(tuple(sizes), torch.int8 if is_signed else torch.uint8)


@op(_infer_unpack_int32)
def unpack_int32(
    packed: Tensor, bits: int = 4, dim: int = 1, is_interleaved: bool = False, is_signed: bool = False
) -> Tensor:
    """Return the values that checkpoints keep in 32-bit words, the first in the lowest bits.

    Args:
        packed: [rows, columns], int32: a word holds 32 / bits neighbours along `dim`.
        bits: 4 or 8.
        dim: 0 or 1.
        is_interleaved: Whether a word holds its eight values in the order 0, 2, 4, 6, 1, 3, 5, 7, as AWQ's do.
        is_signed: Whether half of the range was added to values, and is taken off again.

    Returns:
        [rows, columns], 32 / bits times as long along `dim`, uint8, or int8 if signed.
    """
    words = packed if dim == 1 else packed.t()
    if is_interleaved:
        words = _spread(words & 0xFFFF) | _spread(words >> 16 & 0xFFFF) << 4
    # Little-endian: the lowest byte comes first.
    values = words.clone(memory_format=torch.contiguous_format).view(torch.uint8)
    if bits == 4:
        values = unpack_int4(values)
    if is_signed:
        values = (values - (1 << bits - 1)).view(torch.int8)
    return values if dim == 1 else values.t().contiguous()


def _spread(halves: Tensor) -> Tensor:
    """Return int32 words whose lower four groups of four bits have moved to the places 0, 2, 4 and 6."""
    halves = (halves | halves << 8) & 0x00FF00FF
    return (halves | halves << 4) & 0x0F0F0F0F


def _infer_dequantize(
    weight: TensorLike, scales: TensorLike, block: Sequence[int], zero_points: TensorLike | None, dtype: str
) -> TensorSpec:
    shapes = Shapes()
    shapes.check("weight", weight, "out_features in_features", (torch.uint8, torch.int8, torch.float8_e4m3fn))
    sizes = shapes.size("out_features"), shapes.size("in_features")
    if len(block) != 2 or min(block) < 1:
        raise ShapeError(f"Invalid block: expected two sizes of at least 1, got {list(block)}.")
    grid = " ".join(str(-(-size // part)) for size, part in zip(sizes, block, strict=True))
    shapes.check("scales", scales, grid, FLOATS)
    if zero_points is not None:
        shapes.check("zero_points", zero_points, grid, (torch.uint8,))
    return TensorSpec(sizes, dtype_of(dtype))


@op(_infer_dequantize)
def dequantize_weight(
    weight: Tensor, scales: Tensor, block: Sequence[int], zero_points: Tensor | None = None, dtype: str = "float32"
) -> Tensor:
    """Return `(weight - zero_points) * scales`, computed in float32: what 8-bit values stand for block by block.

    Args:
        weight: [out_features, in_features], uint8 | int8 | float8_e4m3fn.
        scales: [out_features / rows, in_features / columns], rounded up, any float: one for each block.
        block: Rows and columns that share a scale.
        zero_points: Shape of `scales`, uint8, or None.
        dtype: Of the result.

    Returns:
        [out_features, in_features], `dtype`.
    """
    rows, columns = block
    out = weight.float()
    for first in range(0, weight.shape[1], columns):  # no temporary of the weight's own size beside the result
        part, column = out[:, first : first + columns], first // columns
        if zero_points is not None:
            part.sub_(zero_points[:, column].repeat_interleave(rows)[: len(part), None])
        part.mul_(scales[:, column].float().repeat_interleave(rows)[: len(part), None])
    return out.to(dtype_of(dtype))
