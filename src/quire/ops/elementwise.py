"""Arithmetic and comparisons with broadcasting over leading dimensions, and the nonlinearities of the MLP.

Nonlinearities are computed in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quire.core.errors import ShapeError
from quire.ops.op import op
from quire.ops.spec import FLOATS, INTS, Dim, Shape, Shapes, TensorLike, TensorSpec, dtype_name, same_dtype, spec_of

GELU_FORMS = ("none", "tanh")


def broadcast(a: Shape, b: Shape) -> Shape:
    """Return the common shape under the usual rules; a symbolic size only equals itself or 1.

    Raises:
        ShapeError: There is none.
    """
    longest = max(len(a), len(b))
    left, right = ((1,) * (longest - len(s)) + s for s in (a, b))
    sizes: list[Dim] = []
    for x, y in zip(left, right, strict=True):
        if x != y and 1 not in (x, y):
            raise ShapeError(f"Invalid shape of y: expected it to broadcast with {list(a)}, got {list(b)}.")
        sizes.append(y if x == 1 else x)
    return tuple(sizes)


def _infer(x: TensorLike | float, y: TensorLike | float) -> TensorSpec:
    """Infer arithmetic of two tensors, or of a tensor and a number on either side."""
    tensors: dict[str, TensorLike] = {}
    for name, value in (("x", x), ("y", y)):
        if not isinstance(value, (int, float)):
            Shapes().check(name, value, "*sizes", (*FLOATS, *INTS))
            tensors[name] = value
    if not tensors:
        raise ShapeError(f"Invalid x and y: expected at least one tensor, got {x} and {y}.")
    dtype = same_dtype(**tensors)
    if dtype in INTS and any(isinstance(value, float) for value in (x, y)):
        raise ShapeError(f"Invalid dtypes: expected integers beside {dtype_name(dtype)}, got a float; cast the tensor.")
    shapes = [tuple(tensor.shape) for tensor in tensors.values()]
    return TensorSpec(broadcast(shapes[0], shapes[-1]), dtype)


def _infer_div(x: TensorLike | float, y: TensorLike | float) -> TensorSpec:
    found = _infer(x, y)
    if found.dtype in INTS:
        raise ShapeError(f"Invalid dtypes: expected floats, got {dtype_name(found.dtype)}; cast the tensor.")
    return found


@op(_infer)
def add(x: Tensor | float, y: Tensor | float) -> Tensor:
    """Return `x + y`: tensors of one dtype that broadcast, or one of them a number."""
    return x + y  # type: ignore[return-value]


@op(_infer)
def sub(x: Tensor | float, y: Tensor | float) -> Tensor:
    """Return `x - y`: tensors of one dtype that broadcast, or one of them a number."""
    return x - y  # type: ignore[return-value]


@op(_infer)
def mul(x: Tensor | float, y: Tensor | float) -> Tensor:
    """Return `x * y`: tensors of one dtype that broadcast, or one of them a number."""
    return x * y  # type: ignore[return-value]


@op(_infer_div)
def div(x: Tensor | float, y: Tensor | float) -> Tensor:
    """Return `x / y`: float tensors of one dtype that broadcast, or one of them a number."""
    return x / y  # type: ignore[return-value]


def _infer_comparison(x: TensorLike | float, y: TensorLike | float) -> TensorSpec:
    return TensorSpec(_infer(x, y).shape, torch.bool)


@op(_infer_comparison)
def eq(x: Tensor | float, y: Tensor | float) -> Tensor:
    """Return, as bool, whether `x == y`: tensors of one dtype that broadcast, or one of them a number."""
    return x == y  # type: ignore[return-value]


@op(_infer_comparison)
def ne(x: Tensor | float, y: Tensor | float) -> Tensor:
    """Return, as bool, whether `x != y`: tensors of one dtype that broadcast, or one of them a number."""
    return x != y  # type: ignore[return-value]


@op(_infer_comparison)
def lt(x: Tensor | float, y: Tensor | float) -> Tensor:
    """Return, as bool, whether `x < y`: tensors of one dtype that broadcast, or one of them a number."""
    return x < y  # type: ignore[return-value]


@op(_infer_comparison)
def gt(x: Tensor | float, y: Tensor | float) -> Tensor:
    """Return, as bool, whether `x > y`: tensors of one dtype that broadcast, or one of them a number."""
    return x > y  # type: ignore[return-value]


@op(_infer_comparison)
def le(x: Tensor | float, y: Tensor | float) -> Tensor:
    """Return, as bool, whether `x <= y`: tensors of one dtype that broadcast, or one of them a number."""
    return x <= y  # type: ignore[return-value]


@op(_infer_comparison)
def ge(x: Tensor | float, y: Tensor | float) -> Tensor:
    """Return, as bool, whether `x >= y`: tensors of one dtype that broadcast, or one of them a number."""
    return x >= y  # type: ignore[return-value]


def _infer_where(condition: TensorLike, x: TensorLike | float, y: TensorLike | float) -> TensorSpec:
    Shapes().check("condition", condition, "*sizes", (torch.bool,))
    found = _infer(x, y)
    return TensorSpec(broadcast(found.shape, tuple(condition.shape)), found.dtype)


@op(_infer_where)
def where(condition: Tensor, x: Tensor | float, y: Tensor | float) -> Tensor:
    """Return `x` where the condition holds, else `y`.

    Args:
        condition: bool.
        x: A tensor, or a number beside a tensor `y`.
        y: A tensor of the same dtype, or a number. All three broadcast.

    Returns:
        Their common shape, dtype of `x` and `y`.
    """
    return torch.where(condition, x, y)


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
