"""Attention sequence by sequence with torch's own kernel: the fastest for whole prompts, and free to round as it likes.

Its bits depend on how a prompt is cut, so no plan is run by it; calibration is, where only the text is the same.
"""

from __future__ import annotations

import torch
from torch import Tensor


def attention(
    query: Tensor,
    kv_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    query_start_loc: Tensor,
    scale: float,
    window: int | None,
    kv_scales: Tensor | None = None,
    soft_cap: None = None,
) -> Tensor:
    """Attend; see `ops.attention.attention`."""
    out = torch.empty_like(query)
    bounds = query_start_loc.tolist()
    for i, seq_len in enumerate(seq_lens.tolist()):
        start, stop = bounds[i], bounds[i + 1]
        if start == stop:
            continue
        keys, values = _gather(kv_cache, block_table[i], seq_len, kv_scales, query.dtype)
        heads = torch.nn.functional.scaled_dot_product_attention(
            query[start:stop].transpose(0, 1)[None],
            keys,
            values,
            attn_mask=None if window is None and stop - start == seq_len else _seen(stop - start, seq_len, window),
            is_causal=window is None and stop - start == seq_len,
            scale=scale,
            enable_gqa=True,
        )
        out[start:stop] = heads[0].transpose(0, 1)
    return out


def _gather(
    kv_cache: Tensor, blocks: Tensor, seq_len: int, kv_scales: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return a sequence's keys and values, each [1, num_kv_heads, seq_len, head_dim]."""
    _, _, num_kv_heads, block_size, head_dim = kv_cache.shape
    used = blocks[: -(-seq_len // block_size)].long()
    rows = kv_cache[:, used].transpose(1, 2).reshape(2, num_kv_heads, -1, head_dim)[:, :, :seq_len]
    if kv_scales is not None:
        rows = rows.float() * kv_scales[:, :, None, None]
    rows = rows.to(dtype)
    return rows[:1], rows[1:]


def _seen(num_queries: int, seq_len: int, window: int | None) -> Tensor:
    """Return which positions each query sees, [num_queries, seq_len], bool."""
    at = torch.arange(seq_len - num_queries, seq_len)[:, None]
    past = torch.arange(seq_len)[None, :]
    seen = past <= at
    return seen if window is None else seen & (past > at - window)


def has_no_soft_cap(soft_cap: float | None, **rest: object) -> bool:
    """Return whether scores are not capped, which torch's kernel cannot do."""
    return soft_cap is None
