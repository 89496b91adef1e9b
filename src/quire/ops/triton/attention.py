"""Paged attention: one kernel for prompts, their chunks, decoding, and any mix of them.

A row (a query head of a token) is defined by absolute key positions alone. They are cut into splits of `SPLIT`
positions and these into tiles. Inside a split, an online softmax over its tiles in order gives peak m, sum s and
weighted values a (Milakov & Gimelshein 2018, https://arxiv.org/abs/1805.02867; FlashAttention-2, Dao 2023,
https://arxiv.org/abs/2307.08691); the splits' results are merged in order, from M = -inf, S = A = 0:

    M' = max(M, m)    A' = A * 2^(M - M') + a * 2^(m - M')    S' = S * 2^(M - M') + s * 2^(m - M')    out = A / S

The first merge is exact, and tiles and splits that a row does not see change nothing. So it does not matter which
program computes which splits, how a prompt was chunked, or what else is in the batch: the bits are the same. That
takes equal instructions in every path: products are fused with sums only where `tl.fma` says so, and sums of weights
are trees of a fixed shape. Where splits of a tile are items of their own, whichever program ends last merges them all.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.ops.spec import TensorLike
from quire.ops.triton import launch
from quire.ops.triton.attention_tiles import ITEM_SIZE, StepItems, cut, layouts
from quire.ops.triton.packing import unpack_byte
from quire.ops.triton.rope import NewKeys, append, rotated

_LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _load_rows(pointers, inside, dims, HEAD_DIM: tl.constexpr, IS_MASKED: tl.constexpr):
    """Load rows of `HEAD_DIM` elements, padded with zeros; masked, only those `inside`, and zeros for others."""
    if IS_MASKED:
        return tl.load(pointers, mask=inside[:, None] & (dims < HEAD_DIM)[None, :], other=0)
    if dims.shape[0] == HEAD_DIM:
        return tl.load(pointers)
    return tl.load(pointers, mask=(dims < HEAD_DIM)[None, :], other=0)


@triton.jit
def _tanh(x):
    return 1.0 - 2.0 / (1.0 + tl.exp2(x * 2.8853900817779268))  # 2 log2(e)


@triton.jit
def _finite(m):
    """Return the peak to subtract: 0 for a row that has seen nothing."""
    return tl.where(m == float("-inf"), 0.0, m)


@triton.jit
def _halve(x):
    """Return the sums of rows as a tree of pairs (j, j + half)."""
    if x.shape[1] > 2:
        sums = _halve(tl.sum(tl.reshape(x, [x.shape[0], 2, x.shape[1] // 2]), axis=1))
    else:
        sums = tl.sum(x, axis=1)
    return sums


@triton.jit
def _row_sums(x):
    """Return the sums of rows as a tree that no layout of elements over threads can change; it does change `tl.sum`.

    (For sm_80 Triton 3.6 lays 64 rows out otherwise than 128.) Neighbours first, then halves: in a tensor core's
    layout a thread adds up its own elements before others', so this costs what `tl.sum` does.
    """
    return _halve(tl.sum(tl.reshape(x, [x.shape[0], x.shape[1] // 2, 2]), axis=2))


@triton.jit
def _place_tile(
    start, keys, values, table, stride_block, low, high,
    WIDTH: tl.constexpr, DIMS: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr, IS_MASKED: tl.constexpr,
):  # fmt: skip
    """Return the positions of a tile that begins at `start`, whether they are seen at all, and pointers to their rows
    of `WIDTH` elements, padded to `DIMS`, in `keys` and `values`."""
    at = start + tl.arange(0, BLOCK_N)
    inside = (at >= low) & (at < high)
    of = table + at // BLOCK_SIZE
    block = tl.load(of, mask=inside, other=0) if IS_MASKED else tl.load(of)
    row = block.to(tl.int64) * stride_block + at % BLOCK_SIZE * WIDTH
    offsets = row[:, None] + tl.arange(0, DIMS)[None, :]
    return at, inside, keys + offsets, values + offsets


@triton.jit
def _weigh(
    scores, m, s, at, position, window, inner, factor,
    IS_MASKED: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_CAP: tl.constexpr,
):  # fmt: skip
    """Take a tile's scores into the peak and the sum of an online softmax.

    Returns:
        New peaks and sums, the tile's weights, and the factors of the weighted values so far.
    """
    if HAS_CAP:
        scores = _tanh(scores * inner)
    if IS_MASKED:
        seen = at[None, :] <= position[:, None]
        if HAS_WINDOW:
            seen &= at[None, :] > position[:, None] - window
        peak = tl.max(tl.where(seen, scores, float("-inf")), axis=1)
        highest = tl.maximum(m, tl.where(peak == float("-inf"), float("-inf"), peak * factor))
        base = _finite(highest)
    else:
        highest = tl.maximum(m, tl.max(scores, axis=1) * factor)
        base = highest
    weights = tl.exp2(tl.fma(scores, tl.zeros_like(scores) + factor, tl.zeros_like(scores) - base[:, None]))
    if IS_MASKED:
        weights = tl.where(seen, weights, 0.0)
    shrunk = tl.exp2(m - base)
    return highest, s * shrunk + _row_sums(weights), weights, shrunk[:, None]


@triton.jit
def _attend_tiles(
    m, s, a, q, position, keys, values, table, stride_block, first, end, low, high, window, inner, factor,
    IS_MASKED: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_CAP: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr, NUM_STAGES: tl.constexpr,
):  # fmt: skip
    """Take the key tiles from `first` to `end` into the state (m, s, a) of an online softmax.

    Unmasked, every row sees every key of the tiles. Masked, what no row sees, outside of `low` to `high`, is not read.
    """
    dims = tl.arange(0, q.shape[1])
    for start in tl.range(first, end, BLOCK_N, num_stages=NUM_STAGES):
        at, inside, k_at, v_at = _place_tile(
            start, keys, values, table, stride_block, low, high, HEAD_DIM, q.shape[1], BLOCK_SIZE, BLOCK_N, IS_MASKED
        )
        k = _load_rows(k_at, inside, dims, HEAD_DIM, IS_MASKED)
        scores = launch.dot(q, tl.trans(k), tl.zeros([q.shape[0], BLOCK_N], dtype=tl.float32))
        m, s, weights, shrunk = _weigh(
            scores, m, s, at, position, window, inner, factor, IS_MASKED, HAS_WINDOW, HAS_CAP
        )
        v = _load_rows(v_at, inside, dims, HEAD_DIM, IS_MASKED)
        a = launch.dot(weights.to(q.dtype), v, a * shrunk)
    return m, s, a


@triton.jit
def _attend_byte_tiles(
    m, s, a, b, q, r, position, keys, values, table, stride_block, first, end, low, high, window, inner, factor,
    IS_MASKED: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_CAP: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr, NUM_STAGES: tl.constexpr, IS_FLOAT8: tl.constexpr,
):  # fmt: skip
    """Do the same with a cache of eight bits, read in words of two channels: `a` and `q` are of the even ones, `b` and
    `r` of the odd ones, so what is added and in which order does not depend on how a tile multiplies.

    From operands that come as bytes, a step of mma.sync would take other channels than one of wgmma (Triton 3.6), and
    each would be converted alone.
    """
    WORDS: tl.constexpr = HEAD_DIM // 2
    dims = tl.arange(0, q.shape[1])
    for start in tl.range(first, end, BLOCK_N, num_stages=NUM_STAGES):
        at, inside, k_at, v_at = _place_tile(
            start, keys, values, table, stride_block, low, high, WORDS, q.shape[1], BLOCK_SIZE, BLOCK_N, IS_MASKED
        )
        k, others = unpack_byte(_load_rows(k_at, inside, dims, WORDS, IS_MASKED), q.dtype, IS_FLOAT8)
        scores = launch.dot(q, tl.trans(k), tl.zeros([q.shape[0], BLOCK_N], dtype=tl.float32))
        k, others = unpack_byte(others, q.dtype, IS_FLOAT8)
        scores = launch.dot(r, tl.trans(k), scores)
        m, s, weights, shrunk = _weigh(
            scores, m, s, at, position, window, inner, factor, IS_MASKED, HAS_WINDOW, HAS_CAP
        )
        weights = weights.to(q.dtype)
        v, others = unpack_byte(_load_rows(v_at, inside, dims, WORDS, IS_MASKED), q.dtype, IS_FLOAT8)
        a = launch.dot(weights, v, a * shrunk)
        v, others = unpack_byte(others, q.dtype, IS_FLOAT8)
        b = launch.dot(weights, v, b * shrunk)
    return m, s, a, b


@triton.jit
def _attend_split(
    q, position, keys, values, table, stride_block, first, full, end, low, high, window, inner, factor,
    HAS_WINDOW: tl.constexpr, HAS_CAP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr, NUM_STAGES: tl.constexpr, IS_ONE_LOOP: tl.constexpr, IS_FLOAT8: tl.constexpr,
):  # fmt: skip
    """Return the state of a split: of tiles from `first` to `full`, of which every row sees all, and from there to
    `end`, of which it may not."""
    if keys.dtype.element_ty == tl.int16:
        HALF: tl.constexpr = q.shape[1] // 2
        even, odd = tl.split(tl.reshape(q, [q.shape[0], HALF, 2]))
        m, s, a = _nothing(q.shape[0], HALF)
        b = tl.zeros_like(a)
        if not IS_ONE_LOOP:
            m, s, a, b = _attend_byte_tiles(
                m, s, a, b, even, odd, position, keys, values, table, stride_block, first, full, low, high, window,
                inner, factor, False, HAS_WINDOW, HAS_CAP, HEAD_DIM, BLOCK_SIZE, BLOCK_N, NUM_STAGES, IS_FLOAT8,
            )  # fmt: skip
        m, s, a, b = _attend_byte_tiles(
            m, s, a, b, even, odd, position, keys, values, table, stride_block, full, end, low, high, window, inner,
            factor, True, HAS_WINDOW, HAS_CAP, HEAD_DIM, BLOCK_SIZE, BLOCK_N, NUM_STAGES, IS_FLOAT8,
        )  # fmt: skip
        a = tl.reshape(tl.join(a, b), [q.shape[0], q.shape[1]])
    else:
        m, s, a = _nothing(q.shape[0], q.shape[1])
        if not IS_ONE_LOOP:
            m, s, a = _attend_tiles(
                m, s, a, q, position, keys, values, table, stride_block, first, full, low, high, window, inner, factor,
                False, HAS_WINDOW, HAS_CAP, HEAD_DIM, BLOCK_SIZE, BLOCK_N, NUM_STAGES,
            )  # fmt: skip
        m, s, a = _attend_tiles(
            m, s, a, q, position, keys, values, table, stride_block, full, end, low, high, window, inner, factor,
            True, HAS_WINDOW, HAS_CAP, HEAD_DIM, BLOCK_SIZE, BLOCK_N, NUM_STAGES,
        )  # fmt: skip
    return m, s, a


@triton.jit
def _merge(m0, s0, a0, m1, s1, a1):
    """Return the (m, s, a) of some splits and of one behind them as one; exact if either is (-inf, 0, 0)."""
    m = tl.maximum(m0, m1)
    w0, w1 = tl.exp2(m0 - _finite(m)), tl.exp2(m1 - _finite(m))
    return m, s0 * w0 + s1 * w1, a0 * w0[:, None] + a1 * w1[:, None]


@triton.jit
def _nothing(ROWS: tl.constexpr, DIMS: tl.constexpr):
    m = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    return m, tl.zeros([ROWS], dtype=tl.float32), tl.zeros([ROWS, DIMS], dtype=tl.float32)


@triton.jit
def _finish(s, a, kv_scales, kv_head, mask, NUM_KV_HEADS: tl.constexpr):
    """Return the results of rows, each of its KV head; zeros for one that has seen nothing."""
    out = a / tl.where(s > 0.0, s, 1.0)[:, None]
    if kv_scales is not None:
        out = out * tl.load(kv_scales + NUM_KV_HEADS + kv_head, mask=mask, other=0.0)[:, None]
    return out


@triton.jit
def _is_last(arrivals, number):
    """Return whether this program is the last of `number` to come here; what the others stored before can be read.

    The last one leaves the counter as it was, for the next layer.
    """
    tl.debug_barrier()  # all threads have stored
    is_last = tl.atomic_add(arrivals, 1, sem="acq_rel") == number - 1
    if is_last:
        tl.store(arrivals, 0)
    return is_last


@triton.jit
def _merge_rows(
    rows, head_tile, out, partials, peaks_sums, kv_scales, first_token, num_tokens, first_slot, num_splits,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, PADDED: tl.constexpr,
    MEMBERS: tl.constexpr, HEAD_TILES: tl.constexpr,
):  # fmt: skip
    """Merge the partial results of some rows of a tile in order, and write what comes of them."""
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    dims = tl.arange(0, PADDED)
    token, member = rows // MEMBERS, head_tile % HEAD_TILES * MEMBERS + rows % MEMBERS
    head = head_tile // HEAD_TILES * GROUP + member
    here = (token < num_tokens) & (member < GROUP)
    mask = here[:, None] & (dims < HEAD_DIM)[None, :]
    m, s, a = _nothing(rows.shape[0], PADDED)
    for number in range(num_splits):
        row = (first_slot + number * num_tokens + token).to(tl.int64) * NUM_HEADS + head
        m1 = tl.load(peaks_sums + row * 2, mask=here, other=float("-inf"), cache_modifier=".cg")
        s1 = tl.load(peaks_sums + row * 2 + 1, mask=here, other=0.0, cache_modifier=".cg")
        at = partials + row[:, None] * HEAD_DIM + dims[None, :]
        m, s, a = _merge(m, s, a, m1, s1, tl.load(at, mask=mask, other=0.0, cache_modifier=".cg"))
    to = ((first_token + token).to(tl.int64) * NUM_HEADS + head)[:, None] * HEAD_DIM + dims[None, :]
    result = _finish(s, a, kv_scales, head // GROUP, here, NUM_KV_HEADS)
    tl.store(out + to, result.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _attend_item(
    item, head_tile, out, partials, peaks_sums, arrivals, query, key, value, positions, angles, slot_mapping, kv_cache,
    kv_scales, block_table, scale, soft_cap, window, stride_of_key, stride_of_value, stride_token, stride_head,
    stride_value, stride_block, stride_kv_head, stride_table,
    HAS_WINDOW: tl.constexpr, NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    PADDED: tl.constexpr, BLOCK_SIZE: tl.constexpr, MEMBERS: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, SPLIT: tl.constexpr, NUM_STAGES: tl.constexpr, IS_ONE_LOOP: tl.constexpr,
    IS_FLOAT8: tl.constexpr,
):  # fmt: skip
    """Compute an item for the query heads that read one KV head, or for as many of them as a tile holds."""
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    HEAD_TILES: tl.constexpr = (GROUP + MEMBERS - 1) // MEMBERS
    sequence, first_token, num_tokens = tl.load(item), tl.load(item + 1), tl.load(item + 2)
    first_position, first_split, end_split = tl.load(item + 3), tl.load(item + 4), tl.load(item + 5)
    kv_head = head_tile // HEAD_TILES

    rows, dims = tl.arange(0, BLOCK_M), tl.arange(0, PADDED)
    token, member = rows // MEMBERS, head_tile % HEAD_TILES * MEMBERS + rows % MEMBERS
    head = kv_head * GROUP + member
    position = first_position + token
    here = (token < num_tokens) & (member < GROUP)
    mask = here[:, None] & (dims < HEAD_DIM)[None, :]
    of_row = query + (first_token + token).to(tl.int64) * stride_token + head * stride_head
    keys = kv_cache + kv_head.to(tl.int64) * stride_kv_head
    values = keys + stride_value
    if key is None:
        q = tl.load(of_row[:, None] + dims[None, :], mask=mask, other=0.0)
    else:
        q = rotated(of_row, positions + first_token + token, angles, here, HEAD_DIM)
        if (first_split < end_split) & (end_split * SPLIT >= first_position + num_tokens):  # it sees the new key
            slot = tl.load(slot_mapping + first_token).to(tl.int64)
            place = slot // BLOCK_SIZE * stride_block + slot % BLOCK_SIZE * HEAD_DIM
            new_key = key + first_token.to(tl.int64) * stride_of_key + kv_head * HEAD_DIM
            new_value = value + first_token.to(tl.int64) * stride_of_value + kv_head * HEAD_DIM
            append(new_key, new_value, keys + place, values + place, positions + first_token, angles, slot, HEAD_DIM)
    table = block_table + sequence.to(tl.int64) * stride_table
    if kv_scales is not None:
        scale = scale * tl.load(kv_scales + kv_head)
    inner, factor = scale, scale * _LOG2E
    if soft_cap is not None:
        inner, factor = scale / soft_cap, soft_cap * _LOG2E

    high = first_position + num_tokens
    low, low_of_last = 0, 0
    if HAS_WINDOW:
        low, low_of_last = tl.maximum(first_position - window + 1, 0), high - window
    m, s, a = _nothing(BLOCK_M, PADDED)
    for split in range(first_split, end_split):
        first = tl.maximum(split * SPLIT, low // BLOCK_N * BLOCK_N)
        end = tl.minimum((split + 1) * SPLIT, high)
        full = tl.maximum(tl.minimum(end, first_position + 1) // BLOCK_N * BLOCK_N, first)
        if IS_ONE_LOOP:
            full = first
        elif HAS_WINDOW:
            full = tl.where(first < low_of_last, first, full)
        m1, s1, a1 = _attend_split(
            q, position, keys, values, table, stride_block, first, full, end, low, high, window, inner, factor,
            HAS_WINDOW, soft_cap is not None, HEAD_DIM, BLOCK_SIZE, BLOCK_N, NUM_STAGES, IS_ONE_LOOP, IS_FLOAT8,
        )  # fmt: skip
        m, s, a = _merge(m, s, a, m1, s1, a1)

    first_slot, num_splits = tl.load(item + 6), tl.load(item + 7)
    if num_splits == 0:
        to = ((first_token + token).to(tl.int64) * NUM_HEADS + head)[:, None] * HEAD_DIM + dims[None, :]
        result = _finish(s, a, kv_scales, head // GROUP, here, NUM_KV_HEADS)
        tl.store(out + to, result.to(out.dtype.element_ty), mask=mask)
    else:
        slot = first_slot + (first_split - low // SPLIT) * num_tokens
        row = (slot + token).to(tl.int64) * NUM_HEADS + head
        tl.store(partials + row[:, None] * HEAD_DIM + dims[None, :], a, mask=mask)
        tl.store(peaks_sums + row * 2, m, mask=here)
        tl.store(peaks_sums + row * 2 + 1, s, mask=here)
        if _is_last(arrivals + first_slot * (NUM_KV_HEADS * HEAD_TILES) + head_tile, num_splits):
            for first_row in range(0, num_tokens * MEMBERS, 16):
                _merge_rows(
                    first_row + tl.arange(0, 16), head_tile, out, partials, peaks_sums, kv_scales, first_token,
                    num_tokens, first_slot, num_splits, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, PADDED, MEMBERS, HEAD_TILES,
                )  # fmt: skip


@triton.jit(do_not_specialize=["window", "stride_table", "num_programs", "scale", "soft_cap"])
def _attend_kernel(
    items, count, out, partials, peaks_sums, arrivals, query, key, value, positions, angles, slot_mapping, kv_cache,
    kv_scales, block_table, scale, soft_cap, window, num_programs, stride_of_key, stride_of_value, stride_token,
    stride_head, stride_value, stride_block, stride_kv_head, stride_table,
    HAS_WINDOW: tl.constexpr, NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    PADDED: tl.constexpr, BLOCK_SIZE: tl.constexpr, MEMBERS: tl.constexpr, HEAD_TILES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPLIT: tl.constexpr, NUM_STAGES: tl.constexpr,
    IS_ONE_LOOP: tl.constexpr, IS_FLOAT8: tl.constexpr, IS_OVERLAPPED: tl.constexpr,
):  # fmt: skip
    """Compute every item for every tile of heads; given a key, rotate queries, and the new key into the cache, before.

    Programs take turns, in every other round backwards: items come longest first, so their shares are nearly alike.
    """
    launch.let_next_start(IS_OVERLAPPED)
    launch.wait_for_last(IS_OVERLAPPED)
    num_works = tl.load(count) * HEAD_TILES
    pid = tl.program_id(0)
    for base in range(0, num_works, num_programs):
        is_forward = base // num_programs % 2 == 0
        work = base + tl.where(is_forward, pid, num_programs - 1 - pid)
        if work < num_works:
            _attend_item(
                items + work // HEAD_TILES * ITEM_SIZE, work % HEAD_TILES, out, partials, peaks_sums, arrivals, query,
                key, value, positions, angles, slot_mapping, kv_cache, kv_scales, block_table, scale, soft_cap, window,
                stride_of_key, stride_of_value, stride_token, stride_head, stride_value, stride_block, stride_kv_head,
                stride_table, HAS_WINDOW, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, PADDED, BLOCK_SIZE, MEMBERS, BLOCK_M,
                BLOCK_N, SPLIT, NUM_STAGES, IS_ONE_LOOP, IS_FLOAT8,
            )  # fmt: skip


def prepare(
    query: Tensor,
    kv_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    query_start_loc: Tensor,
    scale: float,
    window: int | None,
    kv_scales: Tensor | None = None,
    soft_cap: float | None = None,
) -> tuple[StepItems, ...]:
    """Cut a step into work items; reads only shapes of `query`, `kv_cache` and `block_table`."""
    num_tokens, _, head_dim = query.shape
    return tuple(
        cut(query, kv_cache, block_table, seq_lens, query_start_loc, window, tile, of=of)
        for tile, of in layouts(num_tokens, len(seq_lens), head_dim, query.dtype, kv_cache.dtype)
    )


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
    prepared: tuple[StepItems, ...],
) -> Tensor:
    """Attend; see `ops.attention.attention`. Tokens that belong to no sequence, or to one of length 0, get zeros."""
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    for part in prepared:
        attend(query, kv_cache, block_table, scale, window, kv_scales, soft_cap, part, out)
    return out


def attend(
    query: Tensor,
    kv_cache: Tensor,
    block_table: Tensor,
    scale: float,
    window: int | None,
    kv_scales: Tensor | None,
    soft_cap: float | None,
    prepared: StepItems,
    out: Tensor,
    new: NewKeys | None = None,
) -> None:
    """Attend for the sequences of some items; fills their rows of `out` [num_tokens, num_heads, head_dim].

    Args:
        new: Keys and values that are not in the cache yet, one for each sequence; queries are not rotated yet, either.
    """
    num_tokens, num_heads, head_dim = query.shape
    tile = prepared.tile
    _, _, num_kv_heads, block_size, _ = kv_cache.shape
    if not num_tokens:
        return
    if query.stride(2) != 1:
        query = query.contiguous()
    is_float8, least = kv_cache.dtype == torch.float8_e4m3fn, 16  # channels that tensor cores add at once
    if kv_cache.dtype.itemsize == 1:
        kv_cache, least = kv_cache.view(torch.int16), 2 * least
    num_rows = prepared.num_slots * num_heads
    workspace = torch.empty(num_rows * (head_dim + 2), dtype=torch.float32, device=query.device)
    partials, peaks_sums = workspace[: num_rows * head_dim], workspace[num_rows * head_dim :]
    members = tile.members(num_heads, num_kv_heads)
    head_tiles = tile.head_tiles(num_heads, num_kv_heads)
    num_programs = min(tile.programs * launch.num_programs(query), prepared.items.shape[0] * head_tiles)
    heads = {"NUM_HEADS": num_heads, "NUM_KV_HEADS": num_kv_heads, "HEAD_DIM": head_dim,
             "PADDED": max(least, triton.next_power_of_2(head_dim))}  # fmt: skip
    added = (None,) * 5 if new is None else (new.key, new.value, new.positions, new.angles, new.slot_mapping)
    strides = (0, 0) if new is None else (new.key.stride(0), new.value.stride(0))
    _attend_kernel[(num_programs,)](
        prepared.items, prepared.count, out, partials, peaks_sums, prepared.arrivals, query, *added, kv_cache,
        kv_scales, block_table, scale, soft_cap, window or 0, num_programs, *strides, query.stride(0), query.stride(1),
        kv_cache.stride(0), kv_cache.stride(1), kv_cache.stride(2), block_table.stride(0),
        HAS_WINDOW=window is not None, **heads, BLOCK_SIZE=block_size, MEMBERS=members, HEAD_TILES=head_tiles,
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, SPLIT=tile.split, NUM_STAGES=tile.num_stages,
        IS_ONE_LOOP=tile.is_one_loop, IS_FLOAT8=is_float8, num_warps=tile.num_warps, enable_fp_fusion=False,
        **launch.overlap(query),
    )  # fmt: skip


def is_valid(scale: float, kv_cache: TensorLike, **rest: object) -> bool:
    """Return whether the highest product makes the highest score, which a positive scale says, and whether rows of a
    cache are whole words."""
    return scale > 0 and int(kv_cache.shape[-1]) * kv_cache.dtype.itemsize % 2 == 0
