"""What row-wise kernels share: how rows lie and are cut into tiles, and how their values become eight bits.

Tiles, warps and the width of loads follow from the width of a row alone, and so does the order in which it is summed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.ops.quantize import SMALLEST_SCALE
from quire.ops.triton.launch import INTERPRETED

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
    if _IS_INTERPRETED and dtype == tl.float8e4nv:  # three bits after the first, none below 2**-9
        exponent = tl.maximum(x.to(tl.int32, bitcast=True) & 0x7F800000, (127 - 6) << 23)
        no_bits_below = (exponent + (20 << 23)).to(tl.float32, bitcast=True) * 1.5
        x = (x + no_bits_below) - no_bits_below
    return x.to(dtype)


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
def quantized(x, scale, LARGEST: tl.constexpr, dtype: tl.constexpr):
    """Return `x / scale` as int8 (rounded half to even) or float8_e4m3fn, saturated."""
    quotient = tl.div_rn(x, tl.broadcast_to(scale, x.shape))
    if dtype == tl.int8:
        quotient = (quotient + _NO_FRACTION) - _NO_FRACTION
    quotient = tl.where(quotient > LARGEST, LARGEST, tl.where(quotient < -LARGEST, -LARGEST, quotient))
    return cast(quotient, dtype)
