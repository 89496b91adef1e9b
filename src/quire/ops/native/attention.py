"""Paged attention in compiled kernels; csrc/kernels/attention.hpp tells how, and why a row's bits are its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quire.ops.native import library
from quire.ops.native.library import call, kernel_names
from quire.ops.spec import TensorLike, sizes_of

KERNEL = "attention"
OPERANDS = ("out", "query", "kv_cache", "block_table", "seq_lens", "query_start_loc", "kv_scales")
"""The result, then arguments of the op."""

_SPAN, _PANEL, _SHARED_ROWS, _SHARING_TOKENS, _PARTIAL_ROWS = 256, 32, 128, 8, 16  # csrc/kernels/attention_step.hpp
_MOST_PARTIAL_BYTES, _PAST_LAST_BYTES = 16 << 20, 64


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
        scale: Positive, as `kv_scales` are.
        window: See there.
        kv_scales: See there.
        soft_cap: See there.
        num_threads: None: as many as torch uses.
        isa: Set of instructions; empty for the best.
    """
    out = torch.empty(query.shape, dtype=query.dtype)
    operands = (out, query, kv_cache, block_table, seq_lens, query_start_loc, kv_scales)
    call(KERNEL, operands, numbers(scale, window, soft_cap), num_threads, isa)
    return out


def numbers(
    scale: float, window: int | None = None, soft_cap: float | None = None, **rest: object
) -> tuple[float, ...]:
    """Return the kernel's numbers: what is None is 0."""
    return scale, window or 0, soft_cap or 0.0


def is_valid(scale: float, **rest: object) -> bool:
    """Return whether there is a kernel and the highest product makes the highest score: the scale is positive."""
    return scale > 0 and KERNEL in kernel_names()


def scratch_bytes(query: TensorLike, kv_scales: TensorLike | None = None, **arguments: Any) -> tuple[int, int]:
    """Return what the kernel works in: bytes of each thread, and at most the partial results that threads share."""
    tensors = [arguments[name] for name in OPERANDS[2:-1]]
    own, _ = library.scratch_bytes(KERNEL, [query, query, *tensors, kv_scales], numbers(**arguments))
    return own, shared_bytes(query, **arguments)


def shared_bytes(query: TensorLike, kv_cache: TensorLike, block_table: TensorLike, **rest: object) -> int:
    """Return the most bytes of partial results: one thread leaves them only of what sequences have in common."""
    num_tokens, num_heads, _ = sizes_of(query)
    (num_seqs, num_blocks), (_, _, kv_heads, block_size, head_dim) = sizes_of(block_table), sizes_of(kv_cache)
    spans = -(-num_blocks * block_size // _SPAN)
    if torch.get_num_threads() == 1:
        num_tokens, spans = min(num_tokens, _SHARING_TOKENS * num_seqs), 1
    rows = num_tokens * num_heads // kv_heads
    tiles = num_seqs * 3 // 2 + rows // _SHARED_ROWS + 1
    floats = rows * (_round_up(head_dim, _PANEL) + 2) + 2 * _PARTIAL_ROWS * tiles
    return min(_MOST_PARTIAL_BYTES, 4 * kv_heads * floats * spans) + _PAST_LAST_BYTES


def _round_up(count: int, to: int) -> int:
    return -(-count // to) * to
