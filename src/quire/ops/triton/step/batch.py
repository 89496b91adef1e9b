"""A step's inputs, laid out on the device from a few integers per row: no tensor of a batch is made on the host."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_CHUNK = 512


@triton.jit
def _lay_out_kernel(
    rows,
    query_start_loc,
    tokens,
    last_tokens,
    tables,
    input_ids,
    positions,
    slot_mapping,
    seq_lens,
    block_table,
    num_table_columns,
    BLOCK_SIZE: tl.constexpr,
    CHUNK: tl.constexpr,
):
    row = tl.program_id(0)
    slot = tl.load(rows + row * 3)
    start = tl.load(rows + row * 3 + 1)
    source = tl.load(rows + row * 3 + 2)
    first = tl.load(query_start_loc + row)
    count = tl.load(query_start_loc + row + 1) - first
    is_real = slot >= 0
    length = tl.where(is_real, start + count, 0)
    tl.store(seq_lens + row, length)
    table = tables + tl.maximum(slot, 0).to(tl.int64) * num_table_columns
    lanes = tl.arange(0, CHUNK)
    for begin in range(0, count, CHUNK):
        at = begin + lanes
        is_token = at < count
        ids = tl.load(tokens + source + at, mask=at < tl.where(source >= 0, count, 0), other=0)
        last = tl.load(last_tokens + tl.maximum(slot, 0))
        position = tl.where(is_real, start + at, 0)
        block = tl.load(table + position // BLOCK_SIZE, mask=at < tl.where(is_real, count, 0), other=0)
        slots = tl.where(is_real, block * BLOCK_SIZE + position % BLOCK_SIZE, -1)
        tl.store(input_ids + first + at, tl.where(source >= 0, ids, tl.where(is_real, last, 0)), mask=is_token)
        tl.store(positions + first + at, position, mask=is_token)
        tl.store(slot_mapping + first + at, slots, mask=is_token)
    num_blocks = (length + BLOCK_SIZE - 1) // BLOCK_SIZE
    for begin in range(0, num_blocks, CHUNK):
        at = begin + lanes
        blocks = tl.load(table + at, mask=at < num_blocks, other=0)
        tl.store(block_table + row.to(tl.int64) * num_table_columns + at, blocks, mask=at < num_blocks)


def lay_out(
    rows: Tensor,
    query_start_loc: Tensor,
    tokens: Tensor,
    last_tokens: Tensor,
    tables: Tensor,
    inputs: dict[str, Tensor],
    block_size: int,
) -> None:
    """Write the inputs of a step. Everything is int32.

    Args:
        rows: [num_rows, 3]: slot (-1 for padding), tokens computed so far, and where in `tokens` the row's ids begin;
            -1 if its only one is `last_tokens[slot]`.
        query_start_loc: [num_rows + 1]: where each row's tokens begin in the batch.
        tokens: Ids that the host knows, those of each row one after the other.
        last_tokens: [num_slots]: the newest id of each slot.
        tables: [num_slots, max_blocks]: block ids of each slot.
        inputs: Mutated: `input_ids`, `positions`, `slot_mapping` [num_tokens], `seq_lens` [num_rows], `block_table`
            [num_rows, max_blocks], of which only the blocks in use are written. Padding rows have length 0, and their
            tokens id 0, position 0 and slot -1.
        block_size: Tokens in a block.
    """
    _lay_out_kernel[(rows.shape[0],)](
        rows,
        query_start_loc,
        tokens,
        last_tokens,
        tables,
        inputs["input_ids"],
        inputs["positions"],
        inputs["slot_mapping"],
        inputs["seq_lens"],
        inputs["block_table"],
        tables.shape[1],
        BLOCK_SIZE=block_size,
        CHUNK=_CHUNK,
    )


@triton.jit
def _update_tables_kernel(updates, num_updates, tables, CHUNK: tl.constexpr):
    at = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    is_update = at < num_updates
    place = tl.load(updates + 2 * at, mask=is_update, other=0)
    block = tl.load(updates + 2 * at + 1, mask=is_update, other=0)
    tl.store(tables + place, block, mask=is_update)


def update_tables(updates: Tensor, tables: Tensor) -> None:
    """Write block ids into block tables.

    Args:
        updates: [num_updates, 2], int32: place in the flattened `tables`, and block id; no place twice.
        tables: [num_slots, max_blocks], int32. Mutated.
    """
    count = updates.shape[0]
    if not count:
        return
    _update_tables_kernel[(triton.cdiv(count, _CHUNK),)](updates, count, tables, CHUNK=_CHUNK)


@triton.jit
def _keep_tokens_kernel(token_ids, slots, last_tokens, num_rows, CHUNK: tl.constexpr):
    at = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    is_row = at < num_rows
    slot = tl.load(slots + at, mask=is_row, other=-1)
    token_id = tl.maximum(tl.load(token_ids + at, mask=is_row, other=0), 0)
    tl.store(last_tokens + tl.maximum(slot, 0), token_id, mask=slot >= 0)


def keep_tokens(token_ids: Tensor, slots: Tensor, last_tokens: Tensor) -> None:
    """Remember the newest id of each slot, where the next step finds it.

    Args:
        token_ids: [num_rows], int32: sampled ids; -1, of a row that failed, is kept as some id that exists.
        slots: [num_rows], int32: whose they are; -1 for nobody.
        last_tokens: [num_slots], int32. Mutated.
    """
    count = token_ids.shape[0]
    _keep_tokens_kernel[(triton.cdiv(count, _CHUNK),)](token_ids, slots, last_tokens, count, CHUNK=_CHUNK)
