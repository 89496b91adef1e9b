"""Paged attention: keys and values live in a cache of fixed-size blocks, named by block tables."""

from __future__ import annotations

import torch
from torch import Tensor

from quire.core.errors import ShapeError
from quire.ops.op import op
from quire.ops.spec import FLOATS, INTS, Shapes, TensorLike, TensorSpec, same_dtype, spec_of


def _infer_append_kv(key: TensorLike, value: TensorLike, kv_cache: TensorLike, slot_mapping: TensorLike) -> None:
    shapes = Shapes()
    shapes.check("key", key, "num_tokens num_kv_heads head_dim", FLOATS)
    shapes.check("value", value, "num_tokens num_kv_heads head_dim", FLOATS)
    shapes.check("kv_cache", kv_cache, "2 num_blocks num_kv_heads block_size head_dim", FLOATS)
    shapes.check("slot_mapping", slot_mapping, "num_tokens", INTS)
    same_dtype(key=key, value=value, kv_cache=kv_cache)


@op(_infer_append_kv, mutates=("kv_cache",))
def append_kv(key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor) -> None:
    """Write new keys and values into their KV cache slots.

    Args:
        key: [num_tokens, num_kv_heads, head_dim], float32 | bfloat16 | float16.
        value: Same shape and dtype as `key`.
        kv_cache: [2, num_blocks, num_kv_heads, block_size, head_dim]. Mutated.
        slot_mapping: [num_tokens], int32 | int64. Flat slot = block_id * block_size + offset; -1 skips a padding token.

    Raises:
        ShapeError: A shape or dtype differs from the above.
    """
    block_size = kv_cache.shape[3]
    if bool((slot_mapping < 0).any()):
        kept = slot_mapping >= 0
        key, value, slot_mapping = key[kept], value[kept], slot_mapping[kept]
    slots = slot_mapping.long()
    blocks, offsets = slots // block_size, slots % block_size
    kv_cache[0][blocks, :, offsets] = key
    kv_cache[1][blocks, :, offsets] = value


def _infer_attention(
    query: TensorLike,
    kv_cache: TensorLike,
    block_table: TensorLike,
    seq_lens: TensorLike,
    query_start_loc: TensorLike,
    scale: float,
    window: int | None,
) -> TensorSpec:
    shapes = Shapes()
    shapes.check("query", query, "num_tokens num_heads head_dim", FLOATS)
    shapes.check("kv_cache", kv_cache, "2 num_blocks num_kv_heads block_size head_dim", FLOATS)
    shapes.check("block_table", block_table, "num_seqs max_blocks", INTS)
    shapes.check("seq_lens", seq_lens, "num_seqs", INTS)
    shapes.check("query_start_loc", query_start_loc, "num_boundaries", INTS)
    same_dtype(query=query, kv_cache=kv_cache)
    heads, kv_heads = shapes.size("num_heads"), shapes.size("num_kv_heads")
    if heads % kv_heads:
        raise ShapeError(
            f"Invalid shape of query: expected num_heads divisible by num_kv_heads={kv_heads}, got {heads}."
        )
    if window is not None and window < 1:
        raise ShapeError(f"Invalid window: expected at least 1 token or None, got {window}.")
    return spec_of(query)


@op(_infer_attention)
def attention(
    query: Tensor,
    kv_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    query_start_loc: Tensor,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """Causal attention of a ragged batch over its paged KV cache, which already holds this step's keys and values.

    Query `j` of the `m` of a sequence sits at position `seq_len - m + j` and sees the keys at positions up to its
    own, at most the latest `window` of them. Query head `h` reads KV head `h // (num_heads // num_kv_heads)`
    (grouped queries, Ainslie et al. 2023, https://arxiv.org/abs/2305.13245). Softmax and sums in float32.

    Args:
        query: [num_tokens, num_heads, head_dim], float32 | bfloat16 | float16, sequences one after the other.
        kv_cache: [2, num_blocks, num_kv_heads, block_size, head_dim], same dtype.
        block_table: [num_seqs, max_blocks], int32 | int64: block ids of each sequence, in order.
        seq_lens: [num_seqs], int32 | int64: tokens in the cache, this step's included.
        query_start_loc: [num_seqs + 1], int32 | int64: where each sequence's queries start in `query`.
        scale: Multiplies the scores, usually head_dim ** -0.5.
        window: How many latest positions a query sees, its own included; None sees all.

    Returns:
        [num_tokens, num_heads, head_dim], same dtype.
    """
    out = torch.empty_like(query)
    bounds = query_start_loc.tolist()
    for i, seq_len in enumerate(seq_lens.tolist()):
        start, stop = bounds[i], bounds[i + 1]
        if start == stop:
            continue
        keys, values = _gather(kv_cache, block_table[i], seq_len, query.shape[1])
        scores = torch.einsum("qhd,khd->hqk", query[start:stop].float() * scale, keys)
        at = torch.arange(seq_len - (stop - start), seq_len, device=query.device)[:, None]
        past = torch.arange(seq_len, device=query.device)[None, :]
        hidden = past > at if window is None else (past > at) | (past <= at - window)
        probs = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        out[start:stop] = torch.einsum("hqk,khd->qhd", probs, values).to(query.dtype)
    return out


def _gather(kv_cache: Tensor, blocks: Tensor, seq_len: int, num_heads: int) -> tuple[Tensor, Tensor]:
    """Return a sequence's keys and values, [seq_len, num_heads, head_dim] each, float32, KV heads repeated."""
    _, _, kv_heads, block_size, head_dim = kv_cache.shape
    used = blocks[: -(-seq_len // block_size)].long()
    rows = kv_cache[:, used].permute(0, 1, 3, 2, 4).reshape(2, -1, kv_heads, head_dim)[:, :seq_len].float()
    keys, values = rows.repeat_interleave(num_heads // kv_heads, dim=2)
    return keys, values
