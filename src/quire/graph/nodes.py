"""What a node of the graph carries: its spec, its op, and how a real tensor is held against a declared spec."""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import fx

from quire.core.errors import ShapeError
from quire.ops.op import Op
from quire.ops.spec import TensorSpec, spec_of


def spec(node: fx.Node) -> TensorSpec:
    """Return the spec of a node that has one result."""
    found = node.meta["spec"]
    assert isinstance(found, TensorSpec), f"{node} has not one result but {found}"
    return found


def results(node: fx.Node) -> tuple[TensorSpec, ...]:
    """Return the specs of all results of a node: none for an op that only mutates, several for a fused one."""
    found = node.meta["spec"]
    if found is None:
        return ()
    return found if isinstance(found, tuple) else (found,)


def is_call(node: object, *names: str) -> TypeGuard[fx.Node]:
    """Return whether a value is a node that calls one of the ops named."""
    return isinstance(node, fx.Node) and node.op == "call_function" and op_of(node).name in names


def spec_argument(value: Any) -> Any:
    """Return an argument of a call with nodes replaced by the specs of their results."""
    if isinstance(value, fx.Node):
        return value.meta["spec"]
    if isinstance(value, (list, tuple)):
        return [spec_argument(item) for item in value]
    return value


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
