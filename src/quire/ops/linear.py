"""Matrix products with a weight."""

from __future__ import annotations

import torch
from torch import Tensor

from quire.ops.op import op
from quire.ops.spec import FLOATS, INTS, Shapes, TensorLike, TensorSpec, same_dtype


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
