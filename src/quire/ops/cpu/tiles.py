"""How a step of paged attention is cut: query tiles, key tiles, and the pairs of them that must be computed.

A query tile holds a few consecutive tokens of one sequence, padded; a key tile `KEY_TILE` consecutive positions from a
multiple of it. Positions are absolute, so where a key tile begins depends neither on chunking nor on neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Rows of a product: query tokens times the query heads that share a KV head. MKL sums 1 to 3 rows in an order that
# depends on how many products there are; 4 and more it did not, in batches of 2 to 96, with 1 to 4 threads.
SHORT_ROWS, LONG_ROWS = 4, 32
KEY_TILE = 128
# Pairs computed at once: large enough to pay for the calls, small enough for the second-level cache.
_PAIRS_BYTES = 1 << 20
# Results of pairs kept until they are joined. Without a limit they grow with the square of a prompt's length: 8.7 GB
# for 2,048 tokens of 32 heads of 128 at the end of 32,768.
_PART_BYTES = 1 << 25

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Pairs that are computed at once.

    Attributes:
        tile_of_pair: [num_pairs], int64: the query tile of each pair.
        blocks: [2 * num_pairs * blocks_per_key_tile], int64: what they read of the cache seen as [2 * num_blocks, ...],
            keys and then values; block 0 where there is none.
        bias: [num_pairs, 1, tile, 1, key_tile], float32, 0 or -inf; None if all of them see all.
    """

    tile_of_pair: Tensor
    blocks: Tensor
    bias: Tensor | None


@dataclass(frozen=True, slots=True)
class Tiles:
    """Some sequences of a step, cut.

    Attributes:
        tile: Tokens in a query tile.
        key_tile: Positions in a key tile.
        tokens: [num_tokens], int64: the tokens of the step that are in here; None for all of them in order.
        source: [num_tiles * num_kv_heads * tile * group], int64: which row of the queries, seen as [num_tokens *
            num_heads, head_dim], each row of the tiles holds; padding repeats token 0.
        target: [num_tokens * num_heads], int64: the row of the tiles that holds each of those.
        num_tiles: Query tiles.
        tile_of_pair: [num_pairs], int64.
        is_single: Whether every query tile has exactly one key tile, so that nothing needs joining.
        most_products: Products of a full chunk: its pairs times KV heads.
        chunks: The pairs, in order of tile, then position.
    """

    tile: int
    key_tile: int
    tokens: Tensor | None
    source: Tensor
    target: Tensor
    num_tiles: int
    tile_of_pair: Tensor
    is_single: bool
    most_products: int
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """A step's integers, as numpy int64.

    Attributes:
        starts: [num_seqs + 1]: where each sequence's queries start.
        seq_lens: [num_seqs].
        block_table: [num_seqs, max_blocks].
        num_heads: Query heads.
        cache_shape: Of the KV cache: 2, num_blocks, num_kv_heads, block_size, head_dim.
        window: How many latest positions a query sees; None sees all.
    """

    starts: Array
    seq_lens: Array
    block_table: Array
    num_heads: int
    cache_shape: tuple[int, ...]
    window: int | None

    @property
    def query_lens(self) -> Array:
        """Queries of each sequence."""
        lens: Array = np.diff(self.starts)
        return lens

    @property
    def block_size(self) -> int:
        """Tokens in a block."""
        return self.cache_shape[3]

    @property
    def tile_sizes(self) -> tuple[int, int]:
        """Tokens in a short and in a long query tile."""
        group = self.num_heads // self.cache_shape[2]
        return -(-SHORT_ROWS // group), -(-LONG_ROWS // group)

    def by_tile(self, only_short: bool = False) -> list[tuple[int, Array]]:
        """Return tokens in a query tile, and the sequences that are cut into such; those without queries nowhere."""
        short, long = self.tile_sizes
        is_long = (self.query_lens > 2 * short) & (not only_short)
        kinds = (short, np.flatnonzero((self.query_lens > 0) & ~is_long)), (long, np.flatnonzero(is_long))
        return [(tile, sequences) for tile, sequences in kinds if len(sequences)]

    @property
    def key_tile(self) -> int:
        """Positions in a key tile: whole blocks, next to `KEY_TILE`."""
        return max(1, KEY_TILE // self.block_size) * self.block_size

    @property
    def pairs_per_chunk(self) -> int:
        """Pairs that are computed at once."""
        _, _, num_kv_heads, _, head_dim = self.cache_shape
        return max(1, _PAIRS_BYTES // (self.key_tile * num_kv_heads * head_dim * 4))

    def pairs_per_part(self, tile: int) -> int:
        """Pairs whose results are kept until they are joined."""
        return max(1, _PART_BYTES // (tile * self.num_heads * (self.cache_shape[4] + 2) * 4))


@dataclass(frozen=True, slots=True)
class Queries:
    """Query tiles before they are paired.

    Attributes:
        sequence: [num_tiles]: which sequence.
        positions: [num_tiles, tile]: position of each row; padding repeats the tile's last, so that it hides no more.
        token_of_row: [num_tiles, tile]: token of the step, 0 for padding.
        is_query: [num_tiles, tile].
    """

    sequence: Array
    positions: Array
    token_of_row: Array
    is_query: Array

    def __getitem__(self, some: slice) -> Queries:
        return Queries(self.sequence[some], self.positions[some], self.token_of_row[some], self.is_query[some])


def cut(step: Step, sequences: Array, tile: int) -> tuple[Tiles, ...]:
    """Cut the queries of some sequences into tiles of `tile` tokens, and pair them with the keys they see.

    Args:
        step: All sequences.
        sequences: [n]: indices of those to cut, ascending, each with at least one query.
        tile: Tokens in a query tile.

    Returns:
        Parts to be computed one after the other, so that the results of pairs take a bounded amount of memory.
    """
    queries = cut_queries(step, sequences, tile)
    low, count = keys_of_tiles(step, queries)
    parts = cut_parts(count, step.pairs_per_part(tile))
    is_all = len(parts) == 1 and int(queries.is_query.sum()) == step.starts[-1]
    return tuple(_part(step, queries[some], low[some], count[some], is_all) for some in parts)


def keys_of_tiles(step: Step, queries: Queries) -> tuple[Array, Array]:
    """Return index of the first key tile that each query tile sees, and their number."""
    first, last = queries.positions[:, 0], queries.positions[:, -1]
    low = np.zeros_like(first) if step.window is None else np.maximum(first - step.window + 1, 0) // step.key_tile
    return low, last // step.key_tile - low + 1


def cut_parts(count: Array, most: int) -> list[slice]:
    """Cut query tiles into runs of at most `most` pairs, or of one tile that has more."""
    ends, parts, start = np.cumsum(count), [], 0
    while start < len(count):
        done = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + most, side="right")))
        parts.append(slice(start, stop))
        start = stop
    return parts


def pair_up(low: Array, count: Array) -> tuple[Array, Array]:
    """Return query tile and key tile of each pair, each [num_pairs]."""
    tile_of_pair = np.repeat(np.arange(len(count)), count)
    return tile_of_pair, np.arange(len(tile_of_pair)) - np.repeat(np.cumsum(count) - count - low, count)


def _part(step: Step, queries: Queries, low: Array, count: Array, is_all: bool) -> Tiles:
    tile_of_pair, key_index = pair_up(low, count)
    size = step.pairs_per_chunk
    chunks = tuple(
        _chunk(step, queries, tile_of_pair[i : i + size], key_index[i : i + size])
        for i in range(0, len(tile_of_pair), size)
    )
    return Tiles(
        queries.positions.shape[1],
        step.key_tile,
        None if is_all else torch.from_numpy(queries.token_of_row[queries.is_query]),
        *_source_and_target(step, queries),
        len(count),
        torch.from_numpy(tile_of_pair),
        bool((count == 1).all()),
        size * step.cache_shape[2],
        chunks,
    )


def cut_queries(step: Step, sequences: Array, tile: int) -> Queries:
    """Cut the queries of some sequences into tiles; see `cut`."""
    lengths = step.query_lens[sequences]
    per_sequence = -(-lengths // tile)
    local = np.repeat(np.arange(len(sequences)), per_sequence)
    index = np.arange(len(local)) - np.repeat(np.cumsum(per_sequence) - per_sequence, per_sequence)
    offset = index[:, None] * tile + np.arange(tile)[None, :]
    is_query = offset < lengths[local][:, None]
    sequence = sequences[local]
    token_of_row = np.where(is_query, step.starts[sequence][:, None] + offset, 0)
    base = (step.seq_lens - step.query_lens)[sequence][:, None]
    return Queries(sequence, base + np.minimum(offset, lengths[local][:, None] - 1), token_of_row, is_query)


def _chunk(step: Step, queries: Queries, tile_of_pair: Array, key_index: Array) -> Chunk:
    """Return some pairs with the blocks that they read and what hides keys from them."""
    per_tile = step.key_tile // step.block_size
    column = key_index[:, None] * per_tile + np.arange(per_tile)[None, :]
    inside = column < step.block_table.shape[1]
    row = queries.sequence[tile_of_pair][:, None]
    # Block 0, which is never anybody's, stands in past a table's end.
    blocks = np.where(inside, step.block_table[row, np.where(inside, column, 0)], 0)
    bias = _bias(step, queries.positions[tile_of_pair], key_index * step.key_tile)
    both = np.concatenate((blocks, blocks + step.cache_shape[1]))
    return Chunk(torch.from_numpy(tile_of_pair), torch.from_numpy(both.reshape(-1)), bias)


def _source_and_target(step: Step, queries: Queries) -> tuple[Tensor, Tensor]:
    """Return where the tiles' rows [num_tiles, num_kv_heads, tile, group] come from, and where each query went."""
    num_kv_heads = step.cache_shape[2]
    group = step.num_heads // num_kv_heads
    head = np.arange(step.num_heads).reshape(1, num_kv_heads, 1, group)
    source = queries.token_of_row[:, None, :, None] * step.num_heads + head
    row = np.arange(source.size).reshape(source.shape).transpose(0, 2, 1, 3)
    return torch.from_numpy(source.reshape(-1)), torch.from_numpy(row[queries.is_query].reshape(-1))


def needs_bias(step: Step, positions: Array, start: Array) -> Array:
    """Return of each pair whether some row of it must not see all of its keys.

    Args:
        step: The step.
        positions: [num_pairs, tile]: of the query tile.
        start: [num_pairs]: first position of the key tile.
    """
    needs: Array = start + step.key_tile - 1 > positions[:, 0]
    return needs if step.window is None else needs | (start <= positions[:, -1] - step.window)


def _bias(step: Step, positions: Array, start: Array) -> Tensor | None:
    """Return what to add to scores so that each row sees only its own past, or None if all see all of these keys."""
    if not needs_bias(step, positions, start).any():
        return None
    at = torch.from_numpy(positions)[:, None, :, None, None]
    key = torch.from_numpy(start)[:, None, None, None, None] + torch.arange(step.key_tile)
    unseen = key > at if step.window is None else (key > at) | (key <= at - step.window)
    return torch.zeros(unseen.shape).masked_fill_(unseen, float("-inf"))
