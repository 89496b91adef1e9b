"""The rows of running samples, by slot, kept up to date from each step's diff; block tables are here or on a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from quire.core.log import get_logger
from quire.core.request import NewRow, ScheduledRow, SchedulerOutput, TokenLogprobs
from quire.core.sampling_params import SamplingParams
from quire.runner.outputs import Pooling, prompt_logprobs_of
from quire.sampling.grammar.compiler import GrammarCompiler
from quire.sampling.grammar.state import GrammarState
from quire.sampling.row import SamplingRow

_log = get_logger(__name__)
IntArray = np.ndarray[tuple[int, ...], np.dtype[np.int32]]

PromptNews = tuple[tuple[TokenLogprobs, ...] | None, tuple[float, ...] | None]
"""Logprobs of prompt tokens, and the pooled hidden states of all; None is what nobody asked for, or not yet."""

_NO_CHANGES: IntArray = np.zeros((0, 2), dtype=np.int32)


@dataclass(slots=True, eq=False)
class Row:
    """One running sample.

    Attributes:
        row_id: The scheduler's key.
        slot: Its place in the block tables.
        token_ids: Those that the host knows: all, or where steps run ahead of results those that came with the row.
        num_prompt_tokens: How many of them are prompt.
        num_blocks: Blocks in its table.
        sampling: Parameters, and what was generated as far as results have been taken.
        pooling: What becomes of its prompt's hidden states, None if nobody asks for them.
        error: Why it cannot be sampled, None if it can.
    """

    row_id: int
    slot: int
    token_ids: list[int]
    num_prompt_tokens: int
    num_blocks: int
    sampling: SamplingRow
    pooling: Pooling | None = None
    error: str | None = None

    @property
    def has_prompt_news(self) -> bool:
        """Whether anything is wanted of its prompt's positions."""
        return self.pooling is not None or self.sampling.params.prompt_logprobs is not None

    def append_token(self, token_id: int) -> None:
        """Add a sampled id."""
        self.token_ids.append(token_id)
        self.sampling.append(token_id)

    def prompt_news(
        self,
        scheduled: ScheduledRow,
        positions: range,
        sampled: int,
        logits: torch.Tensor | None,
        hidden_states: torch.Tensor | None,
    ) -> PromptNews:
        """Return the logprobs of prompt tokens if they are wanted, or the pooled hidden states once all are here.

        Args:
            scheduled: Its share of a step.
            positions: Where logits and hidden states of its prompt positions are, but for the last.
            sampled: Where those of the token are that is sampled from, -1 if none is.
            logits: [num_logits, vocab_size], on any device; None if no row of the step wants logprobs of its prompt.
            hidden_states: [num_logits, hidden_size]; None if the plan does not give them, or nobody asked.

        Raises:
            RequestError: What is wanted is not finite.
        """
        wanted = slice(positions.start, positions.stop)
        if self.pooling is None:
            found = torch.empty(0) if logits is None else logits[wanted].cpu()
            return prompt_logprobs_of(scheduled, self.sampling, self.token_ids, found), None
        assert hidden_states is not None, "nobody may ask for what the plan does not give"
        self.pooling.add(hidden_states[wanted])
        if sampled < 0:
            return None, None
        self.pooling.add(hidden_states[sampled : sampled + 1])
        return None, self.pooling.vector()


class Slots:
    """All rows that a runner holds, by row id.

    Args:
        max_num_seqs: Number of slots.
        max_blocks: Columns of the block tables.
        grammars: Of the model's vocabulary, for rows with structured outputs.
    """

    def __init__(self, max_num_seqs: int, max_blocks: int, grammars: GrammarCompiler | None = None) -> None:
        self._rows: dict[int, Row] = {}
        self._free = list(reversed(range(max_num_seqs)))
        self._max_blocks = max_blocks
        self._grammars = grammars

    def __getitem__(self, row_id: int) -> Row:
        return self._rows[row_id]

    def __contains__(self, row_id: int) -> bool:
        return row_id in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def of(self, shares: Sequence[ScheduledRow]) -> list[Row]:
        """Return the rows of shares, in order."""
        rows = self._rows
        return [rows[share.row_id] for share in shares]

    def apply(self, step: SchedulerOutput) -> IntArray:
        """Take in a step's diff: removed rows first, then new ones; return what changes in the block tables.

        Returns:
            [num_updates, 2], int32: place in the flattened tables, and block id.
        """
        for row_id in step.removed_row_ids:
            row = self._rows.pop(row_id, None)
            if row is not None:
                self._free.append(row.slot)
        changes: list[tuple[int, int]] = []
        for new in step.new_rows:
            row = self._rows[new.row_id] = self._make(new)
            changes += self._appended(row, new.block_ids)
        is_new = {new.row_id for new in step.new_rows}
        for row_id, index, block_id in step.replaced_block_ids:
            if row_id not in is_new:
                changes.append((self._rows[row_id].slot * self._max_blocks + index, block_id))
        for scheduled in step.rows:
            if scheduled.new_block_ids and scheduled.row_id not in is_new:
                changes += self._appended(self._rows[scheduled.row_id], scheduled.new_block_ids)
        if not changes:
            return _NO_CHANGES
        return np.array(changes, dtype=np.int32)

    def _make(self, new: NewRow) -> Row:
        """Return a new row; one that the sampler cannot serve has its place and an error."""
        pooling, error = None if new.pooling is None else Pooling(new.pooling), None
        try:
            sampling = _sampling(new, self._grammars)
        except Exception as found:
            _log.exception("row %d cannot be sampled", new.row_id)
            error = f"{type(found).__name__} while its row was made."
            sampling = SamplingRow(SamplingParams(temperature=0.0), (), ())
        ids = list(new.token_ids)
        return Row(new.row_id, self._free.pop(), ids, new.num_prompt_tokens, 0, sampling, pooling, error)

    def _appended(self, row: Row, block_ids: tuple[int, ...]) -> zip[tuple[int, int]]:
        """Note blocks at the end of a row's table; return the changes."""
        first = row.slot * self._max_blocks + row.num_blocks
        row.num_blocks += len(block_ids)
        return zip(range(first, first + len(block_ids)), block_ids, strict=True)


class BlockTables:
    """Block tables on the host, by slot.

    Attributes:
        blocks: [max_num_seqs, max_blocks], int32; 0, the null block, where a row has none.
        num_changes: How often they changed.
    """

    def __init__(self, max_num_seqs: int, max_blocks: int) -> None:
        self.blocks = np.zeros((max_num_seqs, max_blocks), dtype=np.int32)
        self.num_changes = 0

    def change(self, new_slots: Sequence[int], changes: IntArray) -> None:
        """Clear the tables of slots that have a new row, then take in changes.

        Args:
            new_slots: Which.
            changes: [num_updates, 2], int32, from `Slots.apply`.
        """
        if not new_slots and not len(changes):
            return
        self.num_changes += 1
        for slot in new_slots:
            self.blocks[slot] = 0
        self.blocks.reshape(-1)[changes[:, 0]] = changes[:, 1]


class Rows(Slots):
    """All rows, with their block tables on the host.

    Attributes:
        tables: The tables.
    """

    def __init__(self, max_num_seqs: int, max_blocks: int, grammars: GrammarCompiler | None = None) -> None:
        super().__init__(max_num_seqs, max_blocks, grammars)
        self.tables = BlockTables(max_num_seqs, max_blocks)

    def apply(self, step: SchedulerOutput) -> IntArray:
        """Take in a step's diff, the changes of block tables, too."""
        changes = super().apply(step)
        self.tables.change([self._rows[new.row_id].slot for new in step.new_rows], changes)
        return changes


def _sampling(new: NewRow, grammars: GrammarCompiler | None) -> SamplingRow:
    prompt, output = new.token_ids[: new.num_prompt_tokens], new.token_ids[new.num_prompt_tokens :]
    grammar = None
    if new.params.structured_outputs is not None:
        assert grammars is not None, "the engine admits no structured outputs without a vocabulary"
        grammar = GrammarState(grammars, new.params.structured_outputs)
    return SamplingRow(new.params, prompt, output, new.stop_token_ids, new.bad_words_ids, grammar)
