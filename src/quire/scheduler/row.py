"""`Row`: one unfinished sample. `RowQueue`: rows in the order in which they are served."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from quire.core.config import SchedulerConfig
from quire.core.request import NewRow, Request, TokenLogprobs
from quire.core.sampling_params import SamplingParams
from quire.kv_cache.block_table import BlockTable

Ending = tuple[str, int | str | None]
"""Finish reason and stop reason."""


@dataclass(slots=True, eq=False)
class Row:
    """Everything the scheduler knows about one unfinished sample.

    Attributes:
        key: Order of service: (priority, row_id). Rows are numbered in order of arrival.
        row_id: Never reused, and stable across preemptions.
        request: What it is a sample of.
        index: Which of the request's `n` samples.
        params: Parameters of this sample alone. `prompt_logprobs` is set while this row owes them.
        token_ids: Prompt, then what has been generated so far.
        num_prompt_tokens: How many of them are prompt.
        max_num_tokens: Length at which it ends with "length".
        end_token_ids: Ids that end it with "stop".
        table: Its blocks. While waiting it is empty, unless the row is a fork.
        num_computed_tokens: Tokens whose keys and values are in its blocks once the steps in flight are done.
        num_in_flight: Steps with a share of this row that are scheduled, and whose results are not here.
        num_unknown: How many of them sample a token: it counts as known, though nobody has seen its id.
        num_preemptions: How often its blocks were taken.
        num_cached_tokens: Prompt tokens that came from the prefix cache at first admission; None before.
        must_be_known: Whether its tokens are computed only when their ids are here.
        prompt_logprobs: The pieces so far.
        queue: Where it is now.
    """

    key: tuple[int, int]
    row_id: int
    request: Request
    index: int
    params: SamplingParams
    token_ids: list[int]
    num_prompt_tokens: int
    max_num_tokens: int
    end_token_ids: frozenset[int]
    table: BlockTable
    num_computed_tokens: int = 0
    num_in_flight: int = 0
    num_unknown: int = 0
    num_preemptions: int = 0
    num_cached_tokens: int | None = None
    must_be_known: bool = False
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    queue: RowQueue | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens that exist, those in flight included."""
        return len(self.token_ids) + self.num_unknown

    @property
    def must_wait(self) -> bool:
        """Whether nothing can be computed before a result is here: the row ends with it, or it says what may follow."""
        if not self.num_unknown:
            return False
        is_looked_at = (
            self.must_be_known or bool(self.request.bad_words_ids) or self.params.structured_outputs is not None
        )
        return is_looked_at or self.num_tokens >= self.max_num_tokens

    @property
    def is_decoding(self) -> bool:
        """Whether its next step computes one token and samples another."""
        return self.num_tokens - self.num_computed_tokens == 1 and not self.must_wait

    def share(self, budget: int, logits: int) -> int:
        """Return how many of its tokens may be computed within what is left of tokens, and of logits."""
        return budget if self.params.prompt_logprobs is None else min(budget, logits)

    def num_logits(self, num_tokens: int) -> int:
        """Return for how many of some tokens of its logits are computed at most."""
        return 1 if self.params.prompt_logprobs is None else num_tokens

    def move_to(self, queue: RowQueue | None) -> None:
        """Leave the present queue, if any, and enter `queue`, if any."""
        if self.queue is not None:
            self.queue.discard(self)
        self.queue = queue
        if queue is not None:
            queue.insert(self)

    def accept(self, token_ids: tuple[int, ...]) -> tuple[tuple[int, ...], Ending | None]:
        """Append sampled ids up to the one that ends the sample; return the kept ones and how it ended, if it did."""
        for count, token_id in enumerate(token_ids, 1):
            self.token_ids.append(token_id)
            num_tokens = len(self.token_ids)
            if token_id in self.end_token_ids and num_tokens - self.num_prompt_tokens >= self.params.min_tokens:
                is_eos = token_id in self.request.eos_token_ids and not self.params.ignore_eos
                return token_ids[:count], ("stop", None if is_eos else token_id)
            if num_tokens >= self.max_num_tokens:
                return token_ids[:count], ("length", None)
        return token_ids, None

    def introduce(self) -> NewRow:
        """Return what the runner must know to compute this row."""
        return NewRow(
            row_id=self.row_id,
            token_ids=tuple(self.token_ids),
            num_prompt_tokens=self.num_prompt_tokens,
            block_ids=tuple(self.table.block_ids),
            params=self.params,
            stop_token_ids=self.end_token_ids if self.params.min_tokens else frozenset(),
            bad_words_ids=self.request.bad_words_ids,
            pooling=self.request.pooling,
        )


class RowQueue:
    """Rows sorted by key, best served first.

    Attributes:
        rows: In order. Read-only for others; move rows with `Row.move_to`.
    """

    __slots__ = ("rows",)

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def insert(self, row: Row) -> None:
        """Put a row in its place."""
        insort(self.rows, row, key=_key)

    def discard(self, row: Row) -> None:
        """Take a row out."""
        index = bisect_left(self.rows, row.key, key=_key)
        assert self.rows[index] is row, f"row {row.row_id} is not in the queue it names"
        del self.rows[index]


def _key(row: Row) -> tuple[int, int]:
    return row.key


def row_of(request: Request, index: int, row_id: int, config: SchedulerConfig) -> Row:
    """Return sample `index` of a request as a row in no queue."""
    params = request.params.for_sample(index)
    if index and params.prompt_logprobs is not None:
        params = replace(params, prompt_logprobs=None)  # The leader computes them for all.
    end_token_ids = frozenset(params.stop_token_ids or ())
    if not params.ignore_eos:
        end_token_ids |= request.eos_token_ids
    return Row(
        key=(request.priority if config.scheduling_policy == "priority" else 0, row_id),
        row_id=row_id,
        request=request,
        index=index,
        params=params,
        token_ids=list(request.prompt_token_ids),
        num_prompt_tokens=len(request.prompt_token_ids),
        max_num_tokens=max_num_tokens(request, config),
        end_token_ids=end_token_ids,
        table=BlockTable(salt=request.cache_salt),
        must_be_known=config.num_batches > 1,
    )


def max_num_tokens(request: Request, config: SchedulerConfig) -> int:
    """Return the length, prompt included, at which the samples of a request end with "length"."""
    if request.params.max_tokens is None:
        return config.max_model_len
    return min(len(request.prompt_token_ids) + request.params.max_tokens, config.max_model_len)
