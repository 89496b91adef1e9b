"""A runner without a model: it keeps rows, block tables and K/V bytes as the real one does, and believes nothing."""

from __future__ import annotations

import random

from quire.core.config import SchedulerConfig
from quire.core.request import ModelOutput, NewRow, Request, RowOutput, ScheduledRow, SchedulerOutput, TokenLogprobs
from quire.core.sampling_params import SamplingParams

VOCAB = 7


def marks_of(token_ids: list[int], marks: list[int]) -> None:
    """Bring `marks` up to `token_ids`: a position's stand-in for K/V, a function of every token up to it."""
    for position in range(len(marks), len(token_ids)):
        marks.append(hash((marks[-1] if marks else 0, token_ids[position], position)))


def next_token(mark: int, params: SamplingParams, num_output: int, masked: frozenset[int]) -> int:
    """The model and the sampler: what follows a prefix, given the seed."""
    token_id = hash((mark, params.seed)) % VOCAB
    while num_output < params.min_tokens and token_id in masked:
        token_id = (token_id + 1) % VOCAB
    return token_id


def alone(request: Request, index: int, max_model_len: int) -> tuple[list[int], str, int | None]:
    """What sample `index` of a request must produce whatever else happens: ids, finish reason, stop reason."""
    params = request.params.for_sample(index)
    eos = frozenset() if params.ignore_eos else request.eos_token_ids
    stops = eos | frozenset(params.stop_token_ids or ())
    token_ids, marks, num_prompt = list(request.prompt_token_ids), [], len(request.prompt_token_ids)
    while True:
        marks_of(token_ids, marks)
        token_id = next_token(marks[-1], params, len(token_ids) - num_prompt, stops)
        token_ids.append(token_id)
        output = token_ids[num_prompt:]
        if token_id in stops and len(output) >= params.min_tokens:
            return output, "stop", None if token_id in eos else token_id
        if len(output) == params.max_tokens or len(token_ids) == max_model_len:
            return output, "length", None


class HeldRow:
    """What the runner remembers of a row."""

    def __init__(self, new: NewRow) -> None:
        self.new = new
        self.token_ids = list(new.token_ids)
        self.block_ids = list(new.block_ids)
        self.marks: list[int] = []


class FakeRunner:
    """Executes `SchedulerOutput`s, with `rng` deciding who fails and who gets several tokens at once."""

    def __init__(
        self, config: SchedulerConfig, rng: random.Random, oddity: float = 0.0, is_ahead: bool = False
    ) -> None:
        self.config = config
        self.is_ahead = is_ahead  # steps come before results are taken in: one token each, as was assumed
        self.rng = rng
        self.oddity = oddity
        self.rows: dict[int, HeldRow] = {}
        self.bytes: list[list[int | None]] = [[None] * config.block_size for _ in range(config.num_blocks)]

    def execute(self, scheduled: SchedulerOutput) -> ModelOutput:
        self._apply_removals_copies_and_clears(scheduled)
        self._apply_tables(scheduled)
        self._check_shape(scheduled)
        for share in scheduled.rows:  # What counts as computed must be there before anybody writes in this step.
            self._read(share, share.num_computed_tokens)
        for share in scheduled.rows:
            self._write(share)
        return ModelOutput(tuple(self._read_and_sample(share) for share in scheduled.rows))

    def _apply_removals_copies_and_clears(self, scheduled: SchedulerOutput) -> None:
        for row_id in scheduled.removed_row_ids:
            del self.rows[row_id]
        sources = [self.bytes[source].copy() for source, _ in scheduled.block_copies]
        destinations = [destination for _, destination in scheduled.block_copies]
        for destination, content in zip(destinations, sources, strict=True):
            self.bytes[destination] = content
        for block_id in scheduled.fresh_block_ids:
            self.bytes[block_id] = [None] * self.config.block_size
        changed = [*destinations, *scheduled.fresh_block_ids]
        assert len(set(changed)) == len(changed) and 0 not in changed

    def _apply_tables(self, scheduled: SchedulerOutput) -> None:
        for new in scheduled.new_rows:
            assert new.row_id not in self.rows
            self.rows[new.row_id] = HeldRow(new)
        for row_id, index, block_id in scheduled.replaced_block_ids:
            assert (self.rows[row_id].block_ids[index], block_id) in scheduled.block_copies
            self.rows[row_id].block_ids[index] = block_id
        changed = {*scheduled.fresh_block_ids, *(destination for _, destination in scheduled.block_copies)}
        for row_id in self.rows.keys() - {new.row_id for new in scheduled.new_rows}:
            replaced = {block_id for other, _, block_id in scheduled.replaced_block_ids if other == row_id}
            assert not (set(self.rows[row_id].block_ids) - replaced) & changed, (
                "a block that a row holds was given away"
            )
        for share in scheduled.rows:
            assert set(share.new_block_ids) <= set(scheduled.fresh_block_ids)
            self.rows[share.row_id].block_ids += share.new_block_ids

    def _check_shape(self, scheduled: SchedulerOutput) -> None:
        shares, config = scheduled.rows, self.config
        assert len({share.row_id for share in shares}) == len(shares) <= len(self.rows) <= config.max_num_seqs
        assert {new.row_id for new in scheduled.new_rows} <= {share.row_id for share in shares}
        num_tokens = sum(share.num_scheduled_tokens for share in shares)
        assert num_tokens == scheduled.num_scheduled_tokens <= config.max_num_batched_tokens
        for share in shares:
            row = self.rows[share.row_id]
            end, length = share.num_computed_tokens + share.num_scheduled_tokens, len(row.token_ids)
            assert share.num_scheduled_tokens >= 1 and end <= length <= config.max_model_len
            assert share.is_sampled == (end == length)
            is_new = any(new.row_id == share.row_id for new in scheduled.new_rows)
            if is_new and not config.enable_chunked_prefill and not share.is_sampled:
                assert length - share.num_computed_tokens > config.max_num_batched_tokens, "split without need"

    def _read(self, share: ScheduledRow, end: int) -> None:
        row, size = self.rows[share.row_id], self.config.block_size
        marks_of(row.token_ids, row.marks)
        for index, first in enumerate(range(0, end, size)):
            expected = row.marks[first : min(first + size, end)]
            assert self.bytes[row.block_ids[index]][: len(expected)] == expected, f"row {share.row_id} reads another's"

    def _write(self, share: ScheduledRow) -> None:
        row, size = self.rows[share.row_id], self.config.block_size
        end = share.num_computed_tokens + share.num_scheduled_tokens
        written = row.block_ids[share.num_computed_tokens // size : (end - 1) // size + 1]
        for other in self.rows.values():
            assert other is row or not set(other.block_ids) & set(written), "a shared block is written"
        for position in range(share.num_computed_tokens, end):
            self.bytes[row.block_ids[position // size]][position % size] = row.marks[position]

    def _read_and_sample(self, share: ScheduledRow) -> RowOutput:
        self._read(share, share.num_computed_tokens + share.num_scheduled_tokens)
        row = self.rows[share.row_id]
        if self.rng.random() < self.oddity / 4:
            if self.is_ahead and share.is_sampled:  # what is scheduled by now computes some token in its place
                row.token_ids.append(0)
            return RowOutput(share.row_id, error="numbers were not finite")
        sampled = self._sample(row) if share.is_sampled else ()
        logprobs = tuple(TokenLogprobs((token_id,), (0.0,), (1,)) for token_id in sampled)
        return RowOutput(share.row_id, sampled, logprobs, self._prompt_logprobs(row, share))

    def _sample(self, row: HeldRow) -> tuple[int, ...]:
        count = self.rng.randint(0, 3) if not self.is_ahead and self.rng.random() < self.oddity else 1
        sampled = []
        for _ in range(count):
            num_output = len(row.token_ids) - row.new.num_prompt_tokens
            sampled.append(next_token(row.marks[-1], row.new.params, num_output, row.new.stop_token_ids))
            row.token_ids.append(sampled[-1])
            marks_of(row.token_ids, row.marks)
        return tuple(sampled)

    def _prompt_logprobs(self, row: HeldRow, share: ScheduledRow) -> tuple[TokenLogprobs, ...] | None:
        if row.new.params.prompt_logprobs is None:
            return None
        end = min(share.num_computed_tokens + share.num_scheduled_tokens, row.new.num_prompt_tokens - 1)
        return prompt_logprobs_of(row.token_ids, share.num_computed_tokens, end)


def prompt_logprobs_of(token_ids: list[int], start: int, end: int) -> tuple[TokenLogprobs, ...]:
    """The logprobs of the tokens after positions `start .. end - 1`."""
    return tuple(TokenLogprobs((token_ids[p + 1],), (-float(p),), (1,)) for p in range(start, end))
