"""From a step's rows to the tensors that the network takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from quire.core.request import ScheduledRow
from quire.runner.rows import BlockTables, IntArray, Row


@dataclass(frozen=True, slots=True)
class StepInputs:
    """The network's inputs but for the KV caches, and where each row's logits are: those to sample from come first.

    Attributes:
        tensors: By input name, int32; the next step may write over them.
        sampled: The rows to sample, in order: the place of each among all.
        prompt_logits: By place of a row that wants any, the range of logits of its prompt positions.
    """

    tensors: dict[str, torch.Tensor]
    sampled: list[int]
    prompt_logits: dict[int, range]


class InputBuilder:
    """Lays out steps, in the tensors of the step before if it was one of the same rows and counts, as in decoding.

    Args:
        block_size: Tokens in a KV cache block.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = np.int32(block_size)
        self._layout: _Layout | None = None

    def build(self, scheduled: Sequence[ScheduledRow], rows: Sequence[Row], tables: BlockTables) -> StepInputs:
        """Lay out a step.

        Args:
            scheduled: Each row's share.
            rows: The rows themselves, in the same order.
            tables: Their block tables.
        """
        shares = [(s.num_scheduled_tokens, s.is_sampled) for s in scheduled]
        layout = self._layout
        if layout is None or layout.rows != rows or layout.shares != shares or layout.inputs.prompt_logits:
            layout = self._layout = _Layout(scheduled, rows, shares)
        starts = np.array([s.num_computed_tokens for s in scheduled], dtype=np.int32)
        np.add(starts, layout.counts, out=layout.seq_lens)
        np.add(starts[layout.row_of_token], layout.within_row, out=layout.positions)
        layout.input_ids[:] = _token_ids(scheduled, rows)
        in_table, in_block = np.divmod(layout.positions, self._block_size)
        table = layout.table(tables, in_table[in_table.argmax()] + 1)
        np.multiply(table[layout.row_of_token, in_table], self._block_size, out=layout.slot_mapping)
        layout.slot_mapping += in_block
        return layout.inputs


class _Layout:
    """What only depends on who is in a step with how many tokens, and memory for the rest.

    Attributes:
        rows: Who.
        shares: Tokens of each, and whether one is sampled.
        inputs: All but the values of the rest, and the block table.
        slots: [num_rows], int64: of each row.
        counts: [num_rows], int32: tokens of each.
        row_of_token: [num_tokens], int64.
        within_row: [num_tokens], int32: how many tokens of the row are before.
    """

    def __init__(self, scheduled: Sequence[ScheduledRow], rows: Sequence[Row], shares: list[tuple[int, bool]]) -> None:
        self.rows, self.shares = rows, shares
        self.slots = np.array([row.slot for row in rows])
        self.counts = np.array([count for count, _ in shares], dtype=np.int32)
        query_start_loc = np.zeros(len(rows) + 1, dtype=np.int32)
        self.counts.cumsum(out=query_start_loc[1:])
        num_tokens = int(query_start_loc[-1])
        self.row_of_token = np.arange(len(rows)).repeat(self.counts)
        self.within_row = np.arange(num_tokens, dtype=np.int32) - query_start_loc[self.row_of_token]
        self.seq_lens = np.empty(len(rows), dtype=np.int32)
        self.input_ids, self.positions, self.slot_mapping = np.empty((3, num_tokens), dtype=np.int32)
        sampled = [place for place, (_, is_sampled) in enumerate(shares) if is_sampled]
        prompt_logits, logits_indices = _wanted_logits(scheduled, rows, query_start_loc, sampled)
        arrays = {
            "input_ids": self.input_ids,
            "positions": self.positions,
            "slot_mapping": self.slot_mapping,
            "seq_lens": self.seq_lens,
            "query_start_loc": query_start_loc,
            "logits_indices": logits_indices,
        }
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        self.inputs = StepInputs(tensors, sampled, prompt_logits)
        self._table = np.zeros((0, 0), dtype=np.int32)
        self._table_is_of = (-1, -1)

    def table(self, tables: BlockTables, num_blocks: int) -> IntArray:
        """Return the first columns of the rows' block tables, the network's input from now on."""
        if self._table_is_of != (tables.num_changes, num_blocks):
            self._table_is_of = (tables.num_changes, num_blocks)
            self._table = tables.blocks[self.slots, :num_blocks]
            self.inputs.tensors["block_table"] = torch.from_numpy(self._table)
        return self._table


def _token_ids(scheduled: Sequence[ScheduledRow], rows: Sequence[Row]) -> list[int]:
    found: list[int] = []
    for s, row in zip(scheduled, rows, strict=True):
        start, count = s.num_computed_tokens, s.num_scheduled_tokens
        if count == 1:
            found.append(row.token_ids[start])
        else:
            found += row.token_ids[start : start + count]
    return found


def _wanted_logits(
    scheduled: Sequence[ScheduledRow], rows: Sequence[Row], query_start_loc: IntArray, sampled: list[int]
) -> tuple[dict[int, range], IntArray]:
    """Choose the tokens whose logits are needed: the last of sampled rows, then prompt positions if asked for."""
    parts = [query_start_loc[1:][sampled] - 1]
    prompt_logits: dict[int, range] = {}
    end = len(sampled)
    for place, row in enumerate(rows):
        if not row.has_prompt_news:
            continue
        s, start = scheduled[place], int(query_start_loc[place])
        count = 0
        if row.sampling.params.prompt_logprobs is not None:
            until = min(s.num_computed_tokens + s.num_scheduled_tokens, row.num_prompt_tokens - 1)
            count = max(0, until - s.num_computed_tokens)
        parts.append(np.arange(start, start + count, dtype=np.int32))
        prompt_logits[place] = range(end, end + count)
        end += count
    return prompt_logits, np.concatenate(parts)
