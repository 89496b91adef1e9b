"""`linear` and `silu_mul` as one kernel for few rows: gates and what they gate never leave the registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from quire.ops.triton.elementwise import gated, silu_mul
from quire.ops.triton.launch import dot, let_next_start, overlap, wait_for_last
from quire.ops.triton.linear import ahead, as_matrix, fetch, is_for_tma, linear, options, store_tile
from quire.ops.triton.tiles import FEW_ROWS, gated_tile_for


@triton.jit(do_not_specialize=["num_rows"])
def gated_kernel(
    x, weight, lines, out, num_rows, width, in_features, weight_stride,
    ROWS: tl.constexpr, FEATURES: tl.constexpr, CHANNELS: tl.constexpr, AHEAD: tl.constexpr,
    IS_OVERLAPPED: tl.constexpr,
):  # fmt: skip
    """Compute a few features of `silu(gate) * up` for all rows, which are few; each sum is that of `linear`'s kernels.

    Args:
        x, weight: Descriptors of [num_rows, in_features] and [2 * width, in_features], gates first.
        lines: Pointer to the weight.
        out: Pointer to [num_rows, width].
        AHEAD: As for `linear.narrow_kernel`, which says as well why the next kernel starts late.
    """
    first = tl.program_id(0) * FEATURES
    row, feature = tl.arange(0, ROWS), first + tl.arange(0, FEATURES)
    gate = tl.zeros((FEATURES, ROWS), dtype=tl.float32)
    up = tl.zeros((FEATURES, ROWS), dtype=tl.float32)
    fetch(lines, feature, width, weight_stride, AHEAD)
    fetch(lines, width + feature, 2 * width, weight_stride, AHEAD)
    wait_for_last(IS_OVERLAPPED)
    for start in range(0, in_features, CHANNELS):
        v = x.load([0, start]).T
        gate = dot(weight.load([first, start]), v, gate)
        up = dot(weight.load([width + first, start]), v, up)
    let_next_start(IS_OVERLAPPED)
    store_tile(out, tl.trans(gated(gate, up, out.dtype.element_ty)), row, feature, num_rows, width)


def linear_silu_mul(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `silu_mul(linear(x, weight, bias))`, the same bits.

    Args:
        x: [*rows, in_features], as `linear` takes it.
        weight: [2 * width, in_features].
        bias: [2 * width] or None.

    Returns:
        [*rows, width].
    """
    rows, weight, width = as_matrix(x), as_matrix(weight), weight.shape[0] // 2
    out = torch.empty(rows.shape[0], width, dtype=x.dtype, device=x.device)
    if bias is not None or not 0 < rows.shape[0] <= FEW_ROWS or not is_for_tma(rows, weight, out):
        return silu_mul(linear(x, weight, bias))
    tile = gated_tile_for(rows)
    gated_kernel[(triton.cdiv(width, tile.features),)](
        TensorDescriptor.from_tensor(rows, [tile.rows, tile.channels]),
        TensorDescriptor.from_tensor(weight, [tile.features, tile.channels]),
        weight, out, rows.shape[0], width, weight.shape[1], weight.stride(0), tile.rows, tile.features, tile.channels,
        ahead(rows, weight, tile), **overlap(rows), **options(tile),
    )  # fmt: skip
    return out.view(*x.shape[:-1], width)
