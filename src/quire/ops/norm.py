"""Normalisations over one dimension, mostly the last, computed in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from quire.ops.layout import axis_of
from quire.ops.op import op
from quire.ops.spec import FLOATS, Shapes, TensorLike, TensorSpec, same_dtype, spec_of


def _infer_rms_norm(x: TensorLike, weight: TensorLike, eps: float) -> TensorSpec:
    shapes = Shapes()
    shapes.check("x", x, "*rows hidden_size", FLOATS)
    shapes.check("weight", weight, "hidden_size", FLOATS)
    same_dtype(x=x, weight=weight)
    return spec_of(x)


@op(_infer_rms_norm)
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return `x / sqrt(mean(x**2) + eps) * weight` (Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467).

    The quotient is rounded to the dtype of `x` before the product with `weight`, as in Hugging Face's Llama. Square
    root and division are exactly rounded, so a row's bits do not depend on its place in the tensor.

    Args:
        x: [*rows, hidden_size], float32 | bfloat16 | float16.
        weight: [hidden_size], same dtype.
        eps: Added to the mean square.

    Returns:
        [*rows, hidden_size], dtype of `x`.
    """
    wide = x.float()
    scale = torch.sqrt((wide * wide).mean(-1, keepdim=True) + eps)
    return (wide / scale).to(x.dtype) * weight


def _infer_layer_norm(x: TensorLike, weight: TensorLike, bias: TensorLike | None, eps: float) -> TensorSpec:
    shapes = Shapes()
    shapes.check("x", x, "*rows hidden_size", FLOATS)
    shapes.check("weight", weight, "hidden_size", FLOATS)
    if bias is not None:
        shapes.check("bias", bias, "hidden_size", FLOATS)
    same_dtype(x=x, weight=weight, bias=bias)
    return spec_of(x)


@op(_infer_layer_norm)
def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """Return `(x - mean(x)) / sqrt(var(x) + eps) * weight + bias` (Ba et al. 2016, https://arxiv.org/abs/1607.06450).

    Args:
        x: [*rows, hidden_size], float32 | bfloat16 | float16.
        weight: [hidden_size], same dtype.
        bias: [hidden_size], same dtype, or None.
        eps: Added to the variance.

    Returns:
        [*rows, hidden_size], dtype of `x`.
    """
    return torch.nn.functional.layer_norm(x, (x.shape[-1],), weight, bias, eps)


def _infer_softmax(x: TensorLike, dim: int) -> TensorSpec:
    Shapes().check("x", x, "*sizes", FLOATS)
    axis_of(x, dim)
    return spec_of(x)


@op(_infer_softmax)
def softmax(x: Tensor, dim: int = -1) -> Tensor:
    """Return `exp(x) / sum(exp(x))` along a dimension; over the last one a row's bits do not depend on its place.

    Args:
        x: Any shape, float32 | bfloat16 | float16.
        dim: Where the results sum to 1.

    Returns:
        Same shape and dtype.
    """
    return torch.softmax(x.float(), dim).to(x.dtype)
