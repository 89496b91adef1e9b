"""Paged attention in tiles of fixed size, so that a query's bits do not depend on what is computed beside it.

A query tile holds `query_tile(group)` tokens of one sequence (padded), a key tile `KEY_TILE` consecutive positions from
a multiple of it. Every (query tile, key tile) pair is a product of fixed shape in float32; the pairs of a query tile
are then joined in order of position, as flash attention does (Dao et al. 2022, https://arxiv.org/abs/2205.14135). A
key tile that a query does not see contributes exact zeros, so neither chunking nor neighbours change a sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

KEY_TILE = 128
# At least 8 rows in every product: below, MKL picks kernels that sum in another order (seen with 1 to 7 rows).
TILE_ROWS = 16
# Pairs computed at once: large enough to pay for the calls, small enough for the second-level cache.
_PAIRS_BYTES = 1 << 20
_LOWEST = -3.0e38


def query_tile(group: int) -> int:
    """Return the tokens of a query tile when `group` query heads share a KV head."""
    return -(-TILE_ROWS // group)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Pairs that are computed at once.

    Attributes:
        pairs: Slice of all pairs.
        tile_of_pair: [num_pairs], int64: the query tile of each pair.
        blocks: [num_pairs * blocks_per_key_tile], int64: the KV cache blocks they read; 0 where there is none.
        bias: [num_pairs, 1, query_tile, 1, key_tile], float32, 0 or -inf; None if all of them see all.
    """

    pairs: slice
    tile_of_pair: Tensor
    blocks: Tensor
    bias: Tensor | None


@dataclass(frozen=True, slots=True)
class Tiles:
    """How a step's queries and keys are cut, shared by all layers with the same window.

    Attributes:
        token_of_row: [num_tiles * query_tile], int64: the token behind each tile row; padding repeats token 0.
        row_of_token: [num_tokens], int64: where each token went.
        num_tiles: Query tiles.
        tile_of_pair: [num_pairs], int64.
        is_single: Whether every query tile has exactly one key tile, so that nothing needs joining.
        chunks: The pairs, in order.
    """

    token_of_row: Tensor
    row_of_token: Tensor
    num_tiles: int
    tile_of_pair: Tensor
    is_single: bool
    chunks: tuple[Chunk, ...]


def tiles(
    query: Tensor,
    kv_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    query_start_loc: Tensor,
    scale: float,
    window: int | None,
) -> Tiles:
    """Cut a step into tiles and pairs; reads only shapes of `query` and `kv_cache`."""
    _, _, num_kv_heads, block_size, head_dim = kv_cache.shape
    tile = query_tile(query.shape[1] // num_kv_heads)
    key_tile = key_tile_tokens(block_size)
    cut = _cut_queries(query_start_loc.numpy().astype(np.int64), seq_lens.numpy().astype(np.int64), tile)
    first_key = np.zeros_like(cut.first) if window is None else np.maximum(cut.first - window + 1, 0)
    low, high = first_key // key_tile, cut.last // key_tile
    count = high - low + 1
    tile_of_pair = np.repeat(np.arange(len(count)), count)
    key_index = np.arange(len(tile_of_pair)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(low, count)
    blocks = _blocks_of(block_table.numpy(), cut.sequence[tile_of_pair], key_index, key_tile // block_size)
    hidden = _needs_bias(cut, tile_of_pair, key_index, key_tile, tile, window)
    size = max(1, _PAIRS_BYTES // (num_kv_heads * key_tile * head_dim * 4))
    chunks = tuple(
        _chunk(
            slice(i, min(i + size, len(tile_of_pair))), tile_of_pair, blocks, cut, key_index, key_tile, window, hidden
        )
        for i in range(0, len(tile_of_pair), size)
    )
    return Tiles(
        torch.from_numpy(cut.token_of_row.reshape(-1)),
        torch.from_numpy(cut.row_of_token),
        len(count),
        torch.from_numpy(tile_of_pair),
        bool((count == 1).all()),
        chunks,
    )


@dataclass(frozen=True, slots=True)
class _Cut:
    sequence: np.ndarray  # [num_tiles]: which sequence
    first: np.ndarray  # [num_tiles]: position of the first query
    last: np.ndarray  # [num_tiles]: position of the last query
    positions: np.ndarray  # [num_tiles, tile]: position of each row, -1 for padding
    token_of_row: np.ndarray  # [num_tiles, tile]
    row_of_token: np.ndarray  # [num_tokens]


def _cut_queries(starts: np.ndarray, seq_lens: np.ndarray, tile: int) -> _Cut:
    lengths = np.diff(starts)
    per_sequence = -(-lengths // tile)
    sequence = np.repeat(np.arange(len(lengths)), per_sequence)
    index = np.arange(len(sequence)) - np.repeat(np.cumsum(per_sequence) - per_sequence, per_sequence)
    offset = index[:, None] * tile + np.arange(tile)[None, :]
    is_query = offset < lengths[sequence][:, None]
    base = (seq_lens - lengths)[sequence][:, None]
    token_of_row = np.where(is_query, starts[:-1][sequence][:, None] + offset, 0)
    positions = np.where(is_query, base + offset, -1)
    row_of_token = np.flatnonzero(is_query)
    return _Cut(sequence, positions[:, 0], positions.max(1, initial=0), positions, token_of_row, row_of_token)


def _blocks_of(table: np.ndarray, sequence: np.ndarray, key_index: np.ndarray, per_tile: int) -> np.ndarray:
    """Return [num_pairs, per_tile] block ids; block 0, which is never anybody's, stands in past a table's end."""
    column = key_index[:, None] * per_tile + np.arange(per_tile)[None, :]
    inside = column < table.shape[1]
    found: np.ndarray = np.where(inside, table[sequence[:, None], np.where(inside, column, 0)], 0).astype(np.int64)
    return found


def _needs_bias(
    cut: _Cut, tile_of_pair: np.ndarray, key_index: np.ndarray, key_tile: int, tile: int, window: int | None
) -> np.ndarray:
    """Return for each pair whether any of its rows does not see any of its keys."""
    first, start = cut.first[tile_of_pair], key_index * key_tile
    needs: np.ndarray = (start + key_tile - 1 > first) | (cut.positions[tile_of_pair, -1] < 0)
    if window is not None:
        needs |= start <= first + tile - 1 - window
    return needs


def _chunk(
    pairs: slice,
    tile_of_pair: np.ndarray,
    blocks: np.ndarray,
    cut: _Cut,
    key_index: np.ndarray,
    key_tile: int,
    window: int | None,
    hidden: np.ndarray,
) -> Chunk:
    bias = None
    if hidden[pairs].any():
        at = torch.from_numpy(cut.positions[tile_of_pair[pairs]])[:, None, :, None, None]
        key = torch.from_numpy(key_index[pairs])[:, None, None, None, None] * key_tile + torch.arange(key_tile)
        unseen = key > at if window is None else (key > at) | (key <= at - window)
        bias = torch.zeros(unseen.shape).masked_fill_(unseen, float("-inf"))
    return Chunk(pairs, torch.from_numpy(tile_of_pair[pairs]), torch.from_numpy(blocks[pairs].reshape(-1)), bias)


def key_tile_tokens(block_size: int) -> int:
    """Return the positions in a key tile: the multiple of the block size next to `KEY_TILE`, at least one block."""
    return max(1, KEY_TILE // block_size) * block_size


def attention(
    query: Tensor,
    kv_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    query_start_loc: Tensor,
    scale: float,
    window: int | None,
    prepared: Tiles,
) -> Tensor:
    """Attend; see `ops.attention.attention`."""
    num_tokens, num_heads, head_dim = query.shape
    _, _, num_kv_heads, block_size, _ = kv_cache.shape
    group = num_heads // num_kv_heads
    tile, key_tile = query_tile(group), key_tile_tokens(block_size)
    if num_tokens == 0:
        return torch.empty_like(query)
    rows = (query.float() * scale).index_select(0, prepared.token_of_row)
    rows = rows.view(-1, tile, num_kv_heads, group, head_dim).permute(0, 2, 1, 3, 4)
    rows = rows.reshape(-1, num_kv_heads, tile * group, head_dim)
    num_pairs = prepared.tile_of_pair.shape[0]
    out = torch.empty(num_pairs, num_kv_heads, tile * group, head_dim)
    peak = torch.empty(num_pairs, num_kv_heads, tile * group, 1)
    total = torch.empty_like(peak)
    for chunk in prepared.chunks:
        keys = _key_tiles(kv_cache[0], chunk.blocks, key_tile)
        queries = rows.index_select(0, chunk.tile_of_pair).view(-1, tile * group, head_dim)
        scores = torch.bmm(queries, keys.transpose(1, 2))
        if chunk.bias is not None:
            scores.view(-1, num_kv_heads, tile, group, key_tile).add_(chunk.bias)
        highest = scores.amax(-1, keepdim=True).clamp_(min=_LOWEST)
        weights = scores.sub_(highest).exp_()
        shape = (-1, num_kv_heads, tile * group, 1)
        peak[chunk.pairs] = highest.view(shape)
        total[chunk.pairs] = weights.sum(-1, keepdim=True).view(shape)
        out[chunk.pairs] = torch.bmm(weights, _key_tiles(kv_cache[1], chunk.blocks, key_tile)).view(
            -1, num_kv_heads, tile * group, head_dim
        )
    if not prepared.is_single:
        out, total = _join(out, peak, total, prepared)
    out = (out / total).view(-1, num_kv_heads, tile, group, head_dim).permute(0, 2, 1, 3, 4)
    return out.reshape(-1, num_heads, head_dim).index_select(0, prepared.row_of_token).to(query.dtype)


def _key_tiles(cache: Tensor, blocks: Tensor, key_tile: int) -> Tensor:
    """Gather [num_pairs * num_kv_heads, key_tile, head_dim] in float32 from [num_blocks, heads, block_size, dim]."""
    _, num_kv_heads, block_size, head_dim = cache.shape
    gathered = cache.index_select(0, blocks).view(-1, key_tile // block_size, num_kv_heads, block_size, head_dim)
    out = torch.empty(gathered.shape[0], num_kv_heads, key_tile // block_size, block_size, head_dim)
    out.copy_(gathered.transpose(1, 2))
    return out.view(-1, key_tile, head_dim)


def _join(out: Tensor, peak: Tensor, total: Tensor, prepared: Tiles) -> tuple[Tensor, Tensor]:
    """Add up the pairs of each query tile in order of position, scaled to their common peak."""
    tile_of_pair, num_tiles = prepared.tile_of_pair, prepared.num_tiles
    highest = torch.full((num_tiles, *peak.shape[1:]), _LOWEST)
    index = tile_of_pair.view(-1, 1, 1, 1).expand_as(peak)
    highest.scatter_reduce_(0, index, peak, "amax")
    factor = peak.sub_(highest.index_select(0, tile_of_pair)).exp_()
    joined = out.new_zeros(num_tiles, *out.shape[1:]).index_add_(0, tile_of_pair, out.mul_(factor))
    sums = total.new_zeros(num_tiles, *total.shape[1:]).index_add_(0, tile_of_pair, total.mul_(factor))
    return joined, sums


def slots(key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
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
    prepared: tuple[Tensor | None, Tensor, Tensor],
) -> None:
    """Write keys and values into their slots; see `ops.attention.append_kv`."""
    kept, blocks, offsets = prepared
    if kept is not None:
        key, value = key[kept], value[kept]
    kv_cache[0][blocks, :, offsets] = key
    kv_cache[1][blocks, :, offsets] = value
