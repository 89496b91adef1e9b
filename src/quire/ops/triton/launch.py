"""What all kernels share: the device's size, and the dot product that Triton's interpreter needs help with."""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

INTERPRETED: bool = bool(triton.knobs.runtime.interpret)
"""Whether kernels run in Triton's interpreter, on tensors of the CPU (TRITON_INTERPRET=1)."""

_WIDEN = tl.constexpr(INTERPRETED)


@triton.jit
def dot(a, b, acc):
    """Return `acc + a @ b`, sums in float32 (int32 for int8).

    Interpreted, operands are widened first: the interpreter holds bfloat16 as integers, and the library that multiplies
    for it adds in an order that follows shapes and processors. In float64 no order shows.
    """
    if _WIDEN and a.dtype != tl.int8:
        wide_a, wide_b = a.to(tl.float32).to(tl.float64), b.to(tl.float32).to(tl.float64)  # no float8 becomes float64
        sums = tl.dot(wide_a, wide_b, out_dtype=tl.float64)
        return (acc.to(tl.float64) + sums).to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee", out_dtype=acc.dtype)  # Triton 3.6 does not take it from `acc`


@triton.jit
def let_next_start(IS_OVERLAPPED: tl.constexpr):
    """Let the next kernel's programs take their places while this one's still work."""
    if IS_OVERLAPPED:
        gdc_launch_dependents()


@triton.jit
def wait_for_last(IS_OVERLAPPED: tl.constexpr):
    """Wait until the kernel before, and so every one before that, is done and its results can be read.

    Whatever does not depend on them comes before: addresses, and weights on their way to the L2 cache. Each kernel that
    is launched with `overlap` waits before it reads an activation, and before it writes anything.
    """
    if IS_OVERLAPPED:
        gdc_wait()


@triton.jit
def prefetch(pointers):
    """Bring the lines of 128 bytes that hold these addresses to the L2 cache; nothing waits for them."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [pointers.to(tl.int64)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


def overlap(x: torch.Tensor) -> dict[str, bool]:
    """Return the options of a launch that may begin before the last kernel ends (programmatic dependent launch).

    Between two kernels of a graph pass one to two microseconds, and each takes as long again until its reads arrive: of
    a decode step of an 8B model an eighth, of a 1B model a third. Since compute capability 9.0.
    """
    is_able = x.is_cuda and capability(x) >= (9, 0)
    return {"IS_OVERLAPPED": True, "launch_pdl": True} if is_able else {"IS_OVERLAPPED": False}


def capability(x: torch.Tensor) -> tuple[int, int]:
    """Return the compute capability of a tensor's device; Hopper's where kernels are interpreted."""
    return _capability(x.device.index or 0) if x.is_cuda else (9, 0)


@cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


@cache
def num_multiprocessors(index: int) -> int:
    """Return how many multiprocessors GPU `index` has."""
    return torch.cuda.get_device_properties(index).multi_processor_count


def num_programs(x: torch.Tensor) -> int:
    """Return how many programs of a persistent kernel run on the device of `x`: one for each multiprocessor."""
    return num_multiprocessors(x.device.index or 0) if x.is_cuda else 4
