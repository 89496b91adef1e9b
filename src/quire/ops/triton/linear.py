"""Matrix products with a weight: two kernels that add in one order.

Whatever the number of rows, an element of the result is one sum over the channels in ascending order, in float32 (int32
for int8): tensor cores add 16 of 16 bits, or 32 of eight, at a time, and no tile or kernel splits the channels. So a
row's bits depend on the row alone. That holds for every shape of tile, with either operand first, and for either
kernel: measured on an H100, where all shapes gave the same bits in bfloat16 and float16, and all of 64 features or rows
and more in float8 (narrower ones use another instruction, which adds in another order). Channels beyond the last are
zeros, which change no sum.

Float8 is added in what precision Hopper's tensor cores have, about 14 bits: 1.3e-3 of the result with 4,096 channels,
2.9e-3 with 14,336. Rounding to bfloat16 costs 2e-3, rounding the operands to float8 ten times that; float32 sums of
every 128 channels would take twice the registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from quire.ops.triton.launch import capability, dot, let_next_start, num_programs, overlap, prefetch, wait_for_last
from quire.ops.triton.tiles import FEW_ROWS, Tile, tile_at, tile_for


@triton.jit
def widen(values, dtype: tl.constexpr):
    """Return operands as `dtype`, exactly: those that have it, or uint8, which are the bits of float8_e4m3fn.

    As float16, those bits are the same number by 2**-8: exponents of 4 bits are biased by 7, those of 5 bits by 15. The
    two that are no number become 480; no weight has them, and a row that does has such a scale too.
    """
    if values.dtype == dtype:
        wide = values
    else:
        bits = values.to(tl.int16)
        half = ((bits & 0x80) << 8) | ((bits & 0x7F) << 7)
        wide = (half.to(tl.float16, bitcast=True).to(tl.float32) * 256.0).to(dtype)
    return wide


@triton.jit
def finish(sums, row, feature, scales, x_scales, bias, num_rows, out_features):
    """Return `sums * scales * x_scales + bias` in float32, from left to right as the references; None leaves out.

    Args:
        sums: [rows, features], float32 | int32.
        row, feature: Indices of its rows and columns.
        scales, x_scales, bias: Pointers to one value a feature, row, feature.
    """
    out = sums.to(tl.float32)
    if scales is not None:
        out *= tl.load(scales + feature, mask=feature < out_features, other=0.0)[None, :]
    if x_scales is not None:
        out *= tl.load(x_scales + row, mask=row < num_rows, other=0.0)[:, None]
    if bias is not None:
        out += tl.load(bias + feature, mask=feature < out_features, other=0.0).to(tl.float32)[None, :]
    return out


@triton.jit
def fetch(weight, feature, out_features, weight_stride, AHEAD: tl.constexpr):
    """Bring the first `AHEAD` channels of features to the L2 cache."""
    if AHEAD > 0:
        LINE: tl.constexpr = 1024 // weight.dtype.element_ty.primitive_bitwidth
        line = tl.arange(0, AHEAD // LINE) * LINE
        prefetch(weight + tl.minimum(feature, out_features - 1).to(tl.int64)[:, None] * weight_stride + line[None, :])


@triton.jit
def store_tile(out, result, row, feature, num_rows, out_features):
    """Store results [rows, features] at rows and features of `out` [num_rows, out_features], as far as it has them."""
    out_at = out + row.to(tl.int64)[:, None] * out_features + feature[None, :]
    inside = (row < num_rows)[:, None] & (feature < out_features)[None, :]
    tl.store(out_at, result.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_rows"])
def gathered_kernel(
    x, weight, out, scales, x_scales, bias,
    num_rows, out_features, in_features, x_stride, weight_stride,
    ROWS: tl.constexpr, FEATURES: tl.constexpr, CHANNELS: tl.constexpr, IS_WHOLE: tl.constexpr, OPERAND: tl.constexpr,
    AHEAD: tl.constexpr, IS_OVERLAPPED: tl.constexpr,
):  # fmt: skip
    """Compute one tile of any product; the weight is the first operand, so that 16 rows and fewer fill the second.

    Args:
        x, weight, out: Pointers to [num_rows, in_features], [out_features, in_features], [num_rows, out_features].
        scales, x_scales, bias: See `finish`.
        IS_WHOLE: Whether CHANNELS divide `in_features`.
        OPERAND: dtype that operands are widened to.
        AHEAD: Channels of the weight that are fetched while the kernel before still works.
    """
    let_next_start(IS_OVERLAPPED)
    first_row, first_feature = tile_at(tl.program_id(0), num_rows, out_features, ROWS, FEATURES)
    row, feature = first_row + tl.arange(0, ROWS), first_feature + tl.arange(0, FEATURES)
    channel = tl.arange(0, CHANNELS)
    # Beyond the last row or feature the last is read once more, and not stored: loads without a mask.
    x_at = x + tl.minimum(row, num_rows - 1).to(tl.int64)[None, :] * x_stride + channel[:, None]
    weight_at = weight + tl.minimum(feature, out_features - 1).to(tl.int64)[:, None] * weight_stride + channel[None, :]
    sums = tl.zeros((FEATURES, ROWS), dtype=tl.int32 if x.dtype.element_ty == tl.int8 else tl.float32)
    fetch(weight, feature, out_features, weight_stride, AHEAD)
    wait_for_last(IS_OVERLAPPED)
    for start in range(0, in_features, CHANNELS):
        if IS_WHOLE:
            w, v = tl.load(weight_at), tl.load(x_at)
        else:
            w = tl.load(weight_at, mask=channel[None, :] < in_features - start, other=0.0)
            v = tl.load(x_at, mask=channel[:, None] < in_features - start, other=0.0)
        sums = dot(widen(w, OPERAND), widen(v, OPERAND), sums)
        weight_at += CHANNELS
        x_at += CHANNELS
    result = finish(tl.trans(sums), row, feature, scales, x_scales, bias, num_rows, out_features)
    store_tile(out, result, row, feature, num_rows, out_features)


@triton.jit(do_not_specialize=["num_rows"])
def narrow_kernel(
    x, weight, lines, out, scales, x_scales, bias, num_rows, out_features, in_features, weight_stride,
    ROWS: tl.constexpr, FEATURES: tl.constexpr, CHANNELS: tl.constexpr, AHEAD: tl.constexpr,
    IS_OVERLAPPED: tl.constexpr,
):  # fmt: skip
    """Compute the results of a few features for all rows, which are few, reading by TMA: a thread asks for what took
    all of them several instructions each.

    The next kernel may start when a program has read its weight, not before: a token of an 8B model takes 4.22 instead
    of 4.50 ms (H200). Likely since programs of the next product then take whatever multiprocessors the last tiles of
    this one leave free, and 64 of them that lie side by side read more slowly than 64 that do not.

    Args:
        x, weight: Descriptors of [num_rows, in_features] and [out_features, in_features].
        lines: Pointer to the weight.
        out: Pointer to [num_rows, out_features].
        scales, x_scales, bias, AHEAD: As in `gathered_kernel`.
    """
    first_feature = tl.program_id(0) * FEATURES
    row, feature = tl.arange(0, ROWS), first_feature + tl.arange(0, FEATURES)
    sums = tl.zeros((FEATURES, ROWS), dtype=tl.int32 if x.dtype == tl.int8 else tl.float32)
    fetch(lines, feature, out_features, weight_stride, AHEAD)
    wait_for_last(IS_OVERLAPPED)
    for start in range(0, in_features, CHANNELS):
        sums = dot(weight.load([first_feature, start]), x.load([0, start]).T, sums)
    let_next_start(IS_OVERLAPPED)
    result = finish(tl.trans(sums), row, feature, scales, x_scales, bias, num_rows, out_features)
    store_tile(out, result, row, feature, num_rows, out_features)


@triton.jit(do_not_specialize=["num_rows"])
def streamed_kernel(
    x, weight, out, scales, x_scales, bias, num_rows, out_features, in_features,
    ROWS: tl.constexpr, FEATURES: tl.constexpr, CHANNELS: tl.constexpr, IS_OVERLAPPED: tl.constexpr,
):  # fmt: skip
    """Compute tiles until there are none left, reading and writing by TMA, which leaves out what lies beyond the ends.

    Args:
        x, weight: Descriptors of [num_rows, in_features] and [out_features, in_features].
        out: Of [num_rows, out_features], in blocks that a tile is a few of.
        scales, x_scales, bias: See `finish`.
    """
    let_next_start(IS_OVERLAPPED)
    wait_for_last(IS_OVERLAPPED)
    num_tiles = tl.cdiv(num_rows, ROWS) * tl.cdiv(out_features, FEATURES)
    for place in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0), flatten=True):
        first_row, first_feature = tile_at(place, num_rows, out_features, ROWS, FEATURES)
        sums = tl.zeros((ROWS, FEATURES), dtype=tl.int32 if x.dtype == tl.int8 else tl.float32)
        for start in range(0, in_features, CHANNELS):
            sums = dot(x.load([first_row, start]), weight.load([first_feature, start]).T, sums)
        _store_blocks(out, sums, first_row, first_feature, scales, x_scales, bias, num_rows, out_features)


@triton.jit
def _store_blocks(out, sums, first_row, first_feature, scales, x_scales, bias, num_rows, out_features):
    """Finish and store a tile in blocks as wide as the descriptor's: a whole tile takes too much shared memory."""
    ROWS: tl.constexpr = sums.shape[0]
    if sums.shape[1] == out.block_shape[1]:
        row, feature = first_row + tl.arange(0, ROWS), first_feature + tl.arange(0, sums.shape[1])
        result = finish(sums, row, feature, scales, x_scales, bias, num_rows, out_features)
        out.store([first_row, first_feature], result.to(out.dtype))
    else:
        HALF: tl.constexpr = sums.shape[1] // 2
        left, right = tl.split(tl.permute(tl.reshape(sums, (ROWS, 2, HALF)), (0, 2, 1)))
        _store_blocks(out, left, first_row, first_feature, scales, x_scales, bias, num_rows, out_features)
        _store_blocks(out, right, first_row, first_feature + HALF, scales, x_scales, bias, num_rows, out_features)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `x @ weight.T + bias`, sums and bias in float32, rounded once; see `ops.linear.linear`."""
    return product(x, weight, x.dtype, bias=bias)


def product(
    x: Tensor,
    weight: Tensor,
    dtype: torch.dtype,
    scales: Tensor | None = None,
    x_scales: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Return `(x @ weight.T) * scales * x_scales + bias`; None leaves out.

    Args:
        x: [*rows, in_features], float32 | bfloat16 | float16 | int8 | float8_e4m3fn; rows may lie apart.
        weight: [out_features, in_features], dtype of `x`.
        dtype: Of the result, a float.
        scales: [out_features], float32.
        x_scales: [*rows, 1], float32.
        bias: [out_features], any float.

    Returns:
        [*rows, out_features], `dtype`.
    """
    rows, weight = as_matrix(x), as_matrix(weight)
    out = torch.empty(rows.shape[0], weight.shape[0], dtype=dtype, device=x.device)
    if x_scales is not None:
        x_scales = x_scales.reshape(-1).contiguous()
    if out.numel():
        is_few, launch = rows.shape[0] <= FEW_ROWS, _gather
        if is_for_tma(rows, weight, out):
            launch = _narrow if is_few else _stream
        launch(rows, weight, out, (scales, x_scales, bias))
    return out.view(*x.shape[:-1], weight.shape[0])


def as_matrix(x: Tensor) -> Tensor:
    """Return [*rows, channels] as [num_rows, channels] whose rows may lie apart; a copy only where it must be."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def is_for_tma(*matrices: Tensor) -> bool:
    """Return whether TMA takes a product (16-byte aligned rows), and it is on a chip with the shared memory for it."""
    x, weight, _ = matrices
    is_able = capability(x)[0] in (9, 10) and x.dtype == weight.dtype and x.dtype != torch.float32
    return is_able and all(map(_is_aligned, matrices))


def _is_aligned(x: Tensor) -> bool:
    return x.data_ptr() % 16 == 0 and x.stride(0) * x.element_size() % 16 == 0


_Epilogue = tuple[Tensor | None, Tensor | None, Tensor | None]


# Features that a program of `streamed_kernel` stores at once: 16 KB of 128 rows, which leaves room for a stage more.
_STORED = 64


def _stream(x: Tensor, weight: Tensor, out: Tensor, epilogue: _Epilogue) -> None:
    tile = tile_for(x, weight, is_streamed=True)
    num_tiles = triton.cdiv(x.shape[0], tile.rows) * triton.cdiv(weight.shape[0], tile.features)
    streamed_kernel[(min(num_programs(x), num_tiles),)](
        TensorDescriptor.from_tensor(x, [tile.rows, tile.channels]),
        TensorDescriptor.from_tensor(weight, [tile.features, tile.channels]),
        TensorDescriptor.from_tensor(out, [tile.rows, _STORED]),
        *epilogue, x.shape[0], *weight.shape, tile.rows, tile.features, tile.channels, **overlap(x),
        **options(tile, is_fused=epilogue[0] is None),
    )  # fmt: skip


def _narrow(x: Tensor, weight: Tensor, out: Tensor, epilogue: _Epilogue) -> None:
    tile = tile_for(x, weight, is_streamed=True)
    narrow_kernel[(triton.cdiv(weight.shape[0], tile.features),)](
        TensorDescriptor.from_tensor(x, [tile.rows, tile.channels]),
        TensorDescriptor.from_tensor(weight, [tile.features, tile.channels]),
        weight, out, *epilogue, x.shape[0], *weight.shape, weight.stride(0), tile.rows, tile.features, tile.channels,
        ahead(x, weight, tile), **overlap(x), **options(tile, is_fused=epilogue[0] is None),
    )  # fmt: skip


def _gather(x: Tensor, weight: Tensor, out: Tensor, epilogue: _Epilogue) -> None:
    tile, operand = tile_for(x, weight, is_streamed=False), getattr(tl, _TRITON_NAMES[x.dtype])
    if capability(x) < (8, 9) and torch.float8_e4m3fn in (x.dtype, weight.dtype):
        x, weight, operand = *map(_float8_bits, (x, weight)), tl.float16 if x.dtype.itemsize == 1 else operand
    grid = (triton.cdiv(x.shape[0], tile.rows) * triton.cdiv(weight.shape[0], tile.features),)
    gathered_kernel[grid](
        x, weight, out, *epilogue, x.shape[0], *weight.shape, x.stride(0), weight.stride(0),
        tile.rows, tile.features, tile.channels, weight.shape[1] % tile.channels == 0, operand,
        ahead(x, weight, tile), **overlap(x), **options(tile, is_fused=epilogue[0] is None),
    )  # fmt: skip


def ahead(x: Tensor, weight: Tensor, tile: Tile) -> int:
    """Return how many channels of a tile's weight to fetch ahead: a quarter of those on their way once the kernel runs.

    None makes a decode step of an 8B model 2 % longer, all 1 %: they take turns with what still runs.
    """
    if x.shape[0] > FEW_ROWS or not overlap(x)["IS_OVERLAPPED"]:
        return 0
    channels = 1 << min(tile.channels * tile.num_stages // 4, weight.shape[1]).bit_length() - 1
    return channels if channels * weight.element_size() >= 128 else 0  # less than a line


_TRITON_NAMES = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.int8: "int8",
    torch.float8_e4m3fn: "float8e4nv",
}


def _float8_bits(x: Tensor) -> Tensor:
    return x.view(torch.uint8) if x.dtype == torch.float8_e4m3fn else x


def options(tile: Tile, is_fused: bool = False) -> dict[str, int | bool]:
    """Return the options of a launch.

    Args:
        tile: Of the kernel.
        is_fused: Whether the compiler may fuse products into sums. Not where results are scaled: it need not do the
            same for all tiles.
    """
    return {"num_warps": tile.num_warps, "num_stages": tile.num_stages, "enable_fp_fusion": is_fused}
