"""What paged attention holds in the worst step: from the same cuts as `tiles.py` makes, without their tensors.

Sizes, by the letters below: N query tiles of t tokens, P pairs of a query and a key tile, C pairs of a chunk, H query
heads, K KV heads, D head_dim, k positions of a key tile, and R = t * H rows of a query tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from quire.ops.cpu.attention import long_keeps_bits
from quire.ops.cpu.tiles import (
    SHORT_ROWS,
    Array,
    Queries,
    Step,
    cut_parts,
    cut_queries,
    keys_of_tiles,
    needs_bias,
    pair_up,
)
from quire.ops.spec import TensorLike, sizes_of


@dataclass(frozen=True, slots=True)
class StepBytes:
    """What a step's attention holds.

    Attributes:
        prepared: Tiles, from the first layer to the end of the step.
        preparing: Most bytes at once while they are cut, they themselves included.
        running: Most bytes at once while a layer runs, its result included.
    """

    prepared: int = 0
    preparing: int = 0
    running: int = 0

    def worst(self, other: StepBytes) -> StepBytes:
        """Return the larger of each."""
        pairs = ((self.prepared, other.prepared), (self.preparing, other.preparing), (self.running, other.running))
        return StepBytes(*map(max, pairs))


@dataclass(frozen=True, slots=True)
class _Part:
    """Counts of one part; letters as above."""

    tile: int
    num_tokens: int
    num_tiles: int
    num_pairs: int
    num_biased: int  # pairs in chunks that have a bias
    is_single: bool


def worst_step(query: TensorLike, kv_cache: TensorLike, block_table: TensorLike, window: int | None) -> StepBytes:
    """Return the most that any step holds of as many tokens and sequences as these, of at most the table's length.

    Args:
        query: [num_tokens, num_heads, head_dim].
        kv_cache: [2, num_blocks, num_kv_heads, block_size, head_dim].
        block_table: [num_seqs, max_blocks].
        window: How many latest positions a query sees; None sees all.
    """
    num_tokens, num_heads, _ = sizes_of(query)
    num_seqs, max_blocks = sizes_of(block_table)
    cache_shape, itemsizes = sizes_of(kv_cache), (query.dtype.itemsize, kv_cache.dtype.itemsize)
    return _worst_step(num_tokens, num_seqs, max_blocks, num_heads, cache_shape, itemsizes, window)


@lru_cache(maxsize=64)
def _worst_step(
    num_tokens: int,
    num_seqs: int,
    max_blocks: int,
    num_heads: int,
    cache_shape: tuple[int, ...],
    itemsizes: tuple[int, int],
    window: int | None,
) -> StepBytes:
    worst = StepBytes()
    longest = max_blocks * cache_shape[3]
    for query_lens in worst_candidates(num_tokens, num_seqs, longest, num_heads // cache_shape[2]):
        seq_lens = np.maximum(query_lens, longest - 1)  # the last position of a key tile sees all of it, without a mask
        step = Step(np.append(0, np.cumsum(query_lens)), seq_lens, _NO_TABLE, num_heads, cache_shape, window)
        worst = worst.worst(step_bytes(step, max_blocks, itemsizes))
    return worst


_NO_TABLE: Array = np.empty((0, 0), dtype=np.int64)


def worst_candidates(num_tokens: int, num_seqs: int, longest: int, group: int) -> Iterator[Array]:
    """Yield the queries of each sequence in the steps of which one is the worst.

    They are the corners: prompts alone, as few as there can be; decoding with one prompt beside it; all sequences
    alike; as many as possible with two short tiles; and just too long for that, so that long tiles are mostly padding.
    """
    num_seqs = min(num_seqs, num_tokens)
    short = -(-SHORT_ROWS // group)
    for count in dict.fromkeys((1, num_tokens // num_seqs, 2 * short, 2 * short + 1)):
        alike = np.full(min(num_seqs, num_tokens // count), min(count, longest), dtype=np.int64)
        yield _fill(alike[:-1], num_tokens, num_seqs, longest)
    yield _fill(alike[:0], num_tokens, num_seqs, longest)


def _fill(some: Array, num_tokens: int, num_seqs: int, longest: int) -> Array:
    """Return sequences with as few others as take the rest of the tokens."""
    left, room = num_tokens - int(some.sum()), num_seqs - len(some)
    full = min(left // longest, room)
    rest = [left - full * longest] if full < room and left % longest else []
    return np.concatenate((some, np.full(full, longest, dtype=np.int64), np.array(rest, dtype=np.int64)))


def step_bytes(step: Step, max_blocks: int, itemsizes: tuple[int, int]) -> StepBytes:
    """Return what one step holds.

    Args:
        step: The step; its block table is not read.
        max_blocks: Width of its block table.
        itemsizes: Bytes of an element of queries and of the cache.
    """
    parts = list(_parts(step))
    prepared = sum(_prepared(step, part, is_all=len(parts) == 1) for part in parts)
    # Positions, tokens, whether there is one, and what they are made from; a row of the table for each sequence.
    cutting = 42 * sum(part.num_tiles * part.tile for part in parts) + 8 * len(step.seq_lens) * max_blocks
    preparing = prepared + cutting + max((_preparing(step, part) for part in parts), default=0)
    num_rows, head_dim = int(step.starts[-1]) * step.num_heads, step.cache_shape[4]
    held = num_rows * head_dim * (4 + (itemsizes[0] if len(parts) > 1 else 0))  # scaled queries, and the result
    return StepBytes(prepared, preparing, held + max((_running(step, part, itemsizes) for part in parts), default=0))


def _parts(step: Step) -> Iterator[_Part]:
    _, _, num_kv_heads, block_size, head_dim = step.cache_shape
    only_short = not long_keeps_bits(step.num_heads // num_kv_heads, head_dim, block_size)
    for tile, sequences in step.by_tile(only_short):
        queries = cut_queries(step, sequences, tile)
        low, count = keys_of_tiles(step, queries)
        for some in cut_parts(count, step.pairs_per_part(tile)):
            yield _part(step, queries[some], low[some], count[some])


def _part(step: Step, queries: Queries, low: Array, count: Array) -> _Part:
    tile_of_pair, key_index = pair_up(low, count)
    needs, size = needs_bias(step, queries.positions[tile_of_pair], key_index * step.key_tile), step.pairs_per_chunk
    starts = np.arange(0, len(needs), size)
    biased = np.logical_or.reduceat(needs, starts)
    sizes = np.minimum(starts + size, len(needs)) - starts
    return _Part(
        queries.positions.shape[1],
        int(queries.is_query.sum()),
        len(count),
        len(needs),
        int(sizes[biased].sum()),
        bool((count == 1).all()),
    )


def _prepared(step: Step, part: _Part, *, is_all: bool) -> int:
    """Return the bytes of a `Tiles`: tokens, source, target, tile_of_pair, blocks, bias."""
    tokens = (0 if is_all else 1) + step.num_heads  # and the target
    indices = part.num_tokens * tokens + part.num_tiles * part.tile * step.num_heads
    indices += part.num_pairs * (1 + 2 * (step.key_tile // step.block_size))
    return 8 * indices + 4 * part.num_biased * part.tile * step.key_tile


def _preparing(step: Step, part: _Part) -> int:
    """Return what cutting a part needs beside the result: pairs, rows of its tiles, and the masks of one chunk."""
    size = min(step.pairs_per_chunk, part.num_pairs)
    masks = 3 * size * part.tile * step.key_tile
    return 32 * part.num_pairs + 8 * part.num_tiles * part.tile * step.num_heads + masks


def _running(step: Step, part: _Part, itemsizes: tuple[int, int]) -> int:
    """Return what computing a part holds beside the scaled queries and the step's result."""
    _, _, num_kv_heads, _, head_dim = step.cache_shape
    size = min(step.pairs_per_chunk, part.num_pairs)
    row = part.tile * step.num_heads * 4  # R float32
    keys = size * step.key_tile * num_kv_heads * head_dim  # elements of the keys of a chunk
    gathering = 2 * keys * (itemsizes[1] + 4)
    multiplying = 2 * keys * 4 + size * row * (step.key_tile + 2 * head_dim + 2)
    pairs = part.num_pairs * row * (head_dim + 2)  # sums, peaks, totals
    computing = max(gathering, multiplying) + (pairs if size < part.num_pairs else 0)
    joined = 0 if part.is_single else part.num_tiles * row * (head_dim + 2)
    joining = 0 if part.is_single else pairs + joined + part.num_pairs * row * 2
    rows = part.num_tiles * row * head_dim
    results = part.num_tokens * step.num_heads * head_dim
    leaving = (joined + part.num_pairs * row if joined else pairs) + results * 4
    return max(rows + computing, rows + joining, rows + leaving, results * (4 + itemsizes[0]))


def attention_bytes(
    query: TensorLike, kv_cache: TensorLike, block_table: TensorLike, window: int | None, **rest: object
) -> int:
    """Return the most bytes that `attention` holds in the worst step."""
    return worst_step(query, kv_cache, block_table, window).running


def tiles_bytes(
    query: TensorLike, kv_cache: TensorLike, block_table: TensorLike, window: int | None, **rest: object
) -> tuple[int, int]:
    """Return the bytes of `tiles` in the worst step, and the most that cutting them takes."""
    worst = worst_step(query, kv_cache, block_table, window)
    return worst.prepared, worst.preparing
