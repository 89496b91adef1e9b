"""A step's attention cut into work items, on the device: no length is ever read by the host.

The queries of a sequence are cut into tiles, and what a tile sees into splits of `split` positions. An item is a tile
in one of its splits, or in all of them, and one program computes it. Items of all splits write their results, others
partial results, which the last of a tile's items to end merges. Both give the same bits (see `attention.py`); some of
the splits would not, since partial results of partial results are added in another order. So which it is may depend on
the step: each split is an item of its own as far as there is space for partial results, which sequences of one tile get
first.

Sequences of several tiles come first, each from its last tile, which sees the most, to its first: longest work first.

A tile of many rows has as many for a sequence that computes one token, and most are idle. So a step with both kinds of
sequences is cut twice, each kind into tiles of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.ops.spec import TensorLike, num_bytes, sizes_of

SPLIT = 512
"""Positions of a split: of 256, 512 and 1,024 the one between many partial results and few programs."""

WORKSPACE_BYTES = 64 << 20
"""Most bytes of partial results. 256 sequences of 4,096 tokens with 32 heads of 128 need 34 MB in splits of 512."""

ITEM_SIZE = tl.constexpr(8)
"""Integers of an item: sequence, first token, tokens, position of the first token, first split, end split, the tile's
first slot and number of splits (0 for a tile in all its splits). Slots are those of the first split, one for each
token, then those of the next."""


@dataclass(frozen=True, slots=True)
class Tile:
    """How the work of an item is laid out; no bit depends on anything but `split` and `block_n`.

    Attributes:
        block_m: Rows (tokens times query heads of a KV head), at least 16.
        block_n: Positions of a key tile.
        num_warps: Warps of a program.
        num_stages: Key tiles in flight.
        programs: Programs of a multiprocessor.
        split: Positions of a split, a multiple of `block_n`.
        is_one_loop: Whether tiles of which every row sees every key are masked like others. A second loop begins when
            the first has ended: its first keys are asked for then, and its instructions. H100, decoding in bfloat16:
            one of 200 tokens in 6.6 instead of 7.8 us, 64 of 4,096 in 452 instead of 469.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    programs: int
    split: int = SPLIT
    is_one_loop: bool = False

    def members(self, num_heads: int, num_kv_heads: int) -> int:
        """Return how many query heads of a KV head have rows in a tile."""
        return min(num_heads // num_kv_heads, self.block_m)

    def head_tiles(self, num_heads: int, num_kv_heads: int) -> int:
        """Return how many tiles the query heads of a token fill."""
        return num_kv_heads * -(-num_heads // num_kv_heads // self.members(num_heads, num_kv_heads))


def choose_tile(
    num_tokens: int, num_seqs: int, head_dim: int, dtype: torch.dtype, kv_dtype: torch.dtype | None = None
) -> Tile:
    """Return the layout for a step: by the shapes that no bit depends on, short for decoding and long for prompts.

    Args:
        num_tokens: Tokens of the step.
        num_seqs: Sequences of the step.
        head_dim: Width of a head.
        dtype: Of the queries.
        kv_dtype: Of the cache; None if it is that of the queries.
    """
    if dtype == torch.float32:  # without tensor cores the order of sums follows the tile, so one serves all steps
        return Tile(32, 32, 8, 2, 1) if head_dim <= 128 else Tile(16, 16, 4, 2, 2)
    if head_dim > 128:  # two sums of 64 x 256 in float32 take half of all registers; 96 KB of shared memory
        return Tile(64, 32, 8, 2, 1)
    if kv_dtype is not None and kv_dtype.itemsize == 1:
        if num_tokens != num_seqs:
            # H100, float8: 8,192 tokens at 250 TFLOP/s, 2,048 at 189, 2,048 behind as many at 236; of 128 x 64, 8 warps
            # and 2 stages: 234, 165, 214.
            return Tile(64, 64, 4, 1, 2)
        # H200, float8: 512 x 192 tokens 91 us, 512 x 1,152 522 us; of 64 x 64, 4 warps: 185 and 1,149 us.
        return Tile(16, 64, 2, 5, 8, is_one_loop=True)
    if num_tokens == num_seqs:  # H100: 64 x 4,096 tokens at 2.4 TB/s, one of 200 in 6.6 us, one of 4,096 in 16 us
        return Tile(16, 128, 4, 4, 2, is_one_loop=True)
    return Tile(128, 128, 8, 2, 1)  # H100: 8,192 tokens at 337 TFLOP/s, 2,048 behind as many at 325


ALL, DECODING, OTHERS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
"""Of which sequences items are: any, those of one token, or those of more and the tokens that belong to none."""


def layouts(
    num_tokens: int, num_seqs: int, head_dim: int, dtype: torch.dtype, kv_dtype: torch.dtype | None = None
) -> tuple[tuple[Tile, tl.constexpr], ...]:
    """Return the layouts for a step, and for which sequences each is; arguments as of `choose_tile`.

    H200, float8, 512 requests of 2,048 tokens in and 128 out: 20.8 s instead of 24.7 with one layout for both.
    """
    tile = choose_tile(num_tokens, num_seqs, head_dim, dtype, kv_dtype)
    short = choose_tile(num_seqs, num_seqs, head_dim, dtype, kv_dtype)
    return ((tile, ALL),) if tile == short or num_seqs == 1 else ((tile, OTHERS), (short, DECODING))


@dataclass(frozen=True, slots=True)
class StepItems:
    """The work items of a step in one layout.

    Attributes:
        tile: The layout.
        items: [max_items, ITEM_SIZE], int32.
        count: [1], int32: how many there are.
        arrivals: [num_slots, head tiles], int32, 0: how many splits of a tile, by its first slot, are done.
        num_slots: Space for partial results, in tokens.
    """

    tile: Tile
    items: Tensor
    count: Tensor
    arrivals: Tensor
    num_slots: int


@triton.jit
def _pick(x, index, at):
    """Return the element of `x` at `at`."""
    return tl.sum(tl.where(index == at, x, 0), axis=0)


@triton.jit
def _before(x):
    """Return the sum of all elements before each."""
    return tl.cumsum(x, 0) - x


@triton.jit(do_not_specialize=["num_seqs", "num_tokens", "window", "max_slots"])
def _cut_kernel(
    seq_lens,
    query_start_loc,
    items,
    count_of_items,
    arrivals,
    num_seqs,
    num_tokens,
    window,
    max_slots,
    HAS_WINDOW: tl.constexpr,
    OF: tl.constexpr,
    TILE: tl.constexpr,
    SPLIT: tl.constexpr,
    HEAD_TILES: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
):
    """Write the items of one sequence; what comes before them, every program counts for itself.

    Behind the last sequence stands one of length 0 with the tokens that belong to none, whose results are zeros.
    """
    me = tl.program_id(0)
    index = tl.arange(0, BLOCK)
    start = tl.load(query_start_loc + index, mask=index <= num_seqs, other=num_tokens).to(tl.int32)
    stop = tl.load(query_start_loc + index + 1, mask=index < num_seqs, other=num_tokens).to(tl.int32)
    length = tl.load(seq_lens + index, mask=index < num_seqs, other=0).to(tl.int32)
    count = stop - start
    if OF != 0:  # not all
        is_decoding = (count == 1) & (index < num_seqs)
        count = tl.where(is_decoding == (OF == 1), count, 0)

    num_splits = tl.maximum((length + SPLIT - 1) // SPLIT, 1)
    if HAS_WINDOW:  # positions that a tile sees, wherever they lie
        num_splits = tl.minimum(num_splits, (window + TILE - 1 + SPLIT - 2) // SPLIT + 1)
    num_tiles = (count + TILE - 1) // TILE
    slots = tl.where(num_splits > 1, count * num_splits, 0)
    short_slots = tl.where(num_tiles > 1, 0, slots)
    first_slot = tl.where(
        num_tiles > 1, tl.sum(short_slots, axis=0) + _before(slots - short_slots), _before(short_slots)
    )
    is_split = (slots > 0) & (first_slot + slots <= max_slots)
    num_chunks = tl.where(is_split, num_splits, 1)
    long = tl.where(num_tiles > 1, num_tiles * num_chunks, 0)
    short = tl.where(num_tiles > 1, 0, num_tiles * num_chunks)
    num_long = tl.sum(long, axis=0)
    first_item = tl.where(num_tiles > 1, _before(long), num_long + _before(short))
    if me == 0:
        tl.store(count_of_items, num_long + tl.sum(short, axis=0))

    start, count, length = _pick(start, index, me), _pick(count, index, me), _pick(length, index, me)
    num_tiles, num_chunks = _pick(num_tiles, index, me), _pick(num_chunks, index, me)
    chunk = _pick(num_splits, index, me) // num_chunks
    first_slot, first_item = _pick(first_slot, index, me), _pick(first_item, index, me)
    for base in range(0, num_tiles * num_chunks, STEP):
        item = base + tl.arange(0, STEP)
        tile = num_tiles - 1 - item // num_chunks
        number = item % num_chunks
        tokens = tl.minimum(count - tile * TILE, TILE)
        position = length - count + tile * TILE
        first_split = tl.zeros_like(item)
        if HAS_WINDOW:
            first_split = tl.maximum(position - window + 1, 0) // SPLIT
        first_split += number * chunk
        end_split = tl.minimum(first_split + chunk, (tl.maximum(position + tokens, 0) + SPLIT - 1) // SPLIT)
        slot = first_slot + tile * TILE * num_chunks
        to = items + (first_item + item) * ITEM_SIZE
        here = item < num_tiles * num_chunks
        tl.store(to, tl.zeros_like(item) + me, mask=here)
        tl.store(to + 1, start + tile * TILE, mask=here)
        tl.store(to + 2, tokens, mask=here)
        tl.store(to + 3, position, mask=here)
        tl.store(to + 4, first_split, mask=here)
        tl.store(to + 5, end_split, mask=here)
        tl.store(to + 6, slot, mask=here)
        tl.store(to + 7, tl.zeros_like(item) + tl.where(num_chunks > 1, num_chunks, 0), mask=here)
        for head_tile in range(0, tl.where(num_chunks > 1, HEAD_TILES, 0)):
            tl.store(arrivals + slot * HEAD_TILES + head_tile, tl.zeros_like(item), mask=here & (number == 0))


def num_slots(query: TensorLike, kv_cache: TensorLike, block_table: TensorLike, split: int, most_bytes: int) -> int:
    """Return for how many tokens there is space for partial results: for all in all splits, but in `most_bytes`."""
    (num_tokens, num_heads, head_dim), (_, max_blocks) = sizes_of(query), sizes_of(block_table)
    num_splits = -(-max_blocks * sizes_of(kv_cache)[3] // split)
    most = num_tokens * num_splits if num_splits > 1 else 0
    return min(most, most_bytes // (4 * num_heads * (head_dim + 2)))


def max_items(num_tokens: int, num_seqs: int, tile: int, num_slots: int) -> int:
    """Return the most items of a step.

    A tile in one of its splits has a slot for each of its tokens; the others are counted by tiles, of which each
    sequence, and the tokens that belong to none, may have one that is not full.
    """
    return num_slots + num_tokens // tile + min(num_seqs + 1, num_tokens)


def cut(
    query: Tensor,
    kv_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    query_start_loc: Tensor,
    window: int | None,
    tile: Tile,
    workspace_bytes: int = WORKSPACE_BYTES,
    of: tl.constexpr = ALL,
) -> StepItems:
    """Cut a step into items of a layout.

    Args:
        query: [num_tokens, num_heads, head_dim]; only its shape is read, as of the next two.
        kv_cache: [2, num_blocks, num_kv_heads, block_size, head_dim].
        block_table: [num_seqs, max_blocks].
        seq_lens: [num_seqs], int32 | int64.
        query_start_loc: [num_seqs + 1], int32 | int64; tokens behind the last belong to no sequence.
        window: As for `ops.attention.attention`.
        tile: The layout.
        workspace_bytes: Most bytes of partial results.
        of: Of which sequences.
    """
    (num_tokens, num_heads, _), num_seqs = query.shape, len(seq_lens)
    slots = num_slots(query, kv_cache, block_table, tile.split, workspace_bytes)
    tokens = tile.block_m // tile.members(num_heads, kv_cache.shape[2])
    head_tiles = tile.head_tiles(num_heads, kv_cache.shape[2])
    shapes = ((max_items(num_tokens, num_seqs, tokens, slots), ITEM_SIZE.value), (1,), (slots, head_tiles))
    items, count, arrivals = (torch.empty(shape, dtype=torch.int32, device=seq_lens.device) for shape in shapes)
    # One size for up to 255 sequences: few variants to compile, and a sum over 256 integers costs next to nothing.
    block = max(256, triton.next_power_of_2(num_seqs + 1))
    _cut_kernel[(num_seqs + 1,)](
        seq_lens, query_start_loc, items, count, arrivals, num_seqs, num_tokens, window or 0, slots,
        HAS_WINDOW=window is not None, OF=of.value, TILE=tokens, SPLIT=tile.split, HEAD_TILES=head_tiles, BLOCK=block,
        STEP=64, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    return StepItems(tile, items, count, arrivals, slots)


def attention_bytes(query: TensorLike, kv_cache: TensorLike, block_table: TensorLike, **rest: object) -> int:
    """Return the most bytes that `attention` holds: its result and partial results."""
    _, num_heads, head_dim = sizes_of(query)
    slots = num_slots(query, kv_cache, block_table, SPLIT, WORKSPACE_BYTES)
    return num_bytes(query) + slots * num_heads * (head_dim + 2) * 4


def items_bytes(query: TensorLike, kv_cache: TensorLike, block_table: TensorLike, **rest: object) -> tuple[int, int]:
    """Return the most bytes of a step's items in two layouts; tiles of one token are the most there can be."""
    (num_tokens, num_heads, _), num_seqs = sizes_of(query), sizes_of(block_table)[0]
    slots = num_slots(query, kv_cache, block_table, SPLIT, WORKSPACE_BYTES)
    head_tiles = Tile(16, 16, 1, 1, 1).head_tiles(num_heads, sizes_of(kv_cache)[2])  # no tile has fewer rows
    integers = max_items(num_tokens, num_seqs, 1, slots) * ITEM_SIZE.value + 1 + slots * head_tiles
    return 8 * integers, 8 * integers
