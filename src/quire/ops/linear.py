"""Matrix products, mostly with a weight; quantized ones are defined in float32 or exact integers, rounded once."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from quire.core.errors import ShapeError
from quire.ops.elementwise import broadcast, silu
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
    if x.is_cpu and not has_instructions(x.dtype):  # torch's own loop takes 5 times as long and more
        wide = torch.nn.functional.linear(x.float(), weight.float(), None if bias is None else bias.float())
        return wide.to(x.dtype)
    return torch.nn.functional.linear(x, weight, bias)


@cache
def has_instructions(dtype: torch.dtype) -> bool:
    """Return whether oneDNN multiplies matrices of a float dtype with this processor's instructions for it."""
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype != torch.float16 or bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())


def _infer_matmul(x: TensorLike, y: TensorLike) -> TensorSpec:
    Shapes().check("x", x, "*batch rows inner", FLOATS)
    Shapes().check("y", y, "*batch inner columns", FLOATS)
    if x.shape[-1] != y.shape[-2]:
        raise ShapeError(f"Invalid shape of y: expected {x.shape[-1]} rows for {list(x.shape)}, got {list(y.shape)}.")
    batch = broadcast(tuple(x.shape)[:-2], tuple(y.shape)[:-2])
    return TensorSpec((*batch, x.shape[-2], y.shape[-1]), same_dtype(x=x, y=y))


@op(_infer_matmul)
def matmul(x: Tensor, y: Tensor) -> Tensor:
    """Return the matrix product of two activations. With a weight use `linear`, which keeps every row's bits.

    Args:
        x: [*batch, rows, inner], float32 | bfloat16 | float16.
        y: [*batch, inner, columns], same dtype; the batch sizes broadcast.

    Returns:
        [*batch, rows, columns], same dtype; sums in at least float32. A row's bits may vary with the number of rows.
    """
    return torch.matmul(x, y)


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
    if x.dtype == torch.int8 and x.is_cpu:
        product = _sums_of_int8(rows, weight).float()
    else:
        product = rows.double().mm(weight.double().t()).float()  # exact for int8 up to 2**39 channels
    out = product * scales * x_scales.reshape(-1, 1)
    if bias is not None:
        out = out + bias.float()
    return out.to(dtype_of(dtype)).view(*x.shape[:-1], weight.shape[0])


EXACT_CHANNELS = 1024
"""Of int8, whose products float32 adds up exactly: 2**14 each, 2**24 together."""


def _sums_of_int8(rows: Tensor, weight: Tensor) -> Tensor:
    """Return `rows @ weight.T`, [num_rows, out_features], int32.

    Without VNNI in float32, by so many channels that sums are exact: torch's own loop takes 30 times as long. A single
    channel too, for torch 2.13 on AMX then misreads its second operand, whose strides are both 1.
    """
    if torch.cpu._is_vnni_supported() and weight.shape[1] > 1:
        return torch._int_mm(rows, weight.t())
    total = torch.zeros(len(rows), len(weight), dtype=torch.int32)
    for some, of_weight in zip(*(torch.split(x, EXACT_CHANNELS, 1) for x in (rows, weight)), strict=True):
        total += some.float().mm(of_weight.float().t()).int()
    return total


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


def _infer_moe(
    x: TensorLike,
    expert_ids: TensorLike,
    expert_weights: TensorLike,
    gate: TensorLike,
    up: TensorLike,
    down: TensorLike,
) -> TensorSpec:
    shapes = Shapes()
    shapes.check("x", x, "num_tokens hidden_size", FLOATS)
    shapes.check("expert_ids", expert_ids, "num_tokens top_k", INTS)
    shapes.check("expert_weights", expert_weights, "num_tokens top_k", (torch.float32,))
    shapes.check("gate", gate, "num_experts intermediate_size hidden_size", FLOATS)
    shapes.check("up", up, "num_experts intermediate_size hidden_size", FLOATS)
    shapes.check("down", down, "num_experts hidden_size intermediate_size", FLOATS)
    return TensorSpec(tuple(x.shape), same_dtype(x=x, gate=gate, up=up, down=down))


@op(_infer_moe)
def moe(x: Tensor, expert_ids: Tensor, expert_weights: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Return each token's weighted sum of gated MLPs (Shazeer et al. 2017, https://arxiv.org/abs/1701.06538).

    An expert is `down @ (silu(gate @ x) * (up @ x))`, every product rounded to the dtype of `x`; the sum is taken in
    float32 by ascending expert, and rounded once.

    Args:
        x: [num_tokens, hidden_size], float32 | bfloat16 | float16.
        expert_ids: [num_tokens, top_k], int32 | int64, each in [0, num_experts).
        expert_weights: [num_tokens, top_k], float32.
        gate: [num_experts, intermediate_size, hidden_size], dtype of `x`.
        up: Same shape and dtype.
        down: [num_experts, hidden_size, intermediate_size], same dtype.

    Returns:
        [num_tokens, hidden_size], dtype of `x`.
    """
    product = torch.nn.functional.linear
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for expert in range(gate.shape[0]):
        tokens, places = (expert_ids == expert).nonzero(as_tuple=True)
        chosen = x[tokens]
        inner = silu.reference(product(chosen, gate[expert])) * product(chosen, up[expert])
        scaled = product(inner, down[expert]).float() * expert_weights[tokens, places].unsqueeze(-1)
        out.index_add_(0, tokens, scaled)
    return out.to(x.dtype)
