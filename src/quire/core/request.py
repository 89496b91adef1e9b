"""The types that cross walls: `Request`, `SchedulerOutput`, `ModelOutput`, `RequestOutput`. Frozen, no behaviour.

Those made for every row of every step are msgspec structs: a frozen dataclass takes four times as long to make. Those
that other processes get in every step go as arrays: a step of 256 rows is 2 KB instead of 20.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from quire.core.sampling_params import SamplingParams

FINISH_REASONS = ("stop", "length", "abort", "error")


class Request(msgspec.Struct, frozen=True):
    """A validated unit of work (door -> engine -> scheduler).

    Attributes:
        request_id: Unique among unfinished requests.
        prompt_token_ids: At least one id, each inside the vocabulary.
        params: Checked parameters with `max_tokens` and `seed` filled in.
        eos_token_ids: Ids that end a sample unless `params.ignore_eos`.
        prompt: The text the ids came from, if any.
        priority: Lower is served first under the "priority" policy.
        arrival_time_s: Clock reading (monotonic seconds) when it was added.
        cache_salt: Requests share cached prefixes only with equal salts.
        bad_words_ids: `params.bad_words` as sequences of ids that may not be completed.
        pooling: Whether its prompt's hidden states are wanted as one vector, "mean" or "last"; None if not. "mean"
            sets `params.prompt_logprobs`, too, so that every position is computed; there are none of them then.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    eos_token_ids: frozenset[int] = frozenset()
    prompt: str | None = None
    priority: int = 0
    arrival_time_s: float = 0.0
    cache_salt: str = ""
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    pooling: str | None = None


class NewRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Everything the runner must know when a sample starts, or starts again after preemption.

    Attributes:
        row_id: The scheduler's key of this sample, never reused.
        token_ids: Prompt, then what has been generated so far.
        num_prompt_tokens: How many of `token_ids` are prompt.
        block_ids: Its block table at this moment, blocks for this step's tokens included.
        params: Parameters of this sample alone (`n=1`, its own seed).
        stop_token_ids: Ids that may not be sampled before `params.min_tokens`.
        bad_words_ids: The request's.
        pooling: The request's.
    """

    row_id: int
    token_ids: tuple[int, ...]
    num_prompt_tokens: int
    block_ids: tuple[int, ...]
    params: SamplingParams
    stop_token_ids: frozenset[int] = frozenset()
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    pooling: str | None = None


class ScheduledRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One row's share of a step.

    Attributes:
        row_id: Key of the sample.
        num_computed_tokens: Tokens whose keys and values are already in the cache.
        num_scheduled_tokens: Tokens to compute now, at least 1.
        new_block_ids: Blocks appended to its table for this step (for a new row they are in `NewRow.block_ids`).
        is_sampled: Whether this step reaches the row's last known token, so that one more is sampled.
    """

    row_id: int
    num_computed_tokens: int
    num_scheduled_tokens: int
    new_block_ids: tuple[int, ...] = ()
    is_sampled: bool = False


class SchedulerOutput(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What the runner does in one step (scheduler -> runner). Order of use: removed, copies, fresh, new, rows.

    The order matters: a copied block may be given away, and be fresh for another row, in the same step.

    Attributes:
        rows: The rows to compute, in batch order.
        new_rows: Rows of `rows` that the runner does not hold yet.
        removed_row_ids: Rows to forget: finished, aborted or preempted since the last step.
        replaced_block_ids: (row_id, index in its block table, new block id) after copy-on-write.
        block_copies: (source, destination) block ids to copy before anything is written.
        fresh_block_ids: Blocks taken in this step (destinations of copies not among them): what is in them was
            somebody else's, and no call may read it.
        num_scheduled_tokens: Sum over `rows`.
    """

    rows: tuple[ScheduledRow, ...] = ()
    new_rows: tuple[NewRow, ...] = ()
    removed_row_ids: tuple[int, ...] = ()
    replaced_block_ids: tuple[tuple[int, int, int], ...] = ()
    block_copies: tuple[tuple[int, int], ...] = ()
    fresh_block_ids: tuple[int, ...] = ()
    num_scheduled_tokens: int = 0


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Logprobs at one position: first the actual token, then the most likely ones, best first.

    Attributes:
        token_ids: Ids; the first is the sampled (or prompt) token.
        logprobs: Natural logarithms, one per id.
        ranks: 1 is the most likely token; one per id.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    ranks: tuple[int, ...]


class RowOutput(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a step produced for one row.

    Attributes:
        row_id: Key of the sample.
        token_ids: Sampled ids: empty while the prompt is being computed.
        logprobs: One entry per sampled id if asked for.
        prompt_logprobs: For this step's prompt positions, the logprobs of the *next* prompt token, if asked for.
        error: Why this row alone failed; its ids are then empty.
        embedding: The pooled hidden states of its prompt, of unit length, if asked for and complete.
    """

    row_id: int
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None
    error: str | None = None
    embedding: tuple[float, ...] | None = None


class ModelOutput(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Results of one step (runner -> scheduler), one per scheduled row, in the same order."""

    rows: tuple[RowOutput, ...] = ()


class SampleUpdate(msgspec.Struct, frozen=True, omit_defaults=True):
    """News of one sample (scheduler -> engine's output side).

    Attributes:
        request_id: Whose sample.
        index: Which of its `n` samples.
        new_token_ids: Ids sampled in this step, a stop token included.
        new_logprobs: One entry per new id if asked for.
        prompt_logprobs: All prompt positions but the first, once they are complete.
        num_cached_tokens: Prompt tokens that came from the prefix cache.
        finish_reason: One of `FINISH_REASONS`, or None while running.
        stop_reason: The stop token id that ended it, or the error's text.
        num_preemptions: How often it has given its seat back so far.
        scheduled_time_s: When it got a seat for the first time, monotonic seconds; only in the news of that.
        embedding: As in `RowOutput`.
    """

    request_id: str
    index: int
    new_token_ids: tuple[int, ...] = ()
    new_logprobs: tuple[TokenLogprobs, ...] | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None
    num_cached_tokens: int = 0
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    num_preemptions: int = 0
    scheduled_time_s: float | None = None
    embedding: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Logprob:
    """Logprob of one token at one position.

    Attributes:
        logprob: Natural logarithm of its probability.
        rank: 1 is the most likely token.
        decoded_token: Its text, None without detokenization.
    """

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One continuation.

    Attributes:
        index: Which of the request's `n`.
        text: The text so far (or the new part under `DELTA`).
        token_ids: Likewise.
        cumulative_logprob: Sum over the sampled tokens, None unless logprobs were asked for.
        logprobs: Per token a mapping of token id to `Logprob`, None unless asked for.
        finish_reason: "stop", "length", "abort", "error", or None while running.
        stop_reason: The stop string or stop token id that ended it; None for end-of-sequence.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass(frozen=True, slots=True)
class RequestMetrics:
    """When things happened to a request, in monotonic seconds; None means not yet.

    Attributes:
        arrival_time_s: It was added.
        first_token_time_s: Its first token came.
        finished_time_s: Its last sample ended.
        scheduled_time_s: It began to run: before, it was queued; until its first token, its prompt was computed.
        num_preemptions: How often one of its samples gave its seat back.
    """

    arrival_time_s: float
    first_token_time_s: float | None = None
    finished_time_s: float | None = None
    scheduled_time_s: float | None = None
    num_preemptions: int = 0


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """A request's result (engine -> door).

    Attributes:
        request_id: Key of the request.
        prompt: Its text, None if ids were given.
        prompt_token_ids: Its ids.
        prompt_logprobs: Per prompt position a mapping of token id to `Logprob`; the first is None.
        outputs: The `n` continuations in order of index.
        finished: Whether all of them have ended.
        metrics: Timing.
        num_cached_tokens: Prompt tokens that came from the prefix cache.
        embedding: The pooled hidden states of its prompt, of unit length, if asked for.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    metrics: RequestMetrics | None = field(default=None, compare=False)
    num_cached_tokens: int = 0
    embedding: tuple[float, ...] | None = None


class SequenceInCache(msgspec.Struct, frozen=True):
    """An unfinished sample, as a picture shows it.

    Attributes:
        request_id: What it is a sample of.
        index: Which of its samples.
        is_running: Whether it has a seat.
        num_tokens: Prompt and what has been generated.
        num_computed_tokens: How many of them have keys and values.
        num_prompt_tokens: How many of them are prompt.
        num_cached_tokens: How many of the prompt came from the prefix cache.
        num_blocks: Blocks that it holds, alone or with others.
    """

    request_id: str
    index: int
    is_running: bool
    num_tokens: int
    num_computed_tokens: int
    num_prompt_tokens: int
    num_cached_tokens: int
    num_blocks: int


class CachePicture(msgspec.Struct, frozen=True):
    """What the KV cache holds between two steps (scheduler -> door), for people to look at.

    `holders`, `findable` and `owners` have a byte for each of the blocks 1, 1 + stride, 1 + 2 * stride, ...

    Attributes:
        block_size: Tokens in a block.
        num_blocks: Blocks that sequences can use.
        num_free_blocks: How many of them nobody holds, cached ones included.
        num_cached_blocks: How many of them a prompt can find, held ones included.
        num_running: Sequences with a seat.
        num_waiting: Sequences without one.
        stride: Every how manieth block is shown.
        holders: How many sequences hold it, at most 255.
        findable: 1 if a prompt can find it.
        owners: Place in `sequences` of the first one that holds it, from 1; 0 is nobody, 255 one that is not listed.
        sequences: Those that hold blocks come first; at most 254.
    """

    block_size: int
    num_blocks: int
    num_free_blocks: int
    num_cached_blocks: int
    num_running: int
    num_waiting: int
    stride: int
    holders: bytes
    findable: bytes
    owners: bytes
    sequences: tuple[SequenceInCache, ...]
