"""Paged attention in tiles of fixed size, so that a query's bits do not depend on what is computed beside it.

Every pair of a query tile and a key tile (`tiles.py`) is a product of fixed shape in float32; the pairs of a query tile
are then joined in order of position, as flash attention does (Dao et al. 2022, https://arxiv.org/abs/2205.14135). A key
tile that a query does not see contributes exact zeros, so neither chunking nor neighbours change a sum.

Short query tiles serve decoding, where most rows of a long one would be padding; long ones serve prompts. A sequence
gets long tiles only after they have reproduced the short ones' bits for random data of its shape on this machine.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from quire.ops.attention import quantize_kv
from quire.ops.cpu.tiles import LONG_ROWS, Chunk, Step, Tiles, cut
from quire.ops.spec import TensorLike, num_bytes, sizes_of

_LOWEST = -3.0e38
_KEEPS_BITS: dict[tuple[int, ...], bool] = {}
_NUMBER_IS_FREE: dict[tuple[int, ...], bool] = {}


def tiles(
    query: Tensor,
    kv_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    query_start_loc: Tensor,
    scale: float,
    window: int | None,
    kv_scales: Tensor | None = None,
    soft_cap: float | None = None,
) -> tuple[Tiles, ...]:
    """Cut a step; reads only shapes of `query` and `kv_cache`."""
    _, _, num_kv_heads, block_size, head_dim = kv_cache.shape
    group = query.shape[1] // num_kv_heads
    starts, lens, table = (t.numpy().astype(np.int64) for t in (query_start_loc, seq_lens, block_table))
    step = Step(starts, lens, table, query.shape[1], tuple(kv_cache.shape), window)
    kinds = step.by_tile(only_short=not long_keeps_bits(group, head_dim, block_size))
    return tuple(part for tile, sequences in kinds for part in cut(step, sequences, tile))


def attention(
    query: Tensor,
    kv_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    query_start_loc: Tensor,
    scale: float,
    window: int | None,
    kv_scales: Tensor | None = None,
    soft_cap: float | None = None,
    *,
    prepared: tuple[Tiles, ...],
) -> Tensor:
    """Attend; see `ops.attention.attention`."""
    scaled = torch.empty(query.shape).copy_(query).mul_(scale)
    if len(prepared) == 1 and prepared[0].tokens is None:
        return _attend(scaled, kv_cache, prepared[0], kv_scales, soft_cap).to(query.dtype)
    out = torch.empty(query.shape, dtype=query.dtype)
    for part in prepared:
        assert part.tokens is not None
        out.index_copy_(0, part.tokens, _attend(scaled, kv_cache, part, kv_scales, soft_cap).to(query.dtype))
    return out


def _attend(
    scaled: Tensor, kv_cache: Tensor, part: Tiles, kv_scales: Tensor | None = None, soft_cap: float | None = None
) -> Tensor:
    """Return the results of the part's tokens, [num_tokens, num_heads, head_dim], from scaled queries in float32.

    The scales of a cache of 8 bits are one number a head, so they go to the queries and to the result.
    """
    _, num_heads, head_dim = scaled.shape
    num_kv_heads = kv_cache.shape[2]
    num_rows = part.tile * (num_heads // num_kv_heads)
    rows = scaled.view(-1, head_dim).index_select(0, part.source)
    rows = rows.view(part.num_tiles, num_kv_heads, num_rows, head_dim)
    if kv_scales is not None:
        rows = rows.mul_(kv_scales[0].view(-1, 1, 1))
    out, peak, total = _all_pairs(rows, kv_cache, part, soft_cap)
    if not part.is_single:
        out, total = _join(out, peak, total, part)
    if kv_scales is not None:
        out = out.mul_(kv_scales[1].view(-1, 1, 1))
    return out.div_(total).view(-1, head_dim).index_select(0, part.target).view(-1, num_heads, head_dim)


def _all_pairs(rows: Tensor, kv_cache: Tensor, part: Tiles, soft_cap: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the pairs of a part, chunk by chunk; returns as `_pairs`."""
    if len(part.chunks) == 1:
        return _pairs(rows, kv_cache, part.chunks[0], part, soft_cap)
    shape = (len(part.tile_of_pair), *rows.shape[1:3])
    out, peak, total = (torch.empty(*shape, width) for width in (rows.shape[3], 1, 1))
    start = 0
    for chunk in part.chunks:
        some = slice(start, start + len(chunk.tile_of_pair))
        out[some], peak[some], total[some] = _pairs(rows, kv_cache, chunk, part, soft_cap)
        start = some.stop
    return out, peak, total


def _pairs(
    rows: Tensor, kv_cache: Tensor, chunk: Chunk, part: Tiles, soft_cap: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute some pairs.

    Returns:
        Sums of weighted values [num_pairs, num_kv_heads, num_rows, head_dim], peaks and sums of weights, with 1 for
        head_dim.
    """
    _, num_kv_heads, num_rows, head_dim = rows.shape
    keys, values = _key_tiles(kv_cache, chunk.blocks, part.key_tile)
    queries = rows.index_select(0, chunk.tile_of_pair).view(-1, num_rows, head_dim)
    scores = _products(queries, keys.transpose(1, 2), part.most_products)
    if soft_cap is not None:
        scores.div_(soft_cap).tanh_().mul_(soft_cap)
    if chunk.bias is not None:
        scores.view(-1, num_kv_heads, part.tile, num_rows // part.tile, part.key_tile).add_(chunk.bias)
    peak = scores.amax(-1, keepdim=True).clamp_(min=_LOWEST)
    weights = scores.sub_(peak).exp_()
    out = _products(weights, values, part.most_products)
    shape = (-1, num_kv_heads, num_rows, 1)
    return out.view(-1, num_kv_heads, num_rows, head_dim), peak.view(shape), weights.sum(-1).view(shape)


def _products(a: Tensor, b: Tensor, most: int) -> Tensor:
    """Return the batched product, padded so that its bits do not depend on how many products there are.

    Args:
        a: [num_products, num_rows, inner], float32.
        b: [num_products, inner, num_columns], float32.
        most: Products of a full chunk.
    """
    count = a.shape[0]
    # A single product may be split over threads (seen: MKL with three and more); one of several is not.
    least = min(2, most) if _number_is_free(a.shape[1], a.shape[2], b.shape[2]) else most
    if count >= least:
        return torch.bmm(a, b)
    repeats = -(-least // count)
    return torch.bmm(a.repeat(repeats, 1, 1)[:least], b.repeat(repeats, 1, 1)[:least])[:count]


def _number_is_free(rows: int, inner: int, columns: int) -> bool:
    """Prove once per shape and number of threads that 2 and more products each get the same bits in any number."""
    key = (rows, inner, columns, torch.get_num_threads())
    if key not in _NUMBER_IS_FREE:
        generator = torch.Generator().manual_seed(0)
        a = torch.randn(64, rows, inner, generator=generator)
        b = torch.randn(64, inner, columns, generator=generator)
        together = torch.bmm(a, b)
        _NUMBER_IS_FREE[key] = all(
            torch.equal(torch.bmm(a[3 : 3 + n], b[3 : 3 + n]), together[3 : 3 + n]) for n in (2, 3, 4, 7, 16, 33)
        )
    return _NUMBER_IS_FREE[key]


def _key_tiles(kv_cache: Tensor, blocks: Tensor, key_tile: int) -> tuple[Tensor, Tensor]:
    """Gather keys and values, each [num_pairs * num_kv_heads, key_tile, head_dim] in float32."""
    _, _, num_kv_heads, block_size, head_dim = kv_cache.shape
    per_tile = key_tile // block_size
    gathered = kv_cache.view(-1, num_kv_heads, block_size, head_dim).index_select(0, blocks)
    gathered = gathered.view(-1, per_tile, num_kv_heads, block_size, head_dim).transpose(1, 2)
    wide = torch.empty(gathered.shape).copy_(gathered).view(2, -1, key_tile, head_dim)
    return wide[0], wide[1]


def _join(out: Tensor, peak: Tensor, total: Tensor, part: Tiles) -> tuple[Tensor, Tensor]:
    """Add up the pairs of each query tile in order of position, scaled to their common peak."""
    highest = torch.full((part.num_tiles, *peak.shape[1:]), _LOWEST)
    index = part.tile_of_pair.view(-1, 1, 1, 1).expand_as(peak)
    highest.scatter_reduce_(0, index, peak, "amax")
    factor = (peak - highest.index_select(0, part.tile_of_pair)).exp_()
    joined = out.new_zeros(part.num_tiles, *out.shape[1:]).index_add_(0, part.tile_of_pair, out.mul_(factor))
    sums = total.new_zeros(part.num_tiles, *total.shape[1:]).index_add_(0, part.tile_of_pair, total * factor)
    return joined, sums


def long_keeps_bits(group: int, head_dim: int, block_size: int) -> bool:
    """Compare long with short query tiles once per shape and number of threads, for random data.

    In which order a product sums depends on its shape and the threads, never on values: one proof holds for all data.
    """
    key = (group, head_dim, block_size, torch.get_num_threads())
    if key not in _KEEPS_BITS:
        generator = torch.Generator().manual_seed(0)
        lens = np.array([2 * LONG_ROWS + 3, 300], dtype=np.int64)
        num_blocks = -(-int(lens.max()) // block_size)
        query = torch.randn(int(lens.sum()), 2 * group, head_dim, generator=generator)
        cache = torch.randn(2, 2 * num_blocks + 1, 2, block_size, head_dim, generator=generator)
        table = np.arange(1, 2 * num_blocks + 1, dtype=np.int64).reshape(2, num_blocks)
        step = Step(np.array([0, lens[0], lens.sum()]), lens, table, 2 * group, tuple(cache.shape), None)
        cuts = (cut(step, np.arange(2), tile) for tile in step.tile_sizes)
        short, long = (torch.cat([_attend(query, cache, part) for part in parts]) for parts in cuts)
        _KEEPS_BITS[key] = torch.equal(short, long)
    return _KEEPS_BITS[key]


def slots(
    key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor, kv_scales: Tensor | None = None
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Split slots into the tokens to keep (None: all), their blocks and their offsets."""
    block_size = kv_cache.shape[3]
    kept = None
    if bool((slot_mapping < 0).any()):
        kept = torch.nonzero(slot_mapping >= 0).view(-1)
        slot_mapping = slot_mapping[kept]
    flat = slot_mapping.long()
    return kept, flat // block_size, flat % block_size


def append_kv(
    key: Tensor,
    value: Tensor,
    kv_cache: Tensor,
    slot_mapping: Tensor,
    kv_scales: Tensor | None = None,
    *,
    prepared: tuple[Tensor | None, Tensor, Tensor],
) -> None:
    """Write keys and values into their slots; see `ops.attention.append_kv`."""
    kept, blocks, offsets = prepared
    if kept is not None:
        key, value = key[kept], value[kept]
    if kv_scales is not None:
        key, value = quantize_kv(key, value, kv_scales, kv_cache.dtype)
    kv_cache[0][blocks, :, offsets] = key
    kv_cache[1][blocks, :, offsets] = value


def slots_bytes(slot_mapping: TensorLike, **rest: object) -> tuple[int, int]:
    """Return the bytes of `slots` when there is no padding, and the most that making them takes."""
    flat = 8 * sizes_of(slot_mapping)[0]
    return 2 * flat, 3 * flat


def append_kv_bytes(key: TensorLike, kv_scales: TensorLike | None = None, **rest: object) -> int:
    """Return the most bytes that `append_kv` holds: for a cache of 8 bits what is rounded and what it is rounded to."""
    return 0 if kv_scales is None else 2 * num_bytes(key, torch.float32) + 2 * num_bytes(key, torch.int8)
