"""Paged attention in compiled kernels; csrc/kernels/attention.hpp tells how, and why a row's bits are its own."""

from __future__ import annotations

import torch
from torch import Tensor

from quire.ops.native.library import call
from quire.ops.spec import TensorLike

KERNEL = "attention"
OPERANDS = ("out", "query", "kv_cache", "block_table", "seq_lens", "query_start_loc", "kv_scales")
NUMBERS = ("scale", "window", "soft_cap")
"""None is 0."""


def attention(
    query: Tensor,
    kv_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    query_start_loc: Tensor,
    scale: float,
    window: int | None = None,
    kv_scales: Tensor | None = None,
    soft_cap: float | None = None,
    *,
    num_threads: int | None = None,
    isa: str = "",
) -> Tensor:
    """Attend; see `ops.attention.attention`.

    Args:
        query: Of any strides but in its last dimension, where it is contiguous; so for `kv_cache` and `block_table`.
        kv_cache: See there, as for what follows.
        block_table: Of one integer dtype or another, as for `seq_lens` and `query_start_loc`.
        seq_lens: Contiguous, as `query_start_loc` and `kv_scales`.
        query_start_loc: See there.
        scale: Positive.
        window: See there.
        kv_scales: See there.
        soft_cap: See there.
        num_threads: None: as many as torch uses.
        isa: Set of instructions; empty for the best.
    """
    out = torch.empty(query.shape, dtype=query.dtype)
    operands = (out, query, kv_cache, block_table, seq_lens, query_start_loc, kv_scales)
    call(KERNEL, operands, (scale, window or 0, soft_cap or 0.0), num_threads, isa)
    return out


def numbers(
    scale: float, window: int | None = None, soft_cap: float | None = None, **rest: object
) -> tuple[float, ...]:
    """Return the kernel's numbers."""
    return scale, window or 0, soft_cap or 0.0


def is_valid(query: TensorLike, kv_cache: TensorLike, **rest: object) -> bool:
    """Return whether the kernel takes these heads."""
    return True
