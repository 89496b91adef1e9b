"""Paged attention: keys and values live in a cache of fixed-size blocks, named by block tables."""

from __future__ import annotations

import torch
from torch import Tensor

from quire.core.errors import ShapeError
from quire.ops.op import op
from quire.ops.quantize import round_to
from quire.ops.spec import FLOATS, INTS, Shapes, TensorLike, TensorSpec, dtype_name, same_dtype, spec_of

_EIGHT_BITS = (torch.int8, torch.float8_e4m3fn)


def _check_cache(shapes: Shapes, like: TensorLike, kv_cache: TensorLike, kv_scales: TensorLike | None) -> None:
    """Check a cache of the dtype of `like`, or one of 8 bits with its scales."""
    shapes.check("kv_cache", kv_cache, "2 num_blocks num_kv_heads block_size head_dim", (*FLOATS, *_EIGHT_BITS))
    if kv_cache.dtype not in _EIGHT_BITS:
        same_dtype(activations=like, kv_cache=kv_cache)
    if (kv_scales is None) == (kv_cache.dtype in _EIGHT_BITS):
        got = "none" if kv_scales is None else "some"
        raise ShapeError(f"Invalid kv_scales: expected them exactly for a KV cache of 8 bits, got {got} for "
                         f"{dtype_name(kv_cache.dtype)}.")  # fmt: skip
    if kv_scales is not None:
        shapes.check("kv_scales", kv_scales, "2 num_kv_heads", (torch.float32,))


def infer_append_kv(
    key: TensorLike, value: TensorLike, kv_cache: TensorLike, slot_mapping: TensorLike, kv_scales: TensorLike | None
) -> None:
    """Check the arguments of `append_kv`."""
    shapes = Shapes()
    shapes.check("key", key, "num_tokens num_kv_heads head_dim", FLOATS)
    shapes.check("value", value, "num_tokens num_kv_heads head_dim", FLOATS)
    shapes.check("slot_mapping", slot_mapping, "num_tokens", INTS)
    same_dtype(key=key, value=value)
    _check_cache(shapes, key, kv_cache, kv_scales)


@op(infer_append_kv, mutates=("kv_cache",))
def append_kv(
    key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor, kv_scales: Tensor | None = None
) -> None:
    """Write new keys and values into their KV cache slots.

    Args:
        key: [num_tokens, num_kv_heads, head_dim], float32 | bfloat16 | float16.
        value: Same shape and dtype as `key`.
        kv_cache: [2, num_blocks, num_kv_heads, block_size, head_dim], same dtype, int8 or float8_e4m3fn. Mutated.
        slot_mapping: [num_tokens], int32 | int64. Flat slot = block_id * block_size + offset; -1 skips a padding token.
        kv_scales: [2, num_kv_heads], float32: what one step of an 8-bit cache stands for, for keys and for values of
            each head; values beyond its range saturate. None for a cache of the dtype of `key`.

    Raises:
        ShapeError: A shape or dtype differs from the above.
    """
    block_size = kv_cache.shape[3]
    if kv_scales is not None:
        key, value = quantize_kv(key, value, kv_scales, kv_cache.dtype)
    if bool((slot_mapping < 0).any()):
        kept = slot_mapping >= 0
        key, value, slot_mapping = key[kept], value[kept], slot_mapping[kept]
    slots = slot_mapping.long()
    blocks, offsets = slots // block_size, slots % block_size
    kv_cache[0][blocks, :, offsets] = key
    kv_cache[1][blocks, :, offsets] = value


def quantize_kv(key: Tensor, value: Tensor, kv_scales: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return keys and values [num_tokens, num_kv_heads, head_dim] as they are kept in a cache of 8 bits."""
    scales = kv_scales.unsqueeze(-1)
    return round_to(key.float() / scales[0], dtype), round_to(value.float() / scales[1], dtype)


def _infer_attention(
    query: TensorLike,
    kv_cache: TensorLike,
    block_table: TensorLike,
    seq_lens: TensorLike,
    query_start_loc: TensorLike,
    scale: float,
    window: int | None,
    kv_scales: TensorLike | None,
    soft_cap: float | None,
) -> TensorSpec:
    shapes = Shapes()
    shapes.check("query", query, "num_tokens num_heads head_dim", FLOATS)
    _check_cache(shapes, query, kv_cache, kv_scales)
    shapes.check("block_table", block_table, "num_seqs max_blocks", INTS)
    shapes.check("seq_lens", seq_lens, "num_seqs", INTS)
    shapes.check("query_start_loc", query_start_loc, "num_boundaries", INTS)
    heads, kv_heads = shapes.size("num_heads"), shapes.size("num_kv_heads")
    if heads % kv_heads:
        raise ShapeError(
            f"Invalid shape of query: expected num_heads divisible by num_kv_heads={kv_heads}, got {heads}."
        )
    if window is not None and window < 1:
        raise ShapeError(f"Invalid window: expected at least 1 token or None, got {window}.")
    if soft_cap is not None and soft_cap <= 0:
        raise ShapeError(f"Invalid soft_cap: expected a positive number or None, got {soft_cap}.")
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
    kv_scales: Tensor | None = None,
    soft_cap: float | None = None,
) -> Tensor:
    """Causal attention of a ragged batch over its paged KV cache, which already holds this step's keys and values.

    Query `j` of the `m` of a sequence sits at position `seq_len - m + j` and sees the keys at positions up to its
    own, at most the latest `window` of them. Query head `h` reads KV head `h // (num_heads // num_kv_heads)`
    (grouped queries, Ainslie et al. 2023, https://arxiv.org/abs/2305.13245). Softmax and sums in float32.

    Args:
        query: [num_tokens, num_heads, head_dim], float32 | bfloat16 | float16, sequences one after the other.
        kv_cache: [2, num_blocks, num_kv_heads, block_size, head_dim], same dtype, int8 or float8_e4m3fn.
        block_table: [num_seqs, max_blocks], int32 | int64: block ids of each sequence, in order.
        seq_lens: [num_seqs], int32 | int64: tokens in the cache, this step's included.
        query_start_loc: [num_seqs + 1], int32 | int64: where each sequence's queries start in `query`.
        scale: Multiplies the scores, usually head_dim ** -0.5.
        window: How many latest positions a query sees, its own included; None sees all.
        kv_scales: [2, num_kv_heads], float32, what a cache of 8 bits is multiplied by; see `append_kv`.
        soft_cap: Bound of the scores, `tanh(score / soft_cap) * soft_cap` (Gemma 2, https://arxiv.org/abs/2408.00118);
            None leaves them.

    Returns:
        [num_tokens, num_heads, head_dim], same dtype.
    """
    out = torch.empty_like(query)
    bounds = query_start_loc.tolist()
    for i, seq_len in enumerate(seq_lens.tolist()):
        start, stop = bounds[i], bounds[i + 1]
        if start == stop:
            continue
        keys, values = _gather(kv_cache, block_table[i], seq_len, query.shape[1], kv_scales)
        scores = torch.einsum("qhd,khd->hqk", query[start:stop].float() * scale, keys)
        if soft_cap is not None:
            scores = (scores / soft_cap).tanh() * soft_cap
        at = torch.arange(seq_len - (stop - start), seq_len, device=query.device)[:, None]
        past = torch.arange(seq_len, device=query.device)[None, :]
        hidden = past > at if window is None else (past > at) | (past <= at - window)
        probs = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        out[start:stop] = torch.einsum("hqk,khd->qhd", probs, values).to(query.dtype)
    return out


def _gather(
    kv_cache: Tensor, blocks: Tensor, seq_len: int, num_heads: int, kv_scales: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return a sequence's keys and values, [seq_len, num_heads, head_dim] each, float32, KV heads repeated."""
    _, _, kv_heads, block_size, head_dim = kv_cache.shape
    used = blocks[: -(-seq_len // block_size)].long()
    rows = kv_cache[:, used].permute(0, 1, 3, 2, 4).reshape(2, -1, kv_heads, head_dim)[:, :seq_len].float()
    if kv_scales is not None:
        rows = rows * kv_scales[:, None, :, None]
    keys, values = rows.repeat_interleave(num_heads // kv_heads, dim=2)
    return keys, values
