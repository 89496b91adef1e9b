"""Rotary embedding and the KV write: one launch rotates queries and keys and writes keys and values into the cache.

A program moves `_ROWS` rows (a head of a token each): the first programs queries, the others keys with their values.
All arithmetic is float32 and unfused, as in the references: rotated rows are theirs, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.ops.triton.elementwise import float8_bits, int8_of
from quire.ops.triton.launch import let_next_start, overlap, wait_for_last

_ROWS = 32
"""Rows of a program: for 64 tokens of 32 + 8 heads 80 programs, 8 KB each."""


@triton.jit
def _keep(target, x, like, scale, mask):
    """Store float32 values as the target holds them: rounded to the dtype of `like`, then to 8 bits if it has those."""
    if scale is None:
        tl.store(target, x.to(like.dtype), mask=mask)
    else:
        x = tl.div_rn(x.to(like.dtype).to(tl.float32), tl.zeros_like(x) + scale)
        if target.dtype.element_ty == tl.int8:
            tl.store(target, int8_of(tl.minimum(tl.maximum(x, -127.0), 127.0)), mask=mask)
        else:
            tl.store(target, float8_bits(x), mask=mask)


@triton.jit
def _move(source, target, positions, table, token, scale, here, HEAD_DIM: tl.constexpr, HALF: tl.constexpr):
    """Move rows from `source` to `target` (pointers, one a row), their first `2 * HALF` elements rotated."""
    if HALF > 0:
        angles = table + tl.load(positions + token, mask=here, other=0).to(tl.int64)[:, None] * (2 * HALF)
        i = tl.arange(0, triton.next_power_of_2(HALF))[None, :]
        mask = here[:, None] & (i < HALF)
        cos, sin = tl.load(angles + i, mask=mask), tl.load(angles + HALF + i, mask=mask)
        first, second = tl.load(source[:, None] + i, mask=mask), tl.load(source[:, None] + HALF + i, mask=mask)
        x, y = first.to(tl.float32), second.to(tl.float32)
        _keep(target[:, None] + i, x * cos - y * sin, first, scale, mask)
        _keep(target[:, None] + HALF + i, y * cos + x * sin, first, scale, mask)
    if HEAD_DIM > 2 * HALF:
        i = 2 * HALF + tl.arange(0, triton.next_power_of_2(HEAD_DIM - 2 * HALF))[None, :]
        mask = here[:, None] & (i < HEAD_DIM)
        rest = tl.load(source[:, None] + i, mask=mask)
        _keep(target[:, None] + i, rest.to(tl.float32), rest, scale, mask)


@triton.jit(do_not_specialize=["num_tokens", "num_query_programs"])
def _rope_append_kv_kernel(
    query,
    key,
    value,
    out,
    positions,
    table,
    kv_cache,
    slot_mapping,
    kv_scales,
    num_tokens,
    num_query_programs,
    query_stride,
    query_head_stride,
    key_stride,
    key_head_stride,
    value_stride,
    value_head_stride,
    cache_value_stride,
    cache_block_stride,
    cache_head_stride,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    IS_OVERLAPPED: tl.constexpr,
):
    """Rotate query rows into `out`; rotate key rows into the cache, and copy their values there."""
    let_next_start(IS_OVERLAPPED)
    wait_for_last(IS_OVERLAPPED)
    pid = tl.program_id(0)
    if NUM_HEADS > 0:  # noqa: SIM102  (known when compiling, the next is not)
        if pid < num_query_programs:
            row = pid.to(tl.int64) * ROWS + tl.arange(0, ROWS)
            token, head = row // NUM_HEADS, row % NUM_HEADS
            here = token < num_tokens
            source = query + token * query_stride + head * query_head_stride
            _move(source, out + row * HEAD_DIM, positions, table, token, None, here, HEAD_DIM, HALF)
    if NUM_KV_HEADS > 0:  # noqa: SIM102
        if pid >= num_query_programs:
            row = (pid - num_query_programs).to(tl.int64) * ROWS + tl.arange(0, ROWS)
            token, head = row // NUM_KV_HEADS, row % NUM_KV_HEADS
            slot = tl.load(slot_mapping + token, mask=token < num_tokens, other=-1).to(tl.int64)
            here = slot >= 0
            place = slot // BLOCK_SIZE * cache_block_stride + slot % BLOCK_SIZE * HEAD_DIM
            to = kv_cache + place + head * cache_head_stride
            key_scale, value_scale = None, None
            if kv_scales is not None:
                key_scale = tl.load(kv_scales + head)[:, None]
                value_scale = tl.load(kv_scales + NUM_KV_HEADS + head)[:, None]
            source = key + token * key_stride + head * key_head_stride
            _move(source, to, positions, table, token, key_scale, here, HEAD_DIM, HALF)
            source = value + token * value_stride + head * value_head_stride
            _move(source, to + cache_value_stride, positions, table, token, value_scale, here, HEAD_DIM, 0)


@triton.jit
def rotated(source, positions, angles, here, HEAD_DIM: tl.constexpr):
    """Return rows [rows, HEAD_DIM], rotated by their positions: the bits of `rope`.

    Each half is loaded twice, as itself and as the other's partner. Joined from two halves, rows that a product takes
    would have their channels added in another order (Triton 3.6: four neighbours by two steps of mma.sync).

    Args:
        source, positions: Pointers, one a row.
        angles: Pointer to the table of all positions.
        here: Which rows there are.
        HEAD_DIM: A power of two.
    """
    HALF: tl.constexpr = HEAD_DIM // 2
    i = tl.arange(0, HEAD_DIM)[None, :]
    at = angles + tl.load(positions, mask=here, other=0).to(tl.int64)[:, None] * HEAD_DIM
    cos, sin = tl.load(at + i % HALF), tl.load(at + HALF + i % HALF)
    own = tl.load(source[:, None] + i, mask=here[:, None], other=0.0)
    partner = tl.load(source[:, None] + (i + HALF) % HEAD_DIM, mask=here[:, None], other=0.0).to(tl.float32)
    turned = own.to(tl.float32) * cos + tl.where(i < HALF, -partner, partner) * sin
    return turned.to(own.dtype)


@triton.jit
def append(key, value, keys, values, position, angles, slot, HEAD_DIM: tl.constexpr):
    """Write a head's new key, rotated, and value to where the cache holds them, if `slot` is not negative.

    All threads of the program can read them then.
    """
    if slot >= 0:
        one, dims = tl.arange(0, 1), tl.arange(0, HEAD_DIM)
        row = rotated(key + one, position + one, angles, one == 0, HEAD_DIM)
        tl.store(keys + dims[None, :], row)
        tl.store(values + dims, tl.load(value + dims))
    tl.debug_barrier()


@dataclass(frozen=True, slots=True)
class NewKeys:
    """What a step with one token for each sequence adds to the cache, for kernels that do so themselves.

    Attributes:
        key, value: [num_tokens, num_kv_heads, head_dim], dtype of the cache; heads contiguous.
        positions: [num_tokens], int32 | int64.
        angles: [max_position, head_dim], float32, from `rope_table`.
        slot_mapping: [num_tokens], int32 | int64; -1 is padding.
    """

    key: Tensor
    value: Tensor
    positions: Tensor
    angles: Tensor
    slot_mapping: Tensor


def rope_append_kv(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: Tensor,
    table: Tensor,
    kv_cache: Tensor,
    slot_mapping: Tensor,
    kv_scales: Tensor | None = None,
) -> Tensor:
    """Rotate, and write keys and values into their slots; see `ops.fused.rope_append_kv`."""
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    _launch(query, out, positions, table, key, value, kv_cache, slot_mapping, kv_scales)
    return out


def rope(x: Tensor, positions: Tensor, table: Tensor) -> Tensor:
    """Rotate; see `ops.rope.rope`."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _launch(x, out, positions, table, x[:, :0], x[:, :0], None, None, None)
    return out


def append_kv(
    key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor, kv_scales: Tensor | None = None
) -> None:
    """Write keys and values into their slots; see `ops.attention.append_kv`."""
    _launch(key[:, :0], None, None, None, key, value, kv_cache, slot_mapping, kv_scales)


def _launch(
    query: Tensor,
    out: Tensor | None,
    positions: Tensor | None,
    table: Tensor | None,
    key: Tensor,
    value: Tensor,
    kv_cache: Tensor | None,
    slot_mapping: Tensor | None,
    kv_scales: Tensor | None,
) -> None:
    """Rotate queries into `out`; write keys, rotated if there is a table, and values. Either may have no heads."""
    query, key, value = (x if x.stride(2) == 1 else x.contiguous() for x in (query, key, value))
    num_tokens, num_heads, head_dim = query.shape
    num_kv_heads = key.shape[1]
    for_queries, for_keys = (triton.cdiv(num_tokens * heads, _ROWS) for heads in (num_heads, num_kv_heads))
    if not num_tokens:
        return
    if kv_cache is not None and kv_cache.dtype == torch.float8_e4m3fn:
        kv_cache = kv_cache.view(torch.uint8)
    cache_strides, block_size = ((0, 0, 0), 1) if kv_cache is None else (kv_cache.stride()[:3], kv_cache.shape[3])
    _rope_append_kv_kernel[(for_queries + for_keys,)](
        query, key, value, out, positions, table, kv_cache, slot_mapping, kv_scales, num_tokens, for_queries,
        query.stride(0), query.stride(1), key.stride(0), key.stride(1), value.stride(0), value.stride(1),
        *cache_strides, NUM_HEADS=num_heads, NUM_KV_HEADS=num_kv_heads, HEAD_DIM=head_dim,
        HALF=0 if table is None else table.shape[1] // 2, BLOCK_SIZE=block_size, ROWS=_ROWS, num_warps=4,
        enable_fp_fusion=False, **overlap(query),
    )  # fmt: skip
