"""Activations from `exp`, `tanh` and `erf` alone, whose bits do not depend on an element's place in the tensor."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from quire.ops.spec import TensorLike, num_bytes


def silu(x: Tensor) -> Tensor:
    """Return `x / (1 + exp(-x))`; see `ops.elementwise.silu`."""
    wide = x.float()
    return (wide / torch.neg(wide).exp_().add_(1.0)).to(x.dtype)


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """Return `x * Phi(x)` by erf or the tanh approximation; see `ops.elementwise.gelu`."""
    wide = x.float()
    if approximate == "tanh":
        inner = (wide * wide).mul_(wide).mul_(0.044715).add_(wide).mul_(math.sqrt(2.0 / math.pi))
        gate = inner.tanh_()
    else:
        gate = (wide * math.sqrt(0.5)).erf_()
    return gate.add_(1.0).mul_(wide).mul_(0.5).to(x.dtype)


def silu_bytes(x: TensorLike) -> int:
    """Return the most bytes that `silu` holds: `exp(-x)` and the quotient in float32, and `x` if it is not."""
    return num_bytes(x, torch.float32) * (2 if x.dtype == torch.float32 else 3)


def gelu_bytes(x: TensorLike, approximate: str = "none") -> int:
    """Return the most bytes that `gelu` holds: what becomes the result in float32; if it is not, `x` and the result."""
    wide = num_bytes(x, torch.float32)
    return wide if x.dtype == torch.float32 else 2 * wide + num_bytes(x)
