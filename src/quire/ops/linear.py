"""Matrix products with a weight; those with a quantized one are defined in float32 or exact integers, rounded once."""

from __future__ import annotations

import torch
from torch import Tensor

from quire.ops.op import op
from quire.ops.quantize import dequantize_int4, num_groups
from quire.ops.spec import FLOATS, INTS, Shapes, TensorLike, TensorSpec, dtype_of, same_dtype

EIGHT_BITS = (torch.int8, torch.float8_e4m3fn)


def _infer_linear(x: TensorLike, weight: TensorLike, bias: TensorLike | None) -> TensorSpec:
    shapes = Shapes()
    shapes.check("x", x, "*rows in_features", FLOATS)
    shapes.check("weight", weight, "out_features in_features", FLOATS)
    if bias is not None:
        shapes.check("bias", bias, "out_features", FLOATS)
    dtype = same_dtype(x=x, weight=weight, bias=bias)
    return TensorSpec((*tuple(x.shape)[:-1], weight.shape[0]), dtype)


@op(_infer_linear)
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `x @ weight.T + bias`.

    Args:
        x: [*rows, in_features], float32 | bfloat16 | float16.
        weight: [out_features, in_features], same dtype.
        bias: [out_features], same dtype, or None.

    Returns:
        [*rows, out_features], same dtype; sums in at least float32.
    """
    return torch.nn.functional.linear(x, weight, bias)


def _infer_embedding(ids: TensorLike, weight: TensorLike) -> TensorSpec:
    Shapes().check("ids", ids, "*rows", INTS)
    Shapes().check("weight", weight, "vocab_size hidden_size", FLOATS)
    return TensorSpec((*tuple(ids.shape), weight.shape[1]), weight.dtype)


@op(_infer_embedding)
def embedding(ids: Tensor, weight: Tensor) -> Tensor:
    """Return the rows of `weight` named by `ids`.

    Args:
        ids: [*rows], int32 | int64, each in [0, vocab_size).
        weight: [vocab_size, hidden_size], float32 | bfloat16 | float16.

    Returns:
        [*rows, hidden_size], dtype of `weight`.
    """
    return torch.nn.functional.embedding(ids, weight)


def _infer_w8a16(x: TensorLike, weight: TensorLike, scales: TensorLike, bias: TensorLike | None) -> TensorSpec:
    shapes = Shapes()
    shapes.check("x", x, "*rows in_features", FLOATS)
    shapes.check("weight", weight, "out_features in_features", EIGHT_BITS)
    shapes.check("scales", scales, "out_features", (torch.float32,))
    if bias is not None:
        shapes.check("bias", bias, "out_features", FLOATS)
    return TensorSpec((*tuple(x.shape)[:-1], weight.shape[0]), same_dtype(x=x, bias=bias))


@op(_infer_w8a16)
def linear_w8a16(x: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `x @ (weight * scales).T + bias`.

    Args:
        x: [*rows, in_features], float32 | bfloat16 | float16.
        weight: [out_features, in_features], int8 | float8_e4m3fn.
        scales: [out_features], float32.
        bias: [out_features], dtype of `x`, or None.

    Returns:
        [*rows, out_features], dtype of `x`.
    """
    out = torch.nn.functional.linear(x.float(), weight.float()) * scales
    return (out if bias is None else out + bias.float()).to(x.dtype)


def _infer_w8a8(
    x: TensorLike, x_scales: TensorLike, weight: TensorLike, scales: TensorLike, bias: TensorLike | None, dtype: str
) -> TensorSpec:
    shapes = Shapes()
    shapes.check("x", x, "*rows in_features", EIGHT_BITS)
    shapes.check("x_scales", x_scales, "*rows 1", (torch.float32,))
    shapes.check("weight", weight, "out_features in_features", EIGHT_BITS)
    shapes.check("scales", scales, "out_features", (torch.float32,))
    same_dtype(x=x, weight=weight)
    if bias is not None:
        shapes.check("bias", bias, "out_features", (dtype_of(dtype),))
    return TensorSpec((*tuple(x.shape)[:-1], weight.shape[0]), dtype_of(dtype))


@op(_infer_w8a8)
def linear_w8a8(
    x: Tensor, x_scales: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None = None, dtype: str = "bfloat16"
) -> Tensor:
    """Return `(x @ weight.T) * scales * x_scales + bias`, the product exact for int8, in float32 for float8.

    Args:
        x: [*rows, in_features], int8 | float8_e4m3fn, from `quantize_rows`.
        x_scales: [*rows, 1], float32.
        weight: [out_features, in_features], same dtype.
        scales: [out_features], float32.
        bias: [out_features], `dtype`, or None.
        dtype: Of the result.

    Returns:
        [*rows, out_features], `dtype`.
    """
    rows = x.reshape(-1, x.shape[-1])
    if x.dtype == torch.int8 and rows.device.type == "cpu":
        product = torch._int_mm(rows, weight.t()).float()
    else:
        product = rows.double().mm(weight.double().t()).float()  # exact for int8 up to 2**39 channels
    out = product * scales * x_scales.reshape(-1, 1)
    if bias is not None:
        out = out + bias.float()
    return out.to(dtype_of(dtype)).view(*x.shape[:-1], weight.shape[0])


def _infer_w4a16(
    x: TensorLike, weight: TensorLike, scales: TensorLike, zero_points: TensorLike, bias: TensorLike | None
) -> TensorSpec:
    shapes = Shapes()
    shapes.check("x", x, "*rows in_features", FLOATS)
    shapes.check("weight", weight, "out_features half_of_in_features", (torch.uint8,))
    shapes.check("scales", scales, "out_features num_groups", FLOATS)
    shapes.check("zero_points", zero_points, "out_features num_groups", (torch.uint8,))
    in_features, groups = x.shape[-1], shapes.size("num_groups")
    Shapes().check("weight", weight, f"{weight.shape[0]} {num_groups(in_features, 2)}")
    num_groups(in_features, shapes.size("half_of_in_features") * 2 // groups)
    if bias is not None:
        shapes.check("bias", bias, "out_features", FLOATS)
    return TensorSpec((*tuple(x.shape)[:-1], weight.shape[0]), same_dtype(x=x, scales=scales, bias=bias))


@op(_infer_w4a16)
def linear_w4a16(x: Tensor, weight: Tensor, scales: Tensor, zero_points: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `x @ ((weight - zero_points) * scales).T + bias`, scales and zero points per group of input channels.

    Args:
        x: [*rows, in_features], float32 | bfloat16 | float16.
        weight: [out_features, in_features / 2], uint8: two values 0..15 a byte, the even channel in the low half.
        scales: [out_features, num_groups], dtype of `x`; a group is in_features / num_groups channels.
        zero_points: [out_features, num_groups], uint8.
        bias: [out_features], dtype of `x`, or None.

    Returns:
        [*rows, out_features], dtype of `x`.
    """
    out = torch.nn.functional.linear(x.float(), dequantize_int4(weight, scales, zero_points))
    return (out if bias is None else out + bias.float()).to(x.dtype)
