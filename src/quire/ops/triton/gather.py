"""Rows of a matrix by their indices: embeddings of tokens, and the tokens whose logits are wanted."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.ops.triton.launch import let_next_start, overlap, wait_for_last

# Values of a program: a load of 16 bytes for each thread of 4 warps in bfloat16.
_BLOCK = 1024


@triton.jit
def _gather_kernel(
    x, index, out, x_stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr, IS_OVERLAPPED: tl.constexpr
):  # fmt: skip
    let_next_start(IS_OVERLAPPED)
    wait_for_last(IS_OVERLAPPED)
    row, columns = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    source = x + tl.load(index + row).to(tl.int64) * x_stride
    tl.store(out + row * WIDTH + columns, tl.load(source + columns, columns < WIDTH), columns < WIDTH)


def embedding(ids: Tensor, weight: Tensor) -> Tensor:
    """Return the rows of `weight` named by `ids`; see `ops.linear.embedding`."""
    return _gather(weight, ids)


def index_select(x: Tensor, index: Tensor, dim: int = 0) -> Tensor:
    """Return slices of `x`; see `ops.layout.index_select`. Here those of the first dimension."""
    rows = x.reshape(x.shape[0], -1)
    return _gather(rows, index).view(index.shape[0], *x.shape[1:])


def is_first(dim: int = 0, **rest: object) -> bool:
    """Return whether slices of the first dimension are taken."""
    return dim == 0


def _gather(x: Tensor, index: Tensor) -> Tensor:
    """Return [*index, width] of `x` [num_rows, width]."""
    if x.stride(1) != 1:
        x = x.contiguous()
    index, width = index.contiguous(), x.shape[1]
    out = torch.empty((*index.shape, width), dtype=x.dtype, device=x.device)
    if out.numel():
        grid = (index.numel(), triton.cdiv(width, _BLOCK))
        _gather_kernel[grid](x, index, out, x.stride(0), WIDTH=width, BLOCK=_BLOCK, num_warps=4, **overlap(x))
    return out
