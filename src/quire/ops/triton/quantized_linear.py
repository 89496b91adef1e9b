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
from quire.ops.triton.launch import INTERPRETED, dot
from quire.ops.triton.linear import as_matrix, finish, options, product
from quire.ops.triton.tiles import tile_at, tile_for

_QUARTERS = (32, 16)  # channels, a multiple of what tensor cores multiply at once


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
    """A weight of four bits in blocks of four quarters, 128 channels where groups allow it.

    Attributes:
        weight: [out_features, num_blocks * quarter], int16: word i of a block has channel i of each of its quarters,
            the first in the lowest bits. So two words are two neighbours of each quarter, as tensor cores want them.
        groups: [num_groups, out_features], int32 (int64 of float32 scales): the bits of a scale in the low half, the
            zero point in the high one; one read brings both.
        quarter: Channels of a quarter.
    """

    weight: Tensor
    groups: Tensor
    quarter: int


def pack_w4a16(weight: Tensor, scales: Tensor, zero_points: Tensor) -> PackedInt4:
    """Reorder a weight of four bits; the arguments are those of `ops.linear.linear_w4a16`."""
    quarter = _quarter(2 * weight.shape[1] // scales.shape[1])
    values = unpack_int4(weight)
    values = torch.nn.functional.pad(values, (0, -values.shape[1] % (4 * quarter)))
    words = torch.zeros(len(weight), values.shape[1] // (4 * quarter), quarter, dtype=torch.int16, device=weight.device)
    for place, part in enumerate(values.view(len(weight), -1, 4, quarter).unbind(2)):
        words |= part.to(torch.int16) << 4 * place
    word, bits = (torch.int64, torch.int32) if scales.dtype == torch.float32 else (torch.int32, torch.int16)
    width = 8 * bits.itemsize
    groups = scales.contiguous().view(bits).to(word) & (1 << width) - 1 | zero_points.to(word) << width
    return PackedInt4(words.view(len(weight), -1), groups.t().contiguous(), quarter)


def _quarter(group_size: int) -> int:
    """Return how many channels a quarter has; if groups are no multiple of it, scales are read for each channel."""
    return next((quarter for quarter in _QUARTERS if group_size % quarter == 0), _QUARTERS[-1])


def packed_w4a16_bytes(weight: TensorLike, scales: TensorLike, zero_points: TensorLike) -> int:
    """Return the bytes of what `pack_w4a16` makes."""
    (out_features, num_bytes), (_, num_groups) = sizes_of(weight), sizes_of(scales)
    block_bytes = 2 * _quarter(2 * num_bytes // num_groups)
    return out_features * (-(-num_bytes // block_bytes) * block_bytes + num_groups * 2 * scales.dtype.itemsize)


def linear_w4a16(x: Tensor, weight: PackedInt4, scales: None, zero_points: None, bias: Tensor | None = None) -> Tensor:
    """Return `x @ ((weight - zero_points) * scales).T + bias`; see `ops.linear.linear_w4a16`.

    The bits of `linear` with the weight in the dtype of `x`: the same operands, added in the same order.
    """
    rows, quarter, (num_groups, out_features) = as_matrix(x), weight.quarter, weight.groups.shape
    out = torch.empty(rows.shape[0], out_features, dtype=x.dtype, device=x.device)
    if out.numel():
        tile = tile_for(rows, weight.weight, is_streamed=False, channels=4 * quarter)
        grid = (triton.cdiv(rows.shape[0], tile.rows) * triton.cdiv(out_features, tile.features),)
        int4_kernel[grid](
            rows, weight.weight, weight.groups, out, bias,
            rows.shape[0], out_features, rows.shape[1], rows.stride(0), weight.weight.stride(0),
            tile.rows, tile.features, quarter, rows.shape[1] // num_groups, rows.shape[1] % (4 * quarter) == 0,
            **options(tile),
        )  # fmt: skip
    return out.view(*x.shape[:-1], out_features)


# Two values at once: `(word & 15) | BASE` is 128 + q in bfloat16, 1024 + q in float16. Less that and the zero point it
# is exact, times the scale it is rounded. Then the words move on by a value. For Hopper that makes the loop 263
# instructions long for 64 values a thread, instead of 521 by way of float32.
_ASM = """
{
    .reg .b32 shifted, one, none;
    mov.b32 one, UNIT;
    mov.b32 none, 0x80008000;
    lop3.b32 shifted, $2, 0x000F000F, BASE, 0xEA;
    fma.rn.TYPE shifted, shifted, one, $3;
    fma.rn.TYPE $0, shifted, $4, none;
    shr.b32 $1, $2, 4;
}
"""
_BFLOAT16 = tl.constexpr(_ASM.replace("TYPE", "bf16x2").replace("UNIT", "0x3F803F80").replace("BASE", "0x43004300"))
_FLOAT16 = tl.constexpr(_ASM.replace("TYPE", "f16x2").replace("UNIT", "0x3C003C00").replace("BASE", "0x64006400"))
_IS_PLAIN = tl.constexpr(INTERPRETED)


@triton.jit
def _dequantize(words, group, dtype: tl.constexpr):
    """Return `(q - zero_point) * scale`, rounded to `dtype`, of the lowest four bits of each word, and words moved on.

    Exact until it is rounded: a difference has five bits, and a scale 11 at most, or 24 in float32.
    """
    if dtype == tl.float32:
        scale, zero_point = group.to(tl.int32).to(tl.float32, bitcast=True), (group >> 32).to(tl.float32)
    else:
        scale, zero_point = group.to(tl.int16).to(dtype, bitcast=True), (group >> 16).to(tl.float32)
    if _IS_PLAIN or dtype == tl.float32:
        values = (((words & 15).to(tl.float32) - zero_point) * scale.to(tl.float32)).to(dtype)
        words = words >> 4
    else:
        IS_BFLOAT16: tl.constexpr = dtype == tl.bfloat16
        less = (-(128.0 if IS_BFLOAT16 else 1024.0) - zero_point).to(dtype)
        values, words = tl.inline_asm_elementwise(
            _BFLOAT16 if IS_BFLOAT16 else _FLOAT16, "=r,=r,r,r,r", [words, less, scale],
            dtype=(tl.int16, tl.int16), is_pure=True, pack=2,
        )  # fmt: skip
        values = values.to(dtype, bitcast=True)
    return values, words


@triton.jit
def _group(groups, feature, first, out_features, in_features, QUARTER: tl.constexpr, GROUP: tl.constexpr):
    """Return scales and zero points of QUARTER channels from `first` on: one a feature, or one a channel."""
    if GROUP % QUARTER == 0:
        at = tl.minimum(first, in_features - 1) // GROUP  # beyond the last channel activations are zero
        group = tl.load(groups + at * out_features + feature)[:, None]
    else:
        channel = tl.minimum(first + tl.arange(0, QUARTER), in_features - 1)
        group = tl.load(groups + (channel // GROUP)[None, :] * out_features + feature[:, None])
    return group


@triton.jit(do_not_specialize=["num_rows"])
def int4_kernel(
    x, weight, groups, out, bias, num_rows, out_features, in_features, x_stride, weight_stride,
    ROWS: tl.constexpr, FEATURES: tl.constexpr, QUARTER: tl.constexpr, GROUP: tl.constexpr, IS_WHOLE: tl.constexpr,
):  # fmt: skip
    """Compute one tile of a product with a weight of four bits, which is the first operand and stays in registers.

    Args:
        x, out: Pointers to [num_rows, in_features] and [num_rows, out_features].
        weight, groups: Pointers to the parts of a `PackedInt4`.
        bias: See `linear.finish`.
        QUARTER: Channels of a quarter of a block.
        GROUP: Channels that share a scale.
        IS_WHOLE: Whether blocks divide `in_features`; a last one that is not whole has activations of zero.
    """
    dtype: tl.constexpr = x.dtype.element_ty
    first_row, first_feature = tile_at(tl.program_id(0), num_rows, out_features, ROWS, FEATURES)
    row, feature = first_row + tl.arange(0, ROWS), first_feature + tl.arange(0, FEATURES)
    channel, there = tl.arange(0, QUARTER), tl.minimum(feature, out_features - 1)
    x_at = x + tl.minimum(row, num_rows - 1).to(tl.int64)[None, :] * x_stride + channel[:, None]
    weight_at = weight + there.to(tl.int64)[:, None] * weight_stride + channel[None, :]
    sums = tl.zeros((FEATURES, ROWS), dtype=tl.float32)
    for start in range(0, in_features, 4 * QUARTER):
        words = tl.load(weight_at)
        group = _group(groups, there, start, out_features, in_features, QUARTER, GROUP)
        for place in tl.static_range(4):
            first = start + place * QUARTER
            if place > 0 and GROUP % (4 * QUARTER) != 0:
                group = _group(groups, there, first, out_features, in_features, QUARTER, GROUP)
            v = tl.load(x_at) if IS_WHOLE else tl.load(x_at, mask=channel[:, None] < in_features - first, other=0.0)
            w, words = _dequantize(words, group, dtype)
            sums = dot(w, v, sums)
            x_at += QUARTER
        weight_at += QUARTER
    result = finish(tl.trans(sums), row, feature, None, None, bias, num_rows, out_features)
    out_at = out + row.to(tl.int64)[:, None] * out_features + feature[None, :]
    inside = (row < num_rows)[:, None] & (feature < out_features)[None, :]
    tl.store(out_at, result.to(dtype), mask=inside)
