"""Quantized linear layers on a CPU.

Products of int8 are exact sums of integers, so no order of summation and no row count can change a bit: oneDNN's int8
kernel computes them, with VNNI or AMX where there is some.

For all other schemes torch has no kernel that is fast at more than a few rows (its int8 and int4 weight-only products
took 12 to 15 times as long as bf16 at 64 rows of 1024 x 4096, and float8 has none at all). There a weight is expanded
when it is packed and runs as a `linear` of `cpu.linear` does: the engine directory is small, the memory is not.
Integers of eight bits and float8_e4m3fn are exact in bfloat16, so only values of four bits round, and every result
once more than in the reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quire.ops.cpu import linear
from quire.ops.linear import EXACT_CHANNELS
from quire.ops.quantize import dequantize_int4
from quire.ops.spec import TensorLike, TensorSpec, dtype_of, num_bytes, sizes_of

# With 1 or 2 rows oneDNN has no kernel for some shapes and takes 150 times as long (256 x 768: 10.9 ms; Intel, AMX).
LEAST_ROWS = 4


@dataclass(frozen=True, slots=True)
class PackedInt8:
    """An int8 weight in oneDNN's own layout.

    Attributes:
        weight: Opaque blocks.
        scales: [out_features], float32.
        zero_points: [out_features], int32: all zero.
    """

    weight: Tensor
    scales: Tensor
    zero_points: Tensor


def pack_int8(weight: Tensor, scales: Tensor) -> PackedInt8:
    """Reorder an int8 weight [out_features, in_features] for oneDNN."""
    packed = torch.ops.onednn.qlinear_prepack(weight.contiguous(), None)
    return PackedInt8(packed, scales, torch.zeros(len(scales), dtype=torch.int32))


def is_int8(x: TensorLike, weight: TensorLike, **others: object) -> bool:
    """Return whether oneDNN is there and the layer is one of int8."""
    return weight.dtype == torch.int8 and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def is_exact_int8(x: TensorLike, weight: TensorLike, **others: object) -> bool:
    """Return whether, besides, oneDNN's products of int8 are exact here: without VNNI it adds pairs in 16 bits, which
    do not hold them."""
    return is_int8(x, weight) and torch.cpu._is_vnni_supported()


def linear_w8a8(
    x: Tensor, x_scales: Tensor, weight: PackedInt8, scales: None, bias: Tensor | None = None, dtype: str = "bfloat16"
) -> Tensor:
    """Return the product; see `ops.linear.linear_w8a8`. The same bits: exact sums, scaled in the same order."""
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    out = _int8_product(rows, weight)
    out.mul_(x_scales.reshape(-1, 1))
    if bias is not None:
        out.add_(bias.float())
    return out.to(dtype_of(dtype)).view(*x.shape[:-1], out.shape[-1])


def _int8_product(rows: Tensor, weight: PackedInt8) -> Tensor:
    """Return the product in float32, at the row counts of `linear` alone: each new one costs oneDNN a kernel."""
    most = linear.ROW_COUNTS[-1]
    if len(rows) <= most:
        return _at_once(rows, weight)
    out = torch.empty(len(rows), len(weight.scales))
    for start in range(0, len(rows), most):
        out[start : start + most] = _at_once(rows[start : start + most], weight)
    return out


def _at_once(rows: Tensor, weight: PackedInt8) -> Tensor:
    padded = linear.pad(rows, linear.next_count(max(len(rows), LEAST_ROWS)))
    out: Tensor = torch.ops.onednn.qlinear_pointwise(
        padded, 1.0, 0, weight.weight, weight.scales, weight.zero_points, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return out[: len(rows)]


@dataclass(frozen=True, slots=True)
class Expanded:
    """A quantized weight as one of float.

    Attributes:
        weight: Packed, without its scales where `scales` has them.
        scales: [out_features], float32, applied to the product; None where the weight has been multiplied by them.
    """

    weight: linear.PackedLinear
    scales: Tensor | None


def expand_8bit(dtype: torch.dtype) -> Callable[[Tensor, Tensor], Expanded]:
    """Return what packs a weight of int8 or float8 [out_features, in_features] with its scales as one of `dtype`."""

    def pack(weight: Tensor, scales: Tensor) -> Expanded:
        return Expanded(linear.pack(weight.to(dtype)), scales)

    return pack


def expand_int4(weight: Tensor, scales: Tensor, zero_points: Tensor) -> Expanded:
    """Pack a weight of four bits as one of its scales' dtype."""
    return Expanded(linear.pack(dequantize_int4(weight, scales, zero_points).to(scales.dtype)), None)


def is_expanded_to(dtype: torch.dtype) -> Callable[..., bool]:
    """Return a check that a layer computes in a dtype, and does not round its input to int8.

    Layers of float16 compute in float32: products of 8-bit values are beyond its range before they are scaled.
    """

    def check(x: TensorLike, weight: TensorLike, **others: object) -> bool:
        kept = x.dtype if others.get("dtype") is None else dtype_of(str(others["dtype"]))
        return x.dtype != torch.int8 and dtype == (torch.bfloat16 if kept == torch.bfloat16 else torch.float32)

    return check


def linear_w8a16(x: Tensor, weight: Expanded, scales: None, bias: Tensor | None = None) -> Tensor:
    """Return the product; see `ops.linear.linear_w8a16`."""
    out = _scaled(x.to(weight.weight.dtype), weight)
    return (out if bias is None else out.add_(bias.float())).to(x.dtype)


def linear_fp8(
    x: Tensor, x_scales: Tensor, weight: Expanded, scales: None, bias: Tensor | None = None, dtype: str = "bfloat16"
) -> Tensor:
    """Return the product of rows and weight in float8; see `ops.linear.linear_w8a8`."""
    out = _scaled(x.to(weight.weight.dtype), weight).mul_(x_scales)
    return (out if bias is None else out.add_(bias.float())).to(dtype_of(dtype))


def _scaled(x: Tensor, weight: Expanded) -> Tensor:
    """Return the product in float32, multiplied by the weight's scales."""
    assert weight.scales is not None
    return linear.run(x, weight.weight).float().mul_(weight.scales)


def linear_w4a16(x: Tensor, weight: Expanded, scales: None, zero_points: None, bias: Tensor | None = None) -> Tensor:
    """Return the product; see `ops.linear.linear_w4a16`."""
    return linear.run(x, weight.weight, bias)


# --------------------------------------------------------------------------------------------------- what they hold


def int8_bytes(weight: TensorLike, scales: TensorLike) -> int:
    """Return the bytes that `pack_int8` makes: oneDNN's blocks with a sum for each of their rows, and the zero points.

    The scales are kept as they are.
    """
    out_features, _ = sizes_of(weight)
    return linear.blocks_bytes(weight) + 4 * (-(-out_features // 64) * 64) + 4 * out_features + num_bytes(scales)


def expanded_bytes(dtype: torch.dtype) -> Callable[..., int]:
    """Return what counts the bytes of an 8-bit weight once it is expanded, and of its scales."""
    return lambda weight, scales: _linear_bytes(TensorSpec(sizes_of(weight), dtype)) + num_bytes(scales)


def expanded_int4_bytes(weight: TensorLike, scales: TensorLike, zero_points: TensorLike) -> int:
    """Return the bytes of a 4-bit weight once it is expanded."""
    return _linear_bytes(_int4_as_float(weight, scales))


def _linear_bytes(weight: TensorSpec) -> int:
    packed = linear.packed_bytes(weight)
    return num_bytes(weight) if packed is None else packed


def _int4_as_float(weight: TensorLike, scales: TensorLike) -> TensorSpec:
    out_features, half = sizes_of(weight)
    return TensorSpec((out_features, 2 * half), scales.dtype)


def w8a8_bytes(x: TensorLike, weight: TensorLike, dtype: str = "bfloat16", **rest: object) -> int:
    """Return the most bytes that `linear_w8a8` holds.

    That is the product in float32, and beside it rows that are padded, or a piece of it, or the result.
    """
    wide, (out_features, in_features) = w8a8_result_bytes(x, weight, "float32"), sizes_of(weight)
    rounded = 0 if dtype == "float32" else num_bytes(_product(x, weight), dtype_of(dtype))
    piece = 4 * linear.ROW_COUNTS[-1] * out_features if linear.is_in_pieces(x) else 0
    padded = wide // (4 * out_features) * in_features if wide > num_bytes(_product(x, weight)) else 0
    return wide + max(piece, padded, rounded)


def w8a8_result_bytes(x: TensorLike, weight: TensorLike, dtype: str = "bfloat16", **rest: object) -> int:
    """Return the bytes behind the result of `linear_w8a8`: of float32, padding included."""
    if dtype != "float32":
        return num_bytes(_product(x, weight), dtype_of(dtype))
    return linear.result_bytes(TensorSpec(sizes_of(x), torch.float32), weight)


def w8a16_bytes(dtype: torch.dtype) -> Callable[..., int]:
    """Return what counts the most bytes of `linear_w8a16` and `linear_fp8` with weights of `dtype`.

    That is the rows in it if they are not; and what `linear` holds, or its result and that in float32, or the latter
    and the rounded one.
    """

    def count(x: TensorLike, weight: TensorLike, **rest: object) -> int:
        rows, expanded = TensorSpec(sizes_of(x), dtype), TensorSpec(sizes_of(weight), dtype)
        product, kept = num_bytes(_product(x, weight)), _kept(x, **rest)
        converted = 0 if x.dtype == dtype else num_bytes(rows)
        rounded = 0 if kept == torch.float32 else product * kept.itemsize // 4
        result = linear.result_bytes(rows, expanded)
        widened = result if dtype == torch.float32 else result + product
        last = (result if dtype == torch.float32 else product) + rounded
        return converted + max(linear.linear_bytes(rows, expanded), widened, last)

    return count


def w8a16_result_bytes(dtype: torch.dtype) -> Callable[..., int]:
    """Return what counts the bytes behind the result of these: that of `linear` itself if all is float32."""

    def count(x: TensorLike, weight: TensorLike, **rest: object) -> int:
        kept = _kept(x, **rest)
        if dtype == kept == torch.float32:
            return linear.result_bytes(TensorSpec(sizes_of(x), dtype), weight)
        return num_bytes(_product(x, weight), kept)

    return count


def _kept(x: TensorLike, **rest: object) -> torch.dtype:
    """Return the dtype of a layer's result."""
    return dtype_of(str(rest["dtype"])) if "dtype" in rest else x.dtype


def w4a16_bytes(x: TensorLike, weight: TensorLike, scales: TensorLike, **rest: object) -> int:
    """Return the most bytes that `linear_w4a16` holds: as `linear`."""
    return linear.linear_bytes(x, _int4_as_float(weight, scales))


def w4a16_result_bytes(x: TensorLike, weight: TensorLike, scales: TensorLike, **rest: object) -> int:
    """Return the bytes behind the result of `linear_w4a16`: as of `linear`."""
    return linear.result_bytes(x, _int4_as_float(weight, scales))


def int_mm_bytes(x: TensorLike, weight: TensorLike, **rest: object) -> int:
    """Return the most bytes that the reference holds for int8: the product in float32, scaled once, and twice.

    Without VNNI it is the sums, those of a piece, and the piece's operands in float32, if that is more.
    """
    product, (out_features, in_features) = num_bytes(_product(x, weight)), sizes_of(weight)
    if torch.cpu._is_vnni_supported():
        return 3 * product
    operands = 4 * (math.prod(sizes_of(x)[:-1]) + out_features) * min(in_features, EXACT_CHANNELS)
    return max(3 * product, 2 * product + operands)


def _product(x: TensorLike, weight: TensorLike) -> TensorSpec:
    return TensorSpec((*sizes_of(x)[:-1], sizes_of(weight)[0]), torch.float32)


def int8_kernels_bytes(x: TensorLike, weight: TensorLike, **rest: object) -> tuple[object, int]:
    """Return which kernels oneDNN makes for `linear_w8a8`, and what they take; see `linear.kernels_bytes`."""
    return linear.kernels_bytes(x, weight, None)


def expanded_kernels_bytes(dtype: torch.dtype) -> Callable[..., tuple[object, int]]:
    """Return what counts the kernels of a weight expanded to a dtype; see `linear.kernels_bytes`."""
    return lambda x, weight, **rest: linear.kernels_bytes(
        TensorSpec(sizes_of(x), dtype), TensorSpec(sizes_of(weight), dtype), None
    )


def w4a16_kernels_bytes(
    x: TensorLike, weight: TensorLike, scales: TensorLike, bias: TensorLike | None = None, **rest: object
) -> tuple[object, int]:
    """Return which kernels oneDNN makes for `linear_w4a16`, and what they take; see `linear.kernels_bytes`."""
    return linear.kernels_bytes(x, _int4_as_float(weight, scales), bias)
