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

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quire.ops.cpu import linear
from quire.ops.quantize import dequantize_int4
from quire.ops.spec import TensorLike, dtype_of

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


def linear_w8a8(
    x: Tensor, x_scales: Tensor, weight: PackedInt8, scales: None, bias: Tensor | None = None, dtype: str = "bfloat16"
) -> Tensor:
    """Return the product; see `ops.linear.linear_w8a8`. The same bits: exact sums, scaled in the same order."""
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    count = len(rows)
    if count < LEAST_ROWS:
        rows = torch.cat((rows, rows.new_zeros(LEAST_ROWS - count, rows.shape[1])))
    out: Tensor = torch.ops.onednn.qlinear_pointwise(
        rows, 1.0, 0, weight.weight, weight.scales, weight.zero_points, None, 1.0, 0, torch.float32, "none", [], ""
    )[:count]
    out.mul_(x_scales.reshape(-1, 1))
    if bias is not None:
        out.add_(bias.float())
    return out.to(dtype_of(dtype)).view(*x.shape[:-1], out.shape[-1])


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
    return linear.run(x, weight.weight) * weight.scales


def linear_w4a16(x: Tensor, weight: Expanded, scales: None, zero_points: None, bias: Tensor | None = None) -> Tensor:
    """Return the product; see `ops.linear.linear_w4a16`."""
    return linear.run(x, weight.weight, bias)


def expanded_bytes(dtype: torch.dtype) -> Callable[..., int]:
    """Return the bytes that an 8-bit weight takes once it is expanded."""

    def count(weight: TensorLike, scales: TensorLike) -> int:
        return _size(weight) * dtype.itemsize + _size(scales) * 4

    return count


def expanded_int4_bytes(weight: TensorLike, scales: TensorLike, zero_points: TensorLike) -> int:
    """Return the bytes that a 4-bit weight takes once it is expanded."""
    return 2 * _size(weight) * scales.dtype.itemsize


def _size(tensor: TensorLike) -> int:
    rows, *columns = (int(size) for size in tensor.shape)
    return rows * (columns[0] if columns else 1)
