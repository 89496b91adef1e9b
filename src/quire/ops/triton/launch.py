"""What all kernels share: the device's size, and the dot product that Triton's interpreter needs help with."""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

INTERPRETED: bool = bool(triton.knobs.runtime.interpret)
"""Whether kernels run in Triton's interpreter, on tensors of the CPU (TRITON_INTERPRET=1)."""

_WIDEN = tl.constexpr(INTERPRETED)


@triton.jit
def dot(a, b, acc):
    """Return `acc + a @ b`, sums in float32 (int32 for int8).

    Interpreted, bfloat16 operands are widened first: the interpreter holds them as integers.
    """
    if _WIDEN and a.dtype != tl.int8:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    return tl.dot(a, b, acc, input_precision="ieee", out_dtype=acc.dtype)  # Triton 3.6 does not take it from `acc`


@cache
def num_multiprocessors(index: int) -> int:
    """Return how many multiprocessors GPU `index` has."""
    return torch.cuda.get_device_properties(index).multi_processor_count


def num_programs(x: torch.Tensor) -> int:
    """Return how many programs of a persistent kernel run on the device of `x`: one for each multiprocessor."""
    return num_multiprocessors(x.device.index or 0) if x.is_cuda else 4
