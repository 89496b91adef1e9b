"""`Scheduler`: requests -> integers -> results, one step at a time.

There is no prefill and no decode phase. A row has tokens, some of them computed; each step computes more of them
within the token budget, and a row whose last known token is computed gets a sampled one. Everything else follows:

- *Chunked prefill* is a row that got less than it had left. A *prefix hit* is a row that starts further on.
  *Preemption* is a row that starts over, its generated tokens now part of what it has to compute.
- Rows are served in order of `Row.key`: arrival, or priority and then arrival. Running rows come before waiting ones,
  and each leaves one token of budget to every running row behind it, so that no prefill starves a decode.
- While a row decodes, that is has one token to compute, all rows that have more share `max_num_prefill_tokens`: a long
  prompt that arrives makes the steps of others longer by that much and no more. Beyond it each gets its one token.
- A prompt that would take all that is left for prompts leaves up to half of it to those behind it that are done with
  that. So a short prompt does not wait for a long one, and the long one takes at most twice the steps.
- When blocks run out the last in that order gives its own back, forks that still wait before rows that run. It has
  not been served in this step then, or is the one being served; so a step never has to be unmade. The first in order
  always proceeds, and `check_fits` has seen to it that the whole pool is enough for it.
- A row is admitted when there are blocks for all of its known tokens, and takes them at once, so that admissions do
  not compete for what is left; blocks for generated tokens are taken on demand.
- A row whose next block a running row is about to compute waits for that: of many prompts that begin alike, and come at
  once, one computes the beginning. Those behind it may pass, but leave it its seat.
- A row that owes the logprobs of its prompt computes logits for all its tokens, any other at most for its last. There
  is a budget of those, too, and running rows leave one for each behind them. It is no less than the token budget
  without chunked prefill.
- Steps may be scheduled ahead of results. A row counts as computed what is in flight, and as known the token that a
  step in flight samples; only its id is missing, which the runner has. A row that certainly ends with that token is
  passed over. One that is preempted waits for its results before it is admitted again.
- Where several batches are to be in flight (`num_batches`), a row is passed over until its token is known, and a step
  takes its share of the rows, and of the tokens of long prompts, so that the next ones find some, too.
- Without chunked prefill a row is admitted when all it has left fits in what is left of the budget. What exceeds
  the whole budget could never be, and the runner's buffers hold no more; so only that is still split.
"""

from __future__ import annotations

from dataclasses import replace

from quire.core.config import SchedulerConfig
from quire.core.errors import RequestError
from quire.core.log import get_logger
from quire.core.request import (
    FINISH_REASONS,
    CachePicture,
    ModelOutput,
    Request,
    RowOutput,
    SampleUpdate,
    ScheduledRow,
    SchedulerOutput,
    TokenLogprobs,
)
from quire.kv_cache.block_table import Extension
from quire.kv_cache.cache import KVCache
from quire.scheduler.budgets import open_step
from quire.scheduler.capacity import check_fits
from quire.scheduler.coming import Coming
from quire.scheduler.picture import draw_cache
from quire.scheduler.row import Row, RowQueue
from quire.scheduler.samples import Samples
from quire.scheduler.step import Step

PREEMPTION_REASONS = ("out_of_blocks", "lost_fork")
_log = get_logger(__name__)


class Scheduler:
    """Decides what each step computes. Call `schedule`, run the model, call `update`; repeat.

    Any number of steps may be scheduled before the first of them is updated; updates come in the same order.

    Attributes:
        kv_cache: The books of the blocks; read its counters, leave its tables alone.
        num_preemptions: Count by reason. "out_of_blocks": a running row gave its blocks to one before it; "lost_fork":
            a sample that waited for a seat gave back the prompt it shared. Both start over when admitted again.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self.kv_cache = KVCache(config.num_blocks, config.block_size, config.enable_prefix_caching)
        self.num_preemptions = dict.fromkeys(PREEMPTION_REASONS, 0)
        self._config = config
        self._requests: dict[str, Samples] = {}
        self._rows: dict[int, Row] = {}
        self._running = RowQueue()
        self._waiting = RowQueue()
        self._removed_row_ids: list[int] = []
        self._seated: list[tuple[str, int]] = []
        self._next_row_id = 0
        self._num_tokens_in_flight = 0

    @property
    def num_running(self) -> int:
        """Samples that hold a seat."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Samples that do not, those held until their leader's prompt is computed included."""
        return len(self._rows) - len(self._running)

    def has_unfinished(self) -> bool:
        """Return whether another step is needed; if so, `schedule` returns a row, or an update is due."""
        return bool(self._rows)

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            RequestError: Its id is in use, or its prompt does not fit `max_model_len`.
            CapacityError: It could need more blocks than the pool has.
        """
        if request.request_id in self._requests:
            raise RequestError(
                f"request_id: expected one that no unfinished request has, got {request.request_id!r}. "
                "Choose another or wait for its end."
            )
        check_fits(request, self._config)
        samples = Samples(request, self._next_row_id, self._config)
        self._next_row_id += request.params.n
        self._requests[request.request_id] = samples
        self._rows.update((row.row_id, row) for row in samples.rows.values())
        self._lead(samples)

    def abort(self, request_id: str) -> list[SampleUpdate]:
        """End all samples of a request now; return the news of each, nothing if the request is not known (any more)."""
        samples = self._requests.get(request_id)
        return [self._end(row, "abort") for row in list(samples.rows.values())] if samples else []

    def finish(
        self, request_id: str, index: int, reason: str, stop_reason: int | str | None = None
    ) -> SampleUpdate | None:
        """End one sample now, for a cause outside the scheduler's sight such as a stop string.

        Args:
            request_id: Whose sample.
            index: Which of its `n`.
            reason: One of `FINISH_REASONS`.
            stop_reason: For example the stop string.

        Returns:
            The news, or None if the sample has ended already.
        """
        assert reason in FINISH_REASONS, f"finish reason: expected one of {FINISH_REASONS}, got {reason!r}"
        samples = self._requests.get(request_id)
        row = samples.rows.get(index) if samples else None
        return self._end(row, reason, stop_reason) if row else None

    def take_seated(self) -> list[tuple[str, int]]:
        """Return (request id, sample) of what got a seat for the first time since the last call; not of forks."""
        seated, self._seated = self._seated, []
        return seated

    def picture(self) -> CachePicture:
        """Return what the blocks hold now."""
        waiting = (row for row in self._rows.values() if row.queue is not self._running)
        return draw_cache(self.kv_cache, self._running, waiting)

    def reset_prefix_cache(self) -> None:
        """Forget every cached prefix; running samples go on with their blocks."""
        self.kv_cache.reset_prefix_cache()

    # ------------------------------------------------------------------------------------------------ requests -> step

    def schedule(self) -> SchedulerOutput:
        """Decide the next step.

        A row preempted here is in `removed_row_ids`, and comes again in `new_rows` under the same `row_id`: later, or
        in this very step if shared blocks let it; so removals are applied first. With nothing to run the output is
        empty, and removals wait for a step; so it is while all that is left depends on results.
        """
        step = open_step(self._config, self._running.rows, self._waiting.rows, self._num_tokens_in_flight)
        self._serve_running(step)
        self._serve_waiting(step)
        if not step.rows:
            is_due = any(row.num_in_flight for row in self._rows.values())
            assert is_due or not self._rows, f"{len(self._rows)} unfinished samples, but none can be scheduled"
            return SchedulerOutput()
        rows = self._rows
        for share in step.rows:
            row = rows[share.row_id]
            row.num_computed_tokens = share.num_computed_tokens + share.num_scheduled_tokens
            row.num_in_flight += 1
            row.num_unknown += share.is_sampled
        removed, self._removed_row_ids = self._removed_row_ids, []
        output = step.output(removed)
        self._num_tokens_in_flight += output.num_scheduled_tokens
        return output

    def _serve_running(self, step: Step) -> None:
        """Let each running row catch up its computed tokens to its known ones, in order, within the budget."""
        rows, shares, budget, num_served = self._running.rows, step.rows, step.budget, 0
        while num_served < len(rows) and budget > 0:
            row = rows[num_served]
            num_served += 1
            if row.num_unknown and row.must_wait:
                continue
            start = row.num_computed_tokens
            num_left = len(row.token_ids) + row.num_unknown - start
            if num_left == 1:
                if step.places == 0:
                    continue
                num_tokens = 1
            else:
                num_tokens = self._next_share(row, num_left, budget, num_served, step)
            new_block_ids: tuple[int, ...] = ()
            if start + num_tokens > row.table.writable_end:
                extension = self._extend(row, start + num_tokens, step)
                if extension is None:
                    break
                new_block_ids = extension.new_block_ids
            shares.append(ScheduledRow(row.row_id, start, num_tokens, new_block_ids, num_tokens == num_left))
            budget -= num_tokens
            step.places -= step.places > 0
            if num_left > 1:
                step.prefill -= num_tokens
            step.logits -= 1 if num_tokens == 1 else row.num_logits(num_tokens)
        step.budget = budget

    def _next_share(self, row: Row, num_left: int, budget: int, num_served: int, step: Step) -> int:
        """Return how many of the tokens that a running row has left it computes, at least one."""
        num_behind = len(self._running) - num_served
        share = min(row.share(budget - num_behind, step.logits - num_behind), step.prefill)
        return min(num_left, max(1, self._prefill_share(num_left, share, num_served)))

    def _prefill_share(self, num_left: int, budget: int, num_running: int, num_waiting: int = 0) -> int:
        """Return how much of the budget for prompts one of them may take.

        Args:
            num_left: Tokens that it has to compute.
            budget: What is left.
            num_running: Running rows up to it.
            num_waiting: Waiting rows up to it.
        """
        half = budget // 2
        if num_left <= half or not self._config.enable_chunked_prefill:
            return budget
        num_given = 0
        for row in self._running.rows[num_running:]:
            num_tokens = row.num_tokens - row.num_computed_tokens
            num_given += num_tokens if 1 < num_tokens <= half - num_given else 0
        num_seats = self._config.max_num_seqs - len(self._running)
        num_blocks = self.kv_cache.num_free_blocks
        for row in self._waiting.rows[num_waiting:num_seats]:
            num_tokens = row.num_tokens - row.num_computed_tokens
            num_blocks -= self.kv_cache.num_blocks_for(row.num_tokens) - len(row.table.block_ids)
            if num_tokens > half - num_given or num_blocks < 0:
                break
            num_given += num_tokens
        return budget - num_given

    def _extend(self, row: Row, end: int, step: Step) -> Extension | None:
        """Make a running row writable up to `end`, at others' expense if need be; None if it had to go itself."""
        while (extension := self.kv_cache.extend(row.table, row.num_computed_tokens, end)) is None:
            victim = self._last_fork() or self._running.rows[-1]
            self._preempt(victim)
            if victim is row:
                return None
        step.note_blocks(extension)
        step.note_replaced(row.row_id, extension)
        return extension

    def _serve_waiting(self, step: Step) -> None:
        """Admit waiting rows in order until one does not fit. Nobody passes who could run, so nobody waits forever."""
        waiting, num_passed, coming = self._waiting.rows, 0, Coming(self.kv_cache, self._running)
        while num_passed < min(len(waiting), self._config.max_num_seqs - len(self._running)) and step.has_room:
            row = waiting[num_passed]
            if row.num_in_flight:  # preempted since; its blocks are others' by now, and its last token is not known
                break
            prefix = self._find_prefix(row)
            if prefix is not None and coming.has_next_of(row, prefix):
                num_passed += 1
                continue
            start = len(prefix) * self._config.block_size if prefix else row.num_computed_tokens
            num_left = len(row.token_ids) - start
            share = min(row.share(step.budget, step.logits), step.prefill)
            num_tokens = self._first_share(
                num_left, self._prefill_share(num_left, share, len(self._running), num_passed + 1)
            )
            extension = self._seat(row, prefix) if num_tokens else None
            if extension is None:
                break
            row.num_computed_tokens = start
            if row.num_cached_tokens is None:
                row.num_cached_tokens = start
                self._seated.append((row.request.request_id, row.index))
            row.move_to(self._running)
            coming.add(row)
            step.note_blocks(extension)
            step.new_rows.append(row.introduce())
            step.rows.append(ScheduledRow(row.row_id, start, num_tokens, (), num_tokens == num_left))
            step.budget -= num_tokens
            step.places -= 1
            step.prefill -= num_tokens
            step.logits -= row.num_logits(num_tokens)

    def _find_prefix(self, row: Row) -> list[int] | None:
        """Return cached blocks to start from; None for a fork, and for a row whose whole prompt must be computed."""
        if row.table.block_ids or row.params.prompt_logprobs is not None:
            return None
        return self.kv_cache.find_prefix(row.table, row.token_ids)

    def _first_share(self, num_left: int, budget: int) -> int:
        """Return how many of its tokens a row computes in its first step, 0 if it is not its turn."""
        may_split = self._config.enable_chunked_prefill or num_left > self._config.max_num_batched_tokens
        return min(num_left, budget) if may_split or num_left <= budget else 0

    def _seat(self, row: Row, prefix: list[int] | None) -> Extension | None:
        """Give a waiting row the blocks of its known tokens. With nobody running, forks behind it make room."""
        while (extension := self._take_blocks(row, prefix)) is None and not self._running:
            fork = self._last_fork()
            assert fork is not None and fork is not row, f"row {row.row_id} does not fit the empty pool"
            self._preempt(fork)
        return extension

    def _take_blocks(self, row: Row, prefix: list[int] | None) -> Extension | None:
        num_tokens = len(row.token_ids)
        if row.table.block_ids:
            return self.kv_cache.extend(row.table, row.num_computed_tokens, num_tokens)
        return self.kv_cache.admit(row.table, num_tokens, prefix)

    def _last_fork(self) -> Row | None:
        """Return the last waiting row that holds blocks."""
        return next((row for row in reversed(self._waiting.rows) if row.table.block_ids), None)

    def _preempt(self, row: Row) -> None:
        """Take all blocks of a row; it keeps its tokens, and waits at its place in the order to compute them again."""
        reason = "out_of_blocks" if row.queue is self._running else "lost_fork"
        self.num_preemptions[reason] += 1
        _log.info("preempted sample %d of %r: %s", row.index, row.request.request_id, reason)
        self._vacate(row)
        row.num_preemptions += 1
        row.num_computed_tokens = 0
        row.prompt_logprobs.clear()
        row.move_to(self._waiting)

    def _vacate(self, row: Row) -> None:
        """Free the blocks of a row and, if it is running, have the runner forget it."""
        self.kv_cache.free(row.table)
        if row.queue is self._running:
            self._removed_row_ids.append(row.row_id)

    # ------------------------------------------------------------------------------------------------- results -> news

    def update(self, scheduled: SchedulerOutput, output: ModelOutput) -> list[SampleUpdate]:
        """Take in what a step produced; free the blocks of samples that ended with it.

        Args:
            scheduled: What `schedule` returned.
            output: One entry per scheduled row in the same order, each with any number of sampled ids. Entries of
                rows that ended since, by `abort` or `finish`, are dropped.

        Returns:
            One entry per sample with news.
        """
        updates, rows = [], self._rows
        self._num_tokens_in_flight -= scheduled.num_scheduled_tokens
        for share, result in zip(scheduled.rows, output.rows, strict=True):
            assert result.row_id == share.row_id, f"expected the result of row {share.row_id}, got {result.row_id}"
            row = rows.get(share.row_id)
            if row is None:
                continue
            row.num_in_flight -= 1
            row.num_unknown -= share.is_sampled
            if result.error is not None:
                updates.append(self._end(row, "error", result.error))
            elif (update := self._absorb(row, share, result)) is not None:
                updates.append(update)
        return updates

    def _absorb(self, row: Row, share: ScheduledRow, result: RowOutput) -> SampleUpdate | None:
        """Take in a row's result; return its news, if any.

        Of a row that was preempted since only the token counts; not even that if its prompt's logprobs must come first.
        """
        is_running = row.queue is self._running
        if not is_running and row.params.prompt_logprobs is not None:
            return None
        try:
            new_token_ids, ending = row.accept(result.token_ids)
        except Exception as error:  # nothing else has been touched yet
            _log.exception("row %d could not take its tokens", row.row_id)
            return self._end(row, "error", f"{type(error).__name__} while its end was looked for.")
        prompt_logprobs = None
        if is_running:
            # The last known token remains to be computed, even if nothing was sampled: next step needs its logits.
            computed, last = share.num_computed_tokens + share.num_scheduled_tokens, len(row.token_ids) - 1
            computed = computed if computed < last else last
            if not row.num_in_flight:
                row.num_computed_tokens = computed
            self.kv_cache.publish(row.table, row.token_ids, computed)
            if share.num_computed_tokens < row.num_prompt_tokens:
                prompt_logprobs = self._absorb_prompt(row, computed, result)
        if ending is not None:
            self._forget(row)
        elif not new_token_ids and prompt_logprobs is None:
            return None
        logprobs = None if result.logprobs is None else result.logprobs[: len(new_token_ids)]
        reason, stop_reason = ending or (None, None)
        return SampleUpdate(
            row.request.request_id,
            row.index,
            new_token_ids,
            logprobs,
            prompt_logprobs,
            row.num_cached_tokens or 0,
            reason,
            stop_reason,
            row.num_preemptions,
            None,
            result.embedding,
        )

    def _absorb_prompt(self, row: Row, num_computed_tokens: int, result: RowOutput) -> tuple[TokenLogprobs, ...] | None:
        """After a share of a prompt: fork the held samples once it is complete; return its logprobs if owed then."""
        is_owing = row.params.prompt_logprobs is not None
        if is_owing:
            row.prompt_logprobs.extend(result.prompt_logprobs or ())
        if num_computed_tokens < row.num_prompt_tokens:
            return None
        self._fork_held(row)
        if not is_owing:
            return None
        pieces, row.prompt_logprobs = tuple(row.prompt_logprobs), []
        expected = 0 if row.request.pooling is not None else row.num_prompt_tokens - 1  # a pooled prompt has a vector
        assert len(pieces) == expected, f"row {row.row_id}: expected {expected} prompt logprobs, got {len(pieces)}"
        row.params = replace(row.params, prompt_logprobs=None)
        return pieces

    def _fork_held(self, leader: Row) -> None:
        """Share the leader's computed prompt; each fork recomputes the last token of it for logits of its own."""
        for row in list(self._requests[leader.request.request_id].held):
            row.num_computed_tokens = row.num_prompt_tokens - 1
            self.kv_cache.fork(leader.table, row.table, row.num_computed_tokens)
            row.num_cached_tokens = leader.num_cached_tokens
            row.move_to(self._waiting)

    def _lead(self, samples: Samples) -> None:
        """Queue the first held sample of a request, if nobody computes its prompt."""
        leader = samples.next_leader()
        if leader is not None:
            leader.move_to(self._waiting)

    def _end(self, row: Row, reason: str, stop_reason: int | str | None = None) -> SampleUpdate:
        """End a sample without new tokens and return the news."""
        self._forget(row)
        return SampleUpdate(
            row.request.request_id,
            row.index,
            num_cached_tokens=row.num_cached_tokens or 0,
            finish_reason=reason,
            stop_reason=stop_reason,
            num_preemptions=row.num_preemptions,
        )

    def _forget(self, row: Row) -> None:
        """Free all that an ended sample has; if it led, the next one takes over."""
        self._vacate(row)
        row.move_to(None)
        del self._rows[row.row_id]
        samples = self._requests[row.request.request_id]
        del samples.rows[row.index]
        if samples.rows:
            self._lead(samples)
        else:
            del self._requests[row.request.request_id]

    # -------------------------------------------------------------------------------------------------------- integrity

    def check_integrity(self) -> None:
        """Prove that every sample is in one queue, every block in one state, and no block is held by nobody.

        Raises:
            AssertionError: It is not so; the message says where.
        """
        self.kv_cache.check_integrity(row.table for row in self._rows.values())
        assert len(self._running) <= self._config.max_num_seqs, f"{len(self._running)} rows are running"
        queues = [self._running, self._waiting, *(samples.held for samples in self._requests.values())]
        for queue in queues:
            keys = [row.key for row in queue]
            assert keys == sorted(set(keys)), f"a queue is out of order: {keys}"
            assert all(row.queue is queue for row in queue), "a row is in a queue it does not name"
        assert sum(map(len, queues)) == len(self._rows), "a row is in no queue, or an ended one still is"
        for samples in self._requests.values():
            assert 0 < len(samples.rows) > len(samples.held), "a request has no sample left, or nobody leads"
            for row in samples.rows.values():
                assert self._rows[row.row_id] is row, f"row {row.row_id} is not known by its id"
        for row in self._rows.values():
            self._check_row(row)

    def _check_row(self, row: Row) -> None:
        num_tokens, num_computed = row.num_tokens, row.num_computed_tokens
        assert num_computed < num_tokens and len(row.token_ids) < row.max_num_tokens, (
            f"row {row.row_id}: {num_computed} of {num_tokens} tokens"
        )
        assert 0 <= row.num_unknown <= row.num_in_flight, f"row {row.row_id}: {row.num_unknown} unknown tokens"
        num_slots = len(row.table.block_ids) * self._config.block_size
        assert num_computed <= num_slots, f"row {row.row_id}: {num_computed} computed tokens in {num_slots} slots"
        if row.queue is self._running:
            assert num_slots, f"row {row.row_id} runs without blocks"
        elif num_slots:
            assert num_computed == row.num_prompt_tokens - 1, f"row {row.row_id} waits with blocks, but is no fork"
