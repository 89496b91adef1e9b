"""Elementwise nonlinearities of the MLP, computed in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from quire.core.errors import ShapeError
from quire.ops.op import op
from quire.ops.spec import FLOATS, Shapes, TensorLike, TensorSpec, spec_of

GELU_FORMS = ("none", "tanh")


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
