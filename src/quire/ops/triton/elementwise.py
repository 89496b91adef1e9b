"""Nonlinearities, alone or with the product and the quantization that follow them."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.ops.quantize import LARGEST
from quire.ops.spec import dtype_of
from quire.ops.triton.rows import cast, largest_bits, quantized, round_to, rows_of, scale_of, tiles_of

# Values of a program: a load of 16 bytes for each thread of 4 warps in bfloat16; 14 programs for a row of an 8B MLP.
_BLOCK = 1024
_OPTIONS = {"BLOCK": _BLOCK, "num_warps": 4, "enable_fp_fusion": False}

_SQRT_HALF = tl.constexpr(math.sqrt(0.5))
_TWICE_SQRT_2_OVER_PI = tl.constexpr(2 * math.sqrt(2 / math.pi))


@triton.jit
def _silu(x):
    """Return `x / (1 + exp(-x))`."""
    return tl.div_rn(x, 1.0 + tl.exp(-x))


@triton.jit
def _activate(x, KIND: tl.constexpr):
    if KIND == "silu":
        return _silu(x)
    if KIND == "gelu_tanh":  # (1 + tanh(u)) / 2 = 1 / (1 + exp(-2 u))
        return tl.div_rn(x, 1.0 + tl.exp((x + 0.044715 * x * x * x) * -_TWICE_SQRT_2_OVER_PI))
    return x * 0.5 * (1.0 + tl.erf(x * _SQRT_HALF))


@triton.jit(do_not_specialize=["num_values"])
def _activation_kernel(x, out, num_values, KIND: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    wide = tl.load(x + place, place < num_values, other=0.0).to(tl.float32)
    tl.store(out + place, cast(_activate(wide, KIND), out.dtype.element_ty), place < num_values)


@triton.jit
def _load(x, place, columns, kept, IS_GATED: tl.constexpr, WIDTH: tl.constexpr):
    """Return values in float32: those of `x`, or `silu(gate)`, rounded, times `up`, rounded."""
    wide = tl.load(x + place + columns, kept, other=0.0).to(tl.float32)
    if IS_GATED:
        dtype: tl.constexpr = x.dtype.element_ty
        up = tl.load(x + place + WIDTH + columns, kept, other=0.0).to(tl.float32)
        wide = round_to(round_to(_silu(wide), dtype) * up, dtype)
    return wide


@triton.jit
def _silu_mul_kernel(x, out, inner, outer_stride, inner_stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    place = row // inner * outer_stride + row % inner * inner_stride
    product = _load(x, place, columns, columns < WIDTH, True, WIDTH)
    tl.store(out + row * WIDTH + columns, cast(product, out.dtype.element_ty), columns < WIDTH)


@triton.jit(do_not_specialize=["num_rows"])
def _quantize_kernel(
    x, out, scales, num_rows, inner, outer_stride, inner_stride, LARGEST: tl.constexpr, IS_GATED: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    block = tl.arange(0, BLOCK)[None, :]
    place = row // inner * outer_stride + row % inner * inner_stride
    bits = tl.zeros((ROWS, 1), tl.int32)
    for start in range(0, WIDTH, BLOCK):
        columns = start + block
        values = _load(x, place, columns, (row < num_rows) & (columns < WIDTH), IS_GATED, WIDTH)
        bits = tl.maximum(bits, largest_bits(values))
    scale = scale_of(bits, LARGEST)
    for start in range(0, WIDTH, BLOCK):
        columns = start + block
        kept = (row < num_rows) & (columns < WIDTH)
        values = _load(x, place, columns, kept, IS_GATED, WIDTH)
        tl.store(out + row * WIDTH + columns, quantized(values, scale, LARGEST, out.dtype.element_ty), kept)
    tl.store(scales + row, scale, row < num_rows)


def _activation(x: Tensor, kind: str) -> Tensor:
    x = x.contiguous()
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.numel():
        _activation_kernel[(triton.cdiv(x.numel(), _BLOCK),)](x, out, x.numel(), KIND=kind, **_OPTIONS)
    return out


def _quantize(x: Tensor, width: int, dtype: str, *, is_gated: bool) -> tuple[Tensor, Tensor]:
    sizes = x.shape[:-1]
    out = torch.empty((*sizes, width), dtype=dtype_of(dtype), device=x.device)
    scales = torch.empty((*sizes, 1), dtype=torch.float32, device=x.device)
    if out.numel():
        rows, (grid, options) = rows_of(x), tiles_of(x, width)
        _quantize_kernel[grid](
            rows[0], out, scales, scales.numel(), *rows[1:], LARGEST=LARGEST[dtype], IS_GATED=is_gated, **options
        )
    return out, scales


def silu(x: Tensor) -> Tensor:
    """Return `x / (1 + exp(-x))`; see `ops.elementwise.silu`."""
    return _activation(x, "silu")


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """Return `x * Phi(x)` by erf or the tanh approximation; see `ops.elementwise.gelu`."""
    return _activation(x, "gelu_tanh" if approximate == "tanh" else "gelu_erf")


def silu_mul(x: Tensor) -> Tensor:
    """Return `silu(gate) * up`; see `ops.fused.silu_mul`."""
    width = x.shape[-1] // 2
    out = torch.empty((*x.shape[:-1], width), dtype=x.dtype, device=x.device)
    if out.numel():
        rows, grid = rows_of(x), (out.numel() // width, triton.cdiv(width, _BLOCK))
        _silu_mul_kernel[grid](rows[0], out, *rows[1:], WIDTH=width, **_OPTIONS)
    return out


def silu_mul_quant(x: Tensor, dtype: str = "int8") -> tuple[Tensor, Tensor]:
    """Return rows in `dtype` and their scales; see `ops.fused.silu_mul_quant`."""
    return _quantize(x, x.shape[-1] // 2, dtype, is_gated=True)


def quantize_rows(x: Tensor, dtype: str = "int8") -> tuple[Tensor, Tensor]:
    """Return rows in `dtype` and their scales; see `ops.quantize.quantize_rows`."""
    return _quantize(x, x.shape[-1], dtype, is_gated=False)
