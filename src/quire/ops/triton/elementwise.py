"""Nonlinearities, alone or with the product and the quantization that follow them; and what all row-wise kernels share.

Tiles, warps and the width of loads follow from the width of a row alone, and so does the order in which it is summed.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.ops.quantize import LARGEST, SMALLEST_SCALE
from quire.ops.spec import dtype_of
from quire.ops.triton.launch import INTERPRETED, let_next_start, overlap, wait_for_last

# Values of a program: a load of 16 bytes for each thread of 4 warps in bfloat16; 14 programs for a row of an 8B MLP.
_BLOCK = 1024
_OPTIONS = {"BLOCK": _BLOCK, "num_warps": 4, "enable_fp_fusion": False}

_SQRT_HALF = tl.constexpr(math.sqrt(0.5))
_TWICE_SQRT_2_OVER_PI = tl.constexpr(2 * math.sqrt(2 / math.pi))
# Values of a row in registers at most: 32 a thread of 16 warps. Wider rows are read once more for each pass.
_MOST = 16384
# Values that a warp takes: two loads of 16 bytes a lane in bfloat16.
_PER_WARP = 512

_SMALLEST_SCALE = tl.constexpr(SMALLEST_SCALE)
_NO_FRACTION = tl.constexpr(1.5 * 2.0**23)  # a float32 beside it is whole: adding it rounds half to even

_IS_INTERPRETED = tl.constexpr(INTERPRETED)


def rows_of(x: Tensor) -> tuple[Tensor, int, int, int]:
    """Return a tensor whose rows a kernel reads in place, and how they lie.

    How many bytes a thread loads at once decides which values it adds, so that must not depend on where a tensor
    begins or what it is a view of: rows that lie worse than those of a new tensor would are copied into one.

    Args:
        x: [*rows, width]. Views of two or three dimensions are read in place.

    Returns:
        The tensor, `inner`, and two strides: row `i` begins at `i // inner * outer_stride + i % inner * inner_stride`.
    """
    width = x.shape[-1]
    if not _is_readable(x):
        x = x.clone(memory_format=torch.contiguous_format)
    if x.is_contiguous():
        return x, 1, width, width
    outer_stride = x.stride(0) if x.shape[0] > 1 else width
    return (x, x.shape[1], outer_stride, x.stride(1)) if x.ndim == 3 else (x, 1, outer_stride, width)


def _is_readable(x: Tensor) -> bool:
    """Return whether rows begin where Triton knows that vectors of 16 bytes may be loaded, if a new tensor's would."""
    if x.data_ptr() % 16 or x.is_contiguous():
        return not x.data_ptr() % 16
    strides = [stride for stride, size in zip(x.stride()[:-1], x.shape[:-1], strict=True) if size > 1]
    return x.ndim in (2, 3) and x.stride(-1) == 1 and all(number % 16 == 0 for number in (x.shape[-1], *strides))


def tiles_of(x: Tensor, width: int) -> tuple[tuple[int], dict[str, int | bool]]:
    """Return the grid of a kernel with whole rows in each program, and its constants and options.

    Args:
        x: Tensor of the rows, not empty.
        width: Values of a row.
    """
    block = min(triton.next_power_of_2(width), _MOST)
    rows = max(1, _PER_WARP // block)
    num_warps = min(16, max(1, block // _PER_WARP))
    options = {"WIDTH": width, "BLOCK": block, "ROWS": rows, "num_warps": num_warps, "enable_fp_fusion": False}
    return (triton.cdiv(x.numel() // x.shape[-1], rows),), options


@triton.jit
def cast(x, dtype: tl.constexpr):
    """Return float32 values in a dtype, rounded half to even.

    Triton's interpreter cuts bits off for bfloat16, and loses carries for float8: there they are rounded before.
    """
    if _IS_INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        x = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).to(tl.float32, bitcast=True)
    if _IS_INTERPRETED and dtype == tl.float8e4nv:
        return float8_bits(x).to(dtype, bitcast=True)
    return x.to(dtype)


@triton.jit
def int8_of(x):
    """Return float32 values from -128 to 127 as int8, rounded half to even: the last bits of a sum that is whole."""
    return (x + _NO_FRACTION).to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
def float8_bits(x):
    """Return float32 values as the bits of float8_e4m3fn, uint8, rounded half to even, saturated; NaN as 448.

    By arithmetic, for which any GPU will do; `cast` takes the instruction that there is since compute capability 8.9.
    From 2**-6 on three bits of the mantissa are kept and the exponent's bias becomes 7; below, values are multiples of
    2**-9.
    """
    size = tl.minimum(tl.abs(x), 448.0)
    bits = size.to(tl.uint32, bitcast=True)
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - 960  # (127 - 7) << 3
    small = (size * 512.0 + _NO_FRACTION).to(tl.uint32, bitcast=True) & 0xF
    sign = (x.to(tl.uint32, bitcast=True) >> 24) & 0x80
    return (sign | tl.where(size < 0.015625, small, normal)).to(tl.uint8)


@triton.jit
def round_to(x, dtype: tl.constexpr):
    """Return float32 values rounded to a dtype, as float32."""
    return cast(x, dtype).to(tl.float32)


@triton.jit
def largest_bits(x):
    """Return the bits of the largest magnitude of each row, [rows, 1], int32: as integers NaN is above all others."""
    return tl.max(tl.abs(x).to(tl.int32, bitcast=True), 1, keep_dims=True)


@triton.jit
def scale_of(bits, LARGEST: tl.constexpr):
    """Return the scale, float32, of rows whose largest magnitude has these bits; see `ops.quantize.quantize_rows`."""
    scale = tl.div_rn(bits.to(tl.float32, bitcast=True), tl.full(bits.shape, LARGEST, tl.float32))
    return tl.where(scale < _SMALLEST_SCALE, _SMALLEST_SCALE, scale)


@triton.jit
def divided(x, by):
    """Return `x / by`, correctly rounded, of rows [rows, columns] by one value each, [rows, 1].

    A reciprocal that is correctly rounded, and two corrections: the first leaves an error of one unit in the last place
    at most, the second none (Markstein 1990, https://doi.org/10.1147/rd.341.0111). That is 5 instructions a value; a
    division has more than twice as many, two branches, and a call for zeros. Of `x` below 2**-100 the last bit may
    differ, and a zero has no sign.
    """
    if _IS_INTERPRETED:  # its fma rounds the product
        quotient = tl.div_rn(x, tl.broadcast_to(by, x.shape))
    else:
        inverse = tl.broadcast_to(tl.div_rn(tl.full(by.shape, 1.0, tl.float32), by), x.shape)
        by = tl.where(by == float("inf"), 0.0, by)  # then there is nothing to correct, and 0 * inf would be NaN
        less = tl.broadcast_to(-by, x.shape)
        quotient = x * inverse
        quotient = tl.fma(tl.fma(quotient, less, x), inverse, quotient)
        quotient = tl.fma(tl.fma(quotient, less, x), inverse, quotient)
    return quotient


@triton.jit
def quantized(x, scale, LARGEST: tl.constexpr, dtype: tl.constexpr):
    """Return `x / scale` as int8 (rounded half to even) or float8_e4m3fn, saturated; zeros of the latter keep signs.

    NaN, which only rows have whose scale is not finite, is any int8.
    """
    quotient = divided(x, scale)
    quotient = tl.maximum(quotient, -LARGEST, propagate_nan=tl.PropagateNan.ALL)
    quotient = tl.minimum(quotient, LARGEST, propagate_nan=tl.PropagateNan.ALL)
    if dtype == tl.int8:
        return int8_of(quotient)
    signed = quotient.to(tl.int32, bitcast=True) | (x.to(tl.int32, bitcast=True) & -0x80000000)
    return cast(signed.to(tl.float32, bitcast=True), dtype)


@triton.jit
def _silu(x):
    """Return `x / (1 + exp(-x))`, by a division that may miss two units in the last place: the others take a branch."""
    return x / (1.0 + tl.exp(-x))


@triton.jit
def _activate(x, KIND: tl.constexpr):
    if KIND == "silu":
        return _silu(x)
    if KIND == "gelu_tanh":  # (1 + tanh(u)) / 2 = 1 / (1 + exp(-2 u))
        return tl.div_rn(x, 1.0 + tl.exp((x + 0.044715 * x * x * x) * -_TWICE_SQRT_2_OVER_PI))
    return x * 0.5 * (1.0 + tl.erf(x * _SQRT_HALF))


@triton.jit
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
def _silu_mul_kernel(
    x, out, inner, outer_stride, inner_stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr, IS_OVERLAPPED: tl.constexpr
):  # fmt: skip
    let_next_start(IS_OVERLAPPED)
    wait_for_last(IS_OVERLAPPED)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    place = row // inner * outer_stride + row % inner * inner_stride
    product = _load(x, place, columns, columns < WIDTH, True, WIDTH)
    tl.store(out + row * WIDTH + columns, cast(product, out.dtype.element_ty), columns < WIDTH)


@triton.jit(do_not_specialize=["num_rows"])
def _quantize_kernel(
    x, out, scales, num_rows, inner, outer_stride, inner_stride, LARGEST: tl.constexpr, IS_GATED: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, IS_OVERLAPPED: tl.constexpr,
):  # fmt: skip
    let_next_start(IS_OVERLAPPED)
    wait_for_last(IS_OVERLAPPED)
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
            rows[0],
            out,
            scales,
            scales.numel(),
            *rows[1:],
            LARGEST=LARGEST[dtype],
            IS_GATED=is_gated,
            **options,
            **overlap(x),
        )
    return out, scales


def has_eight_bits(dtype: str = "int8", **rest: object) -> bool:
    """Return whether Triton converts to an eight-bit dtype on this GPU: to float8_e4m3fn only since Ada (8.9)."""
    return dtype == "int8" or not torch.cuda.is_available() or torch.cuda.get_device_capability() >= (8, 9)


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
        _silu_mul_kernel[grid](rows[0], out, *rows[1:], WIDTH=width, **_OPTIONS, **overlap(x))
    return out


def silu_mul_quant(x: Tensor, dtype: str = "int8") -> tuple[Tensor, Tensor]:
    """Return rows in `dtype` and their scales; see `ops.fused.silu_mul_quant`."""
    return _quantize(x, x.shape[-1] // 2, dtype, is_gated=True)


def quantize_rows(x: Tensor, dtype: str = "int8") -> tuple[Tensor, Tensor]:
    """Return rows in `dtype` and their scales; see `ops.quantize.quantize_rows`."""
    return _quantize(x, x.shape[-1], dtype, is_gated=False)
