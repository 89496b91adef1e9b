"""Arithmetic with broadcasting over leading dimensions."""

from __future__ import annotations

from torch import Tensor

from quire.core.errors import ShapeError
from quire.ops.op import op
from quire.ops.spec import Dim, Shape, TensorLike, TensorSpec, same_dtype


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
