"""Normalisations of rows: a row is read once, stays in registers, and may leave them quantized."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.ops.quantize import LARGEST
from quire.ops.spec import dtype_of
from quire.ops.triton.elementwise import cast, divided, largest_bits, quantized, round_to, rows_of, scale_of, tiles_of
from quire.ops.triton.launch import let_next_start, overlap, wait_for_last


@triton.jit
def _load(x, residual, x_place, residual_place, columns, kept):
    """Return `x`, or the rounded sum of `x` and `residual`, in float32."""
    wide = tl.load(x + x_place + columns, kept, other=0.0).to(tl.float32)
    if residual is not None:
        wide += tl.load(residual + residual_place + columns, kept, other=0.0).to(tl.float32)
        wide = round_to(wide, x.dtype.element_ty)
    return wide


@triton.jit
def normed(wide, root, weight, columns, WIDTH: tl.constexpr):
    """Return the quotient, rounded, times the weight, rounded."""
    dtype: tl.constexpr = weight.dtype.element_ty
    factor = tl.load(weight + columns, columns < WIDTH, other=0.0).to(tl.float32)
    return round_to(round_to(divided(wide, root), dtype) * factor, dtype)


# A loop of one turn is no loop to the compiler: what it loads and computes again is then still in registers.
@triton.jit(do_not_specialize=["num_rows"])
def _rms_norm_kernel(
    x, residual, weight, out, scales, total, eps, num_rows,
    x_inner, x_outer_stride, x_inner_stride, residual_inner, residual_outer_stride, residual_inner_stride,
    LARGEST: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, IS_OVERLAPPED: tl.constexpr,
):  # fmt: skip
    let_next_start(IS_OVERLAPPED)
    wait_for_last(IS_OVERLAPPED)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    block = tl.arange(0, BLOCK)[None, :]
    x_place = row // x_inner * x_outer_stride + row % x_inner * x_inner_stride
    residual_place = row // residual_inner * residual_outer_stride + row % residual_inner * residual_inner_stride
    squares = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(0, WIDTH, BLOCK):
        columns = start + block
        wide = _load(x, residual, x_place, residual_place, columns, (row < num_rows) & (columns < WIDTH))
        squares += wide * wide
    mean = tl.sum(squares, 1, keep_dims=True)
    mean = tl.div_rn(mean, tl.full(mean.shape, WIDTH, tl.float32))
    root = tl.sqrt_rn(mean + eps)
    if scales is not None:
        bits = tl.zeros((ROWS, 1), tl.int32)
        for start in range(0, WIDTH, BLOCK):
            columns = start + block
            wide = _load(x, residual, x_place, residual_place, columns, (row < num_rows) & (columns < WIDTH))
            bits = tl.maximum(bits, largest_bits(normed(wide, root, weight, columns, WIDTH)))
        scale = scale_of(bits, LARGEST)
    for start in range(0, WIDTH, BLOCK):
        columns = start + block
        kept = (row < num_rows) & (columns < WIDTH)
        wide = _load(x, residual, x_place, residual_place, columns, kept)
        out_row = normed(wide, root, weight, columns, WIDTH)
        if scales is not None:
            tl.store(out + row * WIDTH + columns, quantized(out_row, scale, LARGEST, out.dtype.element_ty), kept)
        else:
            tl.store(out + row * WIDTH + columns, cast(out_row, out.dtype.element_ty), kept)
        if total is not None:
            tl.store(total + row * WIDTH + columns, cast(wide, total.dtype.element_ty), kept)
    if scales is not None:
        tl.store(scales + row, scale, row < num_rows)


@triton.jit(do_not_specialize=["num_rows"])
def _layer_norm_kernel(
    x, weight, bias, out, eps, num_rows, x_inner, x_outer_stride, x_inner_stride,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    block = tl.arange(0, BLOCK)[None, :]
    x_place = row // x_inner * x_outer_stride + row % x_inner * x_inner_stride
    sums = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(0, WIDTH, BLOCK):
        columns = start + block
        sums += tl.load(x + x_place + columns, (row < num_rows) & (columns < WIDTH), other=0.0).to(tl.float32)
    mean = tl.sum(sums, 1, keep_dims=True)
    count = tl.full(mean.shape, WIDTH, tl.float32)
    mean = tl.div_rn(mean, count)
    squares = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(0, WIDTH, BLOCK):
        columns = start + block
        wide = tl.load(x + x_place + columns, (row < num_rows) & (columns < WIDTH), other=0.0).to(tl.float32)
        apart = tl.where(columns < WIDTH, wide - mean, 0.0)
        squares += apart * apart
    root = tl.sqrt_rn(tl.div_rn(tl.sum(squares, 1, keep_dims=True), count) + eps)
    for start in range(0, WIDTH, BLOCK):
        columns = start + block
        kept = (row < num_rows) & (columns < WIDTH)
        wide = tl.load(x + x_place + columns, kept, other=0.0).to(tl.float32)
        normed = tl.div_rn(wide - mean, tl.broadcast_to(root, wide.shape))
        normed *= tl.load(weight + columns, columns < WIDTH, other=0.0).to(tl.float32)
        if bias is not None:
            normed += tl.load(bias + columns, columns < WIDTH, other=0.0).to(tl.float32)
        tl.store(out + row * WIDTH + columns, cast(normed, out.dtype.element_ty), kept)


def _launch(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, out: Tensor, scales: Tensor | None = None
) -> Tensor | None:
    """Fill `out`, and `scales` if it is to be quantized; returns the sum if there is a residual."""
    total = None if residual is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if out.numel():
        rows, added = rows_of(x), rows_of(x if residual is None else residual)
        grid, options = tiles_of(x, x.shape[-1])
        _rms_norm_kernel[grid](
            rows[0], None if residual is None else added[0], weight.contiguous(), out, scales, total, eps,
            x.numel() // x.shape[-1], *rows[1:], *added[1:],
            LARGEST=0.0 if scales is None else LARGEST[str(out.dtype).removeprefix("torch.")], **options, **overlap(x),
        )  # fmt: skip
    return total


def _eight_bits(x: Tensor, dtype: str) -> tuple[Tensor, Tensor]:
    """Return memory for quantized rows and their scales."""
    quantized_rows = torch.empty(x.shape, dtype=dtype_of(dtype), device=x.device)
    return quantized_rows, torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return `x / sqrt(mean(x**2) + eps) * weight`; see `ops.norm.rms_norm`."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(x, None, weight, eps, out)
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the norm of the sum, and the sum; see `ops.fused.add_rms_norm`."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = _launch(x, residual, weight, eps, out)
    assert total is not None
    return out, total


def rms_norm_quant(x: Tensor, weight: Tensor, eps: float, dtype: str = "int8") -> tuple[Tensor, Tensor]:
    """Return rows in `dtype` and their scales; see `ops.fused.rms_norm_quant`."""
    out, scales = _eight_bits(x, dtype)
    _launch(x, None, weight, eps, out, scales)
    return out, scales


def add_rms_norm_quant(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, dtype: str = "int8"
) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows in `dtype`, their scales, and the sum; see `ops.fused.add_rms_norm_quant`."""
    out, scales = _eight_bits(x, dtype)
    total = _launch(x, residual, weight, eps, out, scales)
    assert total is not None
    return out, scales, total


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """Return `(x - mean(x)) / sqrt(var(x) + eps) * weight + bias`; see `ops.norm.layer_norm`."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if out.numel():
        rows, (grid, options) = rows_of(x), tiles_of(x, x.shape[-1])
        bias = None if bias is None else bias.contiguous()
        _layer_norm_kernel[grid](
            rows[0], weight.contiguous(), bias, out, eps, x.numel() // x.shape[-1], *rows[1:], **options
        )
    return out
