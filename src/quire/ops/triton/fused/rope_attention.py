"""`rope_append_kv` and `attention` as one kernel, for steps with one token for each sequence.

The program that computes a KV head of a sequence's last split writes the new key and value before it reads the split;
nobody else reads them in this step.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from quire.ops.triton.attention import attend, attention
from quire.ops.triton.attention_tiles import StepItems
from quire.ops.triton.rope import NewKeys, rope_append_kv


def rope_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: Tensor,
    table: Tensor,
    kv_cache: Tensor,
    slot_mapping: Tensor,
    kv_scales: Tensor | None,
    _: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    query_start_loc: Tensor,
    scale: float,
    window: int | None,
    __: Tensor | None = None,
    soft_cap: float | None = None,
    *,
    prepared: tuple[StepItems, ...],
) -> Tensor:
    """Rotate, write keys and values into their slots, and attend: the bits of the two ops.

    Args are those of `ops.fused.rope_append_kv`, then those of `ops.attention.attention` but for the query; so the
    cache and its scales come twice. Where there are as many tokens as sequences, each has one.
    """
    is_one_each = len(prepared) == 1 and query.shape[0] == len(seq_lens)
    if is_one_each and kv_scales is None and _is_taken(query, key, value, table, kv_cache, prepared[0]):
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        new = NewKeys(key, value, positions, table, slot_mapping)
        attend(query, kv_cache, block_table, scale, window, None, soft_cap, prepared[0], out, new)
        return out
    rotated = rope_append_kv(query, key, value, positions, table, kv_cache, slot_mapping, kv_scales)
    rest = (kv_cache, block_table, seq_lens, query_start_loc, scale, window, kv_scales, soft_cap)
    return attention(rotated, *rest, prepared=prepared)


def _is_taken(query: Tensor, key: Tensor, value: Tensor, table: Tensor, kv_cache: Tensor, items: StepItems) -> bool:
    """Return whether the kernel bears it: whole heads are rotated, a tile has all query heads of a KV head."""
    (_, num_heads, head_dim), num_kv_heads = query.shape, key.shape[1]
    is_whole = table.shape[1] == head_dim == triton.next_power_of_2(head_dim) and head_dim >= 16
    is_dense = all(x.stride(2) == 1 and x.stride(1) == head_dim for x in (key, value)) and query.stride(2) == 1
    return (
        is_whole
        and is_dense
        and kv_cache.dtype == query.dtype
        and items.tile.head_tiles(num_heads, num_kv_heads) == num_kv_heads
    )
