"""The rows of running samples, kept up to date from each step's diff: whole here, or mostly on a device, by slot."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quire.core.request import NewRow, SchedulerOutput
from quire.runner.outputs import Pooling
from quire.sampling.grammar.compiler import GrammarCompiler
from quire.sampling.grammar.state import GrammarState
from quire.sampling.row import SamplingRow

IntArray = np.ndarray[tuple[int, ...], np.dtype[np.int32]]


@dataclass(slots=True)
class Row:
    """One running sample.

    Attributes:
        row_id: The scheduler's key.
        token_ids: Prompt, then what was generated, the newest sampled id included.
        num_prompt_tokens: How many of them are prompt.
        block_table: [capacity], int32; the first `num_blocks` are in use.
        num_blocks: Blocks in use.
        sampling: What the sampler keeps of it.
        pooling: What becomes of its prompt's hidden states, None if nobody asks for them.
    """

    row_id: int
    token_ids: list[int]
    num_prompt_tokens: int
    block_table: IntArray
    num_blocks: int
    sampling: SamplingRow
    pooling: Pooling | None

    def append_token(self, token_id: int) -> None:
        """Add a sampled id."""
        self.token_ids.append(token_id)
        self.sampling.append(token_id)

    def append_blocks(self, block_ids: tuple[int, ...]) -> None:
        """Add blocks to the table."""
        needed = self.num_blocks + len(block_ids)
        if needed > len(self.block_table):
            self.block_table = np.resize(self.block_table, max(needed, 2 * len(self.block_table)))
        self.block_table[self.num_blocks : needed] = block_ids
        self.num_blocks = needed


class Rows:
    """All rows that the runner holds, by row id.

    Args:
        grammars: Of the model's vocabulary, for rows with structured outputs.
    """

    def __init__(self, grammars: GrammarCompiler | None = None) -> None:
        self._rows: dict[int, Row] = {}
        self._grammars = grammars

    def __getitem__(self, row_id: int) -> Row:
        return self._rows[row_id]

    def __contains__(self, row_id: int) -> bool:
        return row_id in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def apply(self, step: SchedulerOutput) -> None:
        """Take in a step's diff: removed rows first, then new ones, then what changed in block tables."""
        for row_id in step.removed_row_ids:
            self._rows.pop(row_id, None)
        for new in step.new_rows:
            self._rows[new.row_id] = _make(new, self._grammars)
        is_new = {new.row_id for new in step.new_rows}
        for row_id, index, block_id in step.replaced_block_ids:
            if row_id not in is_new:
                self._rows[row_id].block_table[index] = block_id
        for scheduled in step.rows:
            if scheduled.new_block_ids and scheduled.row_id not in is_new:
                self._rows[scheduled.row_id].append_blocks(scheduled.new_block_ids)


def _make(new: NewRow, grammars: GrammarCompiler | None) -> Row:
    table = np.array(new.block_ids, dtype=np.int32)
    return Row(
        new.row_id,
        list(new.token_ids),
        new.num_prompt_tokens,
        table,
        len(table),
        _sampling(new, grammars),
        None if new.pooling is None else Pooling(new.pooling),
    )


def _sampling(new: NewRow, grammars: GrammarCompiler | None) -> SamplingRow:
    prompt, output = new.token_ids[: new.num_prompt_tokens], new.token_ids[new.num_prompt_tokens :]
    grammar = None
    if new.params.structured_outputs is not None:
        assert grammars is not None, "the engine admits no structured outputs without a vocabulary"
        grammar = GrammarState(grammars, new.params.structured_outputs)
    return SamplingRow(new.params, prompt, output, new.stop_token_ids, new.bad_words_ids, grammar)


@dataclass(slots=True)
class SlotRow:
    """One running sample.

    Attributes:
        row_id: The scheduler's key.
        slot: Its place in the device's tables.
        token_ids: Those that the host knew when the row came; what is sampled since is on the device.
        num_prompt_tokens: How many of them are prompt.
        num_blocks: Blocks in its table.
        sampling: Parameters, and what was generated as far as results have been taken.
        error: Why it cannot be sampled, None if it can.
    """

    row_id: int
    slot: int
    token_ids: list[int]
    num_prompt_tokens: int
    num_blocks: int
    sampling: SamplingRow
    error: str | None = None


class Slots:
    """All rows that a device holds, by row id.

    Args:
        max_num_seqs: Number of slots.
        max_blocks: Columns of the device's block tables.
        grammars: Of the model's vocabulary, for rows with structured outputs.
    """

    def __init__(self, max_num_seqs: int, max_blocks: int, grammars: GrammarCompiler | None = None) -> None:
        self._rows: dict[int, SlotRow] = {}
        self._free = list(reversed(range(max_num_seqs)))
        self._max_blocks = max_blocks
        self._grammars = grammars

    def __getitem__(self, row_id: int) -> SlotRow:
        return self._rows[row_id]

    def __contains__(self, row_id: int) -> bool:
        return row_id in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def apply(self, step: SchedulerOutput) -> IntArray:
        """Take in a step's diff; return what changes in the block tables.

        Returns:
            [num_updates, 2], int32: place in the flattened tables, and block id.
        """
        for row_id in step.removed_row_ids:
            row = self._rows.pop(row_id, None)
            if row is not None:
                self._free.append(row.slot)
        changes: list[IntArray] = []
        is_new = {new.row_id for new in step.new_rows}
        for new in step.new_rows:
            row = self._rows[new.row_id] = SlotRow(
                new.row_id,
                self._free.pop(),
                list(new.token_ids),
                new.num_prompt_tokens,
                0,
                _sampling(new, self._grammars),
            )
            changes.append(self._appended(row, new.block_ids))
        for row_id, index, block_id in step.replaced_block_ids:
            if row_id not in is_new:
                place = self._rows[row_id].slot * self._max_blocks + index
                changes.append(np.array([[place, block_id]], dtype=np.int32))
        for scheduled in step.rows:
            if scheduled.new_block_ids and scheduled.row_id not in is_new:
                changes.append(self._appended(self._rows[scheduled.row_id], scheduled.new_block_ids))
        return np.concatenate(changes) if changes else np.zeros((0, 2), dtype=np.int32)

    def _appended(self, row: SlotRow, block_ids: tuple[int, ...]) -> IntArray:
        """Note blocks at the end of a row's table; return the changes."""
        first = row.slot * self._max_blocks + row.num_blocks
        row.num_blocks += len(block_ids)
        places = np.arange(first, first + len(block_ids), dtype=np.int32)
        return np.stack([places, np.array(block_ids, dtype=np.int32)], axis=1)
