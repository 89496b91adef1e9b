"""The compiled kernels of this installation, if it has any that this processor runs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import prod
from types import ModuleType
from typing import Any

import torch

from quire.core.errors import TacticError
from quire.core.log import get_logger
from quire.ops.spec import TensorLike, sizes_of

_log = get_logger(__name__)

DTYPES = (
    torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.uint8, torch.int32, torch.int64,
    torch.float8_e4m3fn, torch.bool,
)  # fmt: skip
"""In the order of `DType` in csrc/tensor.hpp."""

_NUMBERS = {dtype: number for number, dtype in enumerate(DTYPES)}


@cache
def library() -> Any:
    """Return the module `quire._native`, or None where it was not compiled or the processor is too old."""
    try:
        from quire import _native
    except ImportError:
        _log.info("no compiled CPU kernels in this installation: torch computes instead, slower")
        return None
    return _native if _native.isas() else None


@cache
def kernel_names(isa: str = "") -> frozenset[str]:
    """Return the kernels there are, of one set of instructions or of all that this processor has."""
    native: ModuleType | None = library()
    if native is None:
        return frozenset()
    return frozenset(name for each in ([isa] if isa else native.isas()) for name in native.kernel_names(each))


Operand = tuple[int, int, list[int], list[int]]
"""Address, dtype, shape, strides."""


def operand(tensor: torch.Tensor | None) -> Operand | None:
    """Return a tensor as a kernel takes it: address, dtype, shape, strides."""
    if tensor is None:
        return None
    return tensor.data_ptr(), _NUMBERS[tensor.dtype], list(tensor.shape), list(tensor.stride())


def scratch_bytes(name: str, tensors: Sequence[TensorLike | None], numbers: Sequence[float] = ()) -> tuple[int, int]:
    """Return what a kernel works in: bytes of each thread, and of all threads together.

    Args:
        name: Which.
        tensors: Its operands, contiguous, of fixed sizes. The kernel must not read them before it begins.
        numbers: Attributes.
    """
    own, shared = library().scratch_bytes(name, [_described(tensor) for tensor in tensors], list(numbers))
    return own, shared


def _described(tensor: TensorLike | None) -> Operand | None:
    if tensor is None:
        return None
    sizes = list(sizes_of(tensor))
    strides = [prod(sizes[dim + 1 :]) for dim in range(len(sizes))]
    return 64, _NUMBERS[tensor.dtype], sizes, strides  # any address: an operand at none is absent


def call(
    name: str,
    tensors: Sequence[torch.Tensor | None],
    numbers: Sequence[float] = (),
    num_threads: int | None = None,
    isa: str = "",
) -> None:
    """Run one kernel; see csrc/kernels/declarations.hpp for its operands.

    Args:
        name: Which.
        tensors: Results first, then arguments; None for absent ones. The caller keeps them alive.
        numbers: Attributes.
        num_threads: None: as many as torch uses.
        isa: Set of instructions; empty for the best.

    Raises:
        TacticError: There are no compiled kernels.
    """
    run(name, [operand(tensor) for tensor in tensors], numbers, num_threads, isa)


def run(
    name: str,
    operands: Sequence[Operand | None],
    numbers: Sequence[float] = (),
    num_threads: int | None = None,
    isa: str = "",
) -> None:
    """Run one kernel as `call` does, on what `operand` says of its tensors.

    Raises:
        TacticError: There are no compiled kernels.
    """
    native = library()
    if native is None:
        raise TacticError(f"kernel {name}: expected compiled CPU kernels, got none; install Quire with a C++ compiler.")
    native.call(name, operands, list(numbers), num_threads or torch.get_num_threads(), isa)
