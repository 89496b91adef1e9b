"""Linear layers of quantized weights: `linear`'s kernels where values have eight bits, one of its own where four.

Weights become operands in registers, so they are read in as few bytes as they are kept in. Values of eight bits are
exact in bfloat16 and float16, and their scales multiply sums. Those of four bits have scales for each group of
channels: `(q - zero_point) * scale` is rounded to the dtype of the activations, as if the layer were expanded to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.ops.quantize import unpack_int4
from quire.ops.spec import TensorLike, dtype_of, sizes_of
from quire.ops.triton.launch import dot
from quire.ops.triton.linear import as_matrix, finish, options, product
from quire.ops.triton.tiles import tile_at, tile_for

_HALVES = (64, 32, 16)  # channels, a multiple of what tensor cores multiply at once


def linear_w8a8(
    x: Tensor, x_scales: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None = None, dtype: str = "bfloat16"
) -> Tensor:
    """Return `(x @ weight.T) * scales * x_scales + bias`; see `ops.linear.linear_w8a8`.

    Int8: the same bits as the reference, exact sums scaled in the same order. Float8: sums as `linear` says.
    """
    return product(x, weight, dtype_of(dtype), scales, x_scales, bias)


def linear_w8a16(x: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `(x @ weight.T) * scales + bias`; see `ops.linear.linear_w8a16`."""
    return product(x, weight, x.dtype, scales, bias=bias)


@dataclass(frozen=True, slots=True)
class PackedInt4:
    """A weight of four bits in blocks of channels, so that a byte's halves come from two runs of neighbours.

    Attributes:
        weight: [out_features, num_blocks * half], uint8: byte i of a block has its channel i in the low half, and its
            channel i + half in the high one.
        groups: [num_groups, out_features], int32 (int64 of float32 scales): the bits of a scale in the low half, the
            zero point in the high one; one read brings both.
        half: Channels of half a block: as many as share a scale, 64 at most.
    """

    weight: Tensor
    groups: Tensor
    half: int


def pack_w4a16(weight: Tensor, scales: Tensor, zero_points: Tensor) -> PackedInt4:
    """Reorder a weight of four bits; the arguments are those of `ops.linear.linear_w4a16`."""
    half = _half(2 * weight.shape[1] // scales.shape[1])
    values = unpack_int4(weight)
    values = torch.nn.functional.pad(values, (0, -values.shape[1] % (2 * half)))
    low, high = values.view(len(weight), -1, 2, half).unbind(2)
    word, bits = (torch.int64, torch.int32) if scales.dtype == torch.float32 else (torch.int32, torch.int16)
    width = 8 * bits.itemsize
    groups = scales.contiguous().view(bits).to(word) & (1 << width) - 1 | zero_points.to(word) << width
    return PackedInt4((low | high << 4).view(len(weight), -1), groups.t().contiguous(), half)


def _half(group_size: int) -> int:
    """Return how many channels half a block has; if groups are no multiple of it, scales are read for each channel."""
    return next((half for half in _HALVES if group_size % half == 0), _HALVES[-1])


def packed_w4a16_bytes(weight: TensorLike, scales: TensorLike, zero_points: TensorLike) -> int:
    """Return the bytes of what `pack_w4a16` makes."""
    (out_features, num_bytes), (_, num_groups) = sizes_of(weight), sizes_of(scales)
    half = _half(2 * num_bytes // num_groups)
    return out_features * (-(-num_bytes // half) * half + num_groups * 2 * scales.dtype.itemsize)


def linear_w4a16(x: Tensor, weight: PackedInt4, scales: None, zero_points: None, bias: Tensor | None = None) -> Tensor:
    """Return `x @ ((weight - zero_points) * scales).T + bias`; see `ops.linear.linear_w4a16`.

    The bits of `linear` with the weight in the dtype of `x`: the same operands, added in the same order.
    """
    rows, half, (num_groups, out_features) = as_matrix(x), weight.half, weight.groups.shape
    out = torch.empty(rows.shape[0], out_features, dtype=x.dtype, device=x.device)
    if out.numel():
        tile = tile_for(rows, weight.weight, is_streamed=False, channels=2 * half)
        grid = (triton.cdiv(rows.shape[0], tile.rows) * triton.cdiv(out_features, tile.features),)
        int4_kernel[grid](
            rows, weight.weight, weight.groups, out, bias,
            rows.shape[0], out_features, rows.shape[1], rows.stride(0), weight.weight.stride(0),
            tile.rows, tile.features, half, rows.shape[1] // num_groups, rows.shape[1] % (2 * half) == 0,
            **options(tile),
        )  # fmt: skip
    return out.view(*x.shape[:-1], out_features)


@triton.jit
def _dequantize(
    values, groups, feature, first, out_features, in_features,
    HALF: tl.constexpr, GROUP: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """Return `(values - zero_point) * scale` of HALF channels from `first` on, rounded to `dtype`.

    Exact until it is rounded: a difference has five bits, and a scale 11 at most, or 24 in float32.
    """
    if GROUP % HALF == 0:  # one group: a value a feature
        word = tl.load(groups + first // GROUP * out_features + feature)[:, None]
    else:
        channel = tl.minimum(first + tl.arange(0, HALF), in_features - 1)
        word = tl.load(groups + (channel // GROUP)[None, :] * out_features + feature[:, None])
    if dtype == tl.float32:
        scale, zero_point = word.to(tl.int32).to(tl.float32, bitcast=True), (word >> 32).to(tl.float32)
    else:
        scale = word.to(tl.int16).to(dtype, bitcast=True).to(tl.float32)
        zero_point = (word >> 16).to(tl.float32)
    return ((values.to(tl.float32) - zero_point) * scale).to(dtype)


@triton.jit(do_not_specialize=["num_rows"])
def int4_kernel(
    x, weight, groups, out, bias, num_rows, out_features, in_features, x_stride, weight_stride,
    ROWS: tl.constexpr, FEATURES: tl.constexpr, HALF: tl.constexpr, GROUP: tl.constexpr, IS_WHOLE: tl.constexpr,
):  # fmt: skip
    """Compute one tile of a product with a weight of four bits, which is the first operand and stays in registers.

    Args:
        x, out: Pointers to [num_rows, in_features] and [num_rows, out_features].
        weight, groups: Pointers to the parts of a `PackedInt4`.
        bias: See `linear.finish`.
        HALF: Channels of half a block.
        GROUP: Channels that share a scale.
        IS_WHOLE: Whether blocks divide `in_features`; a last one that is not whole has activations of zero.
    """
    dtype: tl.constexpr = x.dtype.element_ty
    first_row, first_feature = tile_at(tl.program_id(0), num_rows, out_features, ROWS, FEATURES)
    row, feature = first_row + tl.arange(0, ROWS), first_feature + tl.arange(0, FEATURES)
    channel, there = tl.arange(0, HALF), tl.minimum(feature, out_features - 1)
    x_at = x + tl.minimum(row, num_rows - 1).to(tl.int64)[None, :] * x_stride + channel[:, None]
    weight_at = weight + there.to(tl.int64)[:, None] * weight_stride + channel[None, :]
    sums = tl.zeros((FEATURES, ROWS), dtype=tl.float32)
    for start in range(0, in_features, 2 * HALF):
        pairs = tl.load(weight_at)
        if IS_WHOLE:
            v, u = tl.load(x_at), tl.load(x_at + HALF)
        else:
            v = tl.load(x_at, mask=channel[:, None] < in_features - start, other=0.0)
            u = tl.load(x_at + HALF, mask=channel[:, None] < in_features - start - HALF, other=0.0)
        low = _dequantize(pairs & 15, groups, there, start, out_features, in_features, HALF, GROUP, dtype)
        sums = dot(low, v, sums)
        # A group beyond the last channel is none: the block's second half is zeros there.
        second = tl.minimum(start + HALF, in_features - 1)
        high = _dequantize(pairs >> 4, groups, there, second, out_features, in_features, HALF, GROUP, dtype)
        sums = dot(high, u, sums)
        weight_at += HALF
        x_at += 2 * HALF
    result = finish(tl.trans(sums), row, feature, None, None, bias, num_rows, out_features)
    out_at = out + row.to(tl.int64)[:, None] * out_features + feature[None, :]
    inside = (row < num_rows)[:, None] & (feature < out_features)[None, :]
    tl.store(out_at, result.to(dtype), mask=inside)
