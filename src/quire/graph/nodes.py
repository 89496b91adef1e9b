"""What a node of the graph carries: its spec, its op, and how a real tensor is held against a declared spec."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from quire.core.errors import ShapeError
from quire.ops.op import Op
from quire.ops.spec import TensorSpec, spec_of


def spec(node: fx.Node) -> TensorSpec:
    """Return the spec of a node that has a result."""
    found = node.meta["spec"]
    assert isinstance(found, TensorSpec), f"{node} has no result"
    return found


def op_of(node: fx.Node) -> Op[..., Any]:
    """Return the op of a call node."""
    assert isinstance(node.target, Op), f"{node} is not an op call"
    return node.target


def check_binding(name: str, declared: TensorSpec, tensor: torch.Tensor, sizes: dict[str, int]) -> None:
    """Check a real tensor against a declared spec; symbolic sizes are bound in `sizes` and must agree.

    Raises:
        ShapeError: Shape or dtype differ.
    """
    got = spec_of(tensor)
    fits = len(got.shape) == len(declared.shape) and got.dtype == declared.dtype
    for want, have in zip(declared.shape, got.shape, strict=False):
        assert isinstance(have, int)
        fits = fits and (have == want if isinstance(want, int) else sizes.setdefault(want, have) == have)
    if not fits:
        known = {k: v for k, v in sizes.items() if k in declared.shape}
        expected = f"{declared} with {known}" if known else str(declared)
        raise ShapeError(f"Invalid tensor for {name}: expected {expected}, got {got}.")
