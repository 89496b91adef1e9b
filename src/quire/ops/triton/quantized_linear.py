"""Linear layers of quantized weights: `linear`'s kernels where both operands have eight bits, one of its own elsewhere.

Weights become operands in registers, so they are read in as few bytes as they are kept in. Values of eight bits are
exact in bfloat16 and float16, and their scales multiply sums. Those of four bits have scales for each group of
channels: `(q - zero_point) * scale` is rounded to the dtype of the activations, as if the layer were expanded to it.

Two things forbid a kernel that reads values of eight bits and converts them. Up to ptxas 13.2 wgmma may still read an
operand in registers when the next round of the loop overwrites it, if the loop has one product that Triton cuts into
several and does not wait for (Triton's issue 9433; on an H100, tiles of 64 and 128 rows gave int8 other bits). And for
mma, Triton lets a thread read four channels at once, which puts others into one step of the tensor cores, so sums come
in another order than `linear`'s. So weights are packed in words of 16 bits, each of which holds channels far apart;
few rows of eight bits are multiplied by mma, and for more the weight is expanded first, which is also faster (H100,
2048 rows, 4096 x 4096 and 4096 x 14336: 136 and 452 instead of 160 and 543 us).
"""

from __future__ import annotations

from math import prod

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.ops.spec import TensorLike, dtype_of, num_bytes, sizes_of
from quire.ops.triton.launch import INTERPRETED, dot
from quire.ops.triton.linear import as_matrix, finish, options, product
from quire.ops.triton.packing import HALF, PackedBytes, PackedInt4, unpack_byte
from quire.ops.triton.tiles import FEW_ROWS, tile_at, tile_for

_BLOCKS = 16  # that one program of `expand_kernel` expands: words for 16 bytes a thread


def linear_w8a8(
    x: Tensor, x_scales: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None = None, dtype: str = "bfloat16"
) -> Tensor:
    """Return `(x @ weight.T) * scales * x_scales + bias`; see `ops.linear.linear_w8a8`.

    Int8: the same bits as the reference, exact sums scaled in the same order. Float8: sums as `linear` says.
    """
    return product(x, weight, dtype_of(dtype), scales, x_scales, bias)


def linear_w8a16(x: Tensor, weight: PackedBytes, scales: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `(x @ weight.T) * scales + bias`; see `ops.linear.linear_w8a16`.

    Before scales the bits of `linear` with the weight in the dtype of `x`.
    """
    if _is_expanded(x):
        return product(x, expand(weight, x.shape[-1], x.dtype), x.dtype, scales, bias=bias)
    return _product(x, weight.weight, None, scales, bias, part=HALF, bits=8, is_float8=weight.is_float8)


def _is_expanded(x: TensorLike) -> bool:
    return prod(sizes_of(x)[:-1]) > FEW_ROWS or x.dtype == torch.float32


def w8a16_bytes(x: TensorLike, weight: TensorLike, **rest: object) -> int:
    """Return the most bytes that `linear_w8a16` holds: its result, and an expanded weight for more than a few rows."""
    result = prod(sizes_of(x)[:-1]) * sizes_of(weight)[0] * x.dtype.itemsize
    return result + (num_bytes(weight, x.dtype) if _is_expanded(x) else 0)


def expand(weight: PackedBytes, in_features: int, dtype: torch.dtype) -> Tensor:
    """Return a weight of eight bits as [out_features, in_features] of a float dtype, exactly."""
    out_features, num_blocks = weight.weight.shape[0], weight.weight.shape[1] // HALF
    out = torch.empty(out_features, in_features, dtype=dtype, device=weight.weight.device)
    expand_kernel[(triton.cdiv(out_features * num_blocks, _BLOCKS),)](
        weight.weight, out, out_features, in_features, num_blocks, weight.is_float8, _BLOCKS, HALF
    )
    return out


def linear_w4a16(x: Tensor, weight: PackedInt4, scales: None, zero_points: None, bias: Tensor | None = None) -> Tensor:
    """Return `x @ ((weight - zero_points) * scales).T + bias`; see `ops.linear.linear_w4a16`.

    The bits of `linear` with the weight in the dtype of `x`: the same operands, added in the same order.
    """
    return _product(x, weight.weight, weight.groups, None, bias, part=weight.quarter, bits=4)


def _product(
    x: Tensor,
    words: Tensor,
    groups: Tensor | None,
    scales: Tensor | None,
    bias: Tensor | None,
    part: int,
    bits: int,
    is_float8: bool = False,
) -> Tensor:
    """Return the product with a packed weight, of which a word has `16 // bits` channels; see `packed_kernel`."""
    rows, out_features, parts = as_matrix(x), words.shape[0], 16 // bits
    num_rows, in_features = rows.shape
    out = torch.empty(num_rows, out_features, dtype=x.dtype, device=x.device)
    if out.numel():
        tile = tile_for(rows, words, is_streamed=False, channels=parts * part, bits=bits)
        packed_kernel[(triton.cdiv(num_rows, tile.rows) * triton.cdiv(out_features, tile.features),)](
            rows, words, groups, out, scales, bias,
            num_rows, out_features, in_features, rows.stride(0), words.stride(0),
            tile.rows, tile.features, part, parts, 1 if groups is None else in_features // groups.shape[0],
            in_features % (parts * part) == 0, is_float8, **options(tile),
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
def expand_kernel(
    weight, out, out_features, in_features, num_blocks,
    IS_FLOAT8: tl.constexpr, BLOCKS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Write some blocks of a `PackedBytes` as floats.

    Args:
        weight, out: Pointers to [out_features, num_blocks * HALF] and [out_features, in_features].
    """
    place = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)[:, None]
    feature, block, word = place // num_blocks, place % num_blocks, tl.arange(0, HALF)[None, :]
    words = tl.load(weight + place * HALF + word, mask=feature < out_features, other=0)
    for half in tl.static_range(2):
        values, words = unpack_byte(words, out.dtype.element_ty, IS_FLOAT8)
        channel = (2 * block + half) * HALF + word
        inside = (feature < out_features) & (channel < in_features)
        tl.store(out + feature * in_features + channel, values, mask=inside)


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
def packed_kernel(
    x, weight, groups, out, scales, bias, num_rows, out_features, in_features, x_stride, weight_stride,
    ROWS: tl.constexpr, FEATURES: tl.constexpr, PART: tl.constexpr, PARTS: tl.constexpr, GROUP: tl.constexpr,
    IS_WHOLE: tl.constexpr, IS_FLOAT8: tl.constexpr,
):  # fmt: skip
    """Compute one tile of a product with a packed weight, which is the first operand and stays in registers.

    Args:
        x, out: Pointers to [num_rows, in_features] and [num_rows, out_features].
        weight, groups: Pointers to the parts of a `PackedInt4`; or the first to that of a `PackedBytes`, and None.
        scales, bias: See `linear.finish`.
        PART: Channels of a part of a block, one word's lowest bits each.
        PARTS: Of a block, four quarters or two halves.
        GROUP: Channels that share a scale.
        IS_WHOLE: Whether blocks divide `in_features`; a last one that is not whole has activations of zero.
        IS_FLOAT8: Which eight bits.
    """
    dtype: tl.constexpr = x.dtype.element_ty
    first_row, first_feature = tile_at(tl.program_id(0), num_rows, out_features, ROWS, FEATURES)
    row, feature = first_row + tl.arange(0, ROWS), first_feature + tl.arange(0, FEATURES)
    channel, there = tl.arange(0, PART), tl.minimum(feature, out_features - 1)
    x_at = x + tl.minimum(row, num_rows - 1).to(tl.int64)[None, :] * x_stride + channel[:, None]
    weight_at = weight + there.to(tl.int64)[:, None] * weight_stride + channel[None, :]
    sums = tl.zeros((FEATURES, ROWS), dtype=tl.float32)
    for start in range(0, in_features, PARTS * PART):
        words = tl.load(weight_at)
        for place in tl.static_range(PARTS):
            first = start + place * PART
            v = tl.load(x_at) if IS_WHOLE else tl.load(x_at, mask=channel[:, None] < in_features - first, other=0.0)
            if groups is None:
                w, words = unpack_byte(words, dtype, IS_FLOAT8)
            else:
                if place == 0 or GROUP % (PARTS * PART) != 0:
                    group = _group(groups, there, first, out_features, in_features, PART, GROUP)
                w, words = _dequantize(words, group, dtype)
            sums = dot(w, v, sums)
            x_at += PART
        weight_at += PART
    result = finish(tl.trans(sums), row, feature, scales, None, bias, num_rows, out_features)
    out_at = out + row.to(tl.int64)[:, None] * out_features + feature[None, :]
    inside = (row < num_rows)[:, None] & (feature < out_features)[None, :]
    tl.store(out_at, result.to(dtype), mask=inside)
