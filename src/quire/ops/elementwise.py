"""Arithmetic with broadcasting over leading dimensions, and the nonlinearities of the MLP, computed in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from quire.core.errors import ShapeError
from quire.ops.op import op
from quire.ops.spec import FLOATS, Dim, Shape, Shapes, TensorLike, TensorSpec, same_dtype, spec_of

GELU_FORMS = ("none", "tanh")


def _broadcast(a: Shape, b: Shape) -> Shape:
    """Return the common shape under the usual rules; a symbolic size only equals itself or 1."""
    longest = max(len(a), len(b))
    left, right = ((1,) * (longest - len(s)) + s for s in (a, b))
    sizes: list[Dim] = []
    for x, y in zip(left, right, strict=True):
        if x != y and 1 not in (x, y):
            raise ShapeError(f"Invalid shape of y: expected it to broadcast with {list(a)}, got {list(b)}.")
        sizes.append(y if x == 1 else x)
    return tuple(sizes)


def _infer(x: TensorLike, y: TensorLike | float) -> TensorSpec:
    if isinstance(y, (int, float)):
        return TensorSpec(tuple(x.shape), x.dtype)
    return TensorSpec(_broadcast(tuple(x.shape), tuple(y.shape)), same_dtype(x=x, y=y))


@op(_infer)
def add(x: Tensor, y: Tensor | float) -> Tensor:
    """Return `x + y`; y is a tensor of the same dtype that broadcasts with x, or a number."""
    return x + y


@op(_infer)
def sub(x: Tensor, y: Tensor | float) -> Tensor:
    """Return `x - y`; y is a tensor of the same dtype that broadcasts with x, or a number."""
    return x - y


@op(_infer)
def mul(x: Tensor, y: Tensor | float) -> Tensor:
    """Return `x * y`; y is a tensor of the same dtype that broadcasts with x, or a number."""
    return x * y


@op(_infer)
def div(x: Tensor, y: Tensor | float) -> Tensor:
    """Return `x / y`; y is a tensor of the same dtype that broadcasts with x, or a number."""
    return x / y


def _infer_activation(x: TensorLike) -> TensorSpec:
    Shapes().check("x", x, "*rows", FLOATS)
    return spec_of(x)


def _infer_gelu(x: TensorLike, approximate: str) -> TensorSpec:
    if approximate not in GELU_FORMS:
        raise ShapeError(f"Invalid approximate: expected one of {', '.join(GELU_FORMS)}, got {approximate!r}.")
    return _infer_activation(x)


@op(_infer_activation)
def silu(x: Tensor) -> Tensor:
    """Return `x * sigmoid(x)` (Elfwing et al. 2017, https://arxiv.org/abs/1702.03118).

    Args:
        x: [*rows], float32 | bfloat16 | float16.

    Returns:
        [*rows], same dtype.
    """
    return torch.nn.functional.silu(x.float()).to(x.dtype)


@op(_infer_gelu)
def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """Return `x * Phi(x)` (Hendrycks and Gimpel 2016, https://arxiv.org/abs/1606.08415).

    Args:
        x: [*rows], float32 | bfloat16 | float16.
        approximate: "none" uses erf, "tanh" the paper's approximation.

    Returns:
        [*rows], same dtype.
    """
    return torch.nn.functional.gelu(x.float(), approximate=approximate).to(x.dtype)


@op(_infer_activation)
def relu(x: Tensor) -> Tensor:
    """Return `max(x, 0)`.

    Args:
        x: [*rows], float32 | bfloat16 | float16.

    Returns:
        [*rows], same dtype.
    """
    return torch.relu(x)
