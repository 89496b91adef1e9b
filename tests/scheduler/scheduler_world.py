"""A scheduler with a fake runner and an account of what every request must become."""

from __future__ import annotations

import random
from collections import Counter, deque
from dataclasses import dataclass, field

from quire.core.config import SchedulerConfig
from quire.core.errors import CapacityError
from quire.core.request import ModelOutput, Request, SampleUpdate, SchedulerOutput
from quire.core.sampling_params import SamplingParams
from quire.scheduler.scheduler import Scheduler
from tests.scheduler.fake_runner import VOCAB, FakeRunner, alone, prompt_logprobs_of

EOS = frozenset({VOCAB - 1})


def make_config(**changes: object) -> SchedulerConfig:
    """A small configuration."""
    values: dict[str, object] = {
        "max_model_len": 32,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 16,
        "block_size": 4,
        "num_blocks": 17,
    }
    return SchedulerConfig(**(values | changes))  # type: ignore[arg-type]


def make_request(request_id: str, prompt: list[int], priority: int = 0, salt: str = "", **params: object) -> Request:
    """A request; `ignore_eos` unless told, so that lengths are what `max_tokens` says."""
    values: dict[str, object] = {"ignore_eos": True, "seed": 0, "max_tokens": 4}
    sampling = SamplingParams(**(values | params))  # type: ignore[arg-type]
    return Request(request_id, tuple(prompt), sampling, EOS, priority=priority, cache_salt=salt)


@dataclass
class Sample:
    """What has been heard of a sample, and what it must say."""

    request: Request
    expected: tuple[list[int], str, int | None]
    token_ids: list[int] = field(default_factory=list)
    num_cached_tokens: int | None = None
    finish_reason: str | None = None


class SchedulerWorld:
    """Operations on a `Scheduler`, each followed by every check there is."""

    def __init__(self, config: SchedulerConfig, seed: int = 0, oddity: float = 0.0, max_ahead: int = 0) -> None:
        self.config = config
        self.max_ahead = max_ahead
        self.in_flight: deque[tuple[SchedulerOutput, ModelOutput]] = deque()
        self.rng = random.Random(seed)
        self.scheduler = Scheduler(config)
        self.runner = FakeRunner(config, self.rng, oddity, is_ahead=max_ahead > 0)
        self.samples: dict[tuple[str, int], Sample] = {}
        self.prompt_logprobs: dict[str, object] = {}
        self.counts: Counter[str] = Counter()
        self.seated: list[tuple[str, int]] = []

    @property
    def unfinished(self) -> list[tuple[str, int]]:
        return [key for key, sample in self.samples.items() if sample.finish_reason is None]

    def add(self, request: Request) -> bool:
        try:
            self.scheduler.add(request)
        except CapacityError:
            self.counts["refused"] += 1
            self.check()
            return False
        for index in range(request.params.n):
            expected = alone(request, index, self.config.max_model_len)
            self.samples[request.request_id, index] = Sample(request, expected)
        self.check()
        return True

    def abort(self, request_id: str) -> None:
        alive = {index for name, index in self.unfinished if name == request_id}
        updates = self.scheduler.abort(request_id)
        assert {update.index for update in updates} == alive
        self.hear(updates)

    def finish(self, request_id: str, index: int) -> None:
        was_alive = (request_id, index) in self.unfinished
        update = self.scheduler.finish(request_id, index, "stop", "a stop string")
        assert (update is not None) == was_alive
        self.hear([update] if update else [])

    def step(self, aborted: str | None = None) -> list[SampleUpdate]:
        """One step; `aborted` ends between `schedule` and `update`."""
        is_limited = self.config.enable_chunked_prefill and any(row.is_decoding for row in self.scheduler._running)
        scheduled = self.scheduler.schedule()
        self.scheduler.check_integrity()
        if is_limited:
            self._check_prefill(scheduled)
        self.seated += self.scheduler.take_seated()
        assert len(set(self.seated)) == len(self.seated), "the first seat was taken twice"
        assert bool(scheduled.rows or self.in_flight) >= bool(self.unfinished), "no progress"
        assert bool(scheduled.rows) <= bool(self.unfinished), "work for nobody"
        if scheduled.rows:
            self._execute(scheduled)
        else:
            assert scheduled.num_scheduled_tokens == 0 and not scheduled.removed_row_ids
        if aborted is not None:
            self.abort(aborted)
        is_ahead = scheduled.rows and len(self.in_flight) <= self.max_ahead
        return self._update() if self.in_flight and not is_ahead else []

    def _execute(self, scheduled: SchedulerOutput) -> None:
        self.counts["back at once"] += bool({new.row_id for new in scheduled.new_rows} & set(scheduled.removed_row_ids))
        self.counts["ahead"] += bool(self.in_flight)
        if self.scheduler.num_running <= self.config.max_num_batched_tokens:
            others = [row for row in self.scheduler._running if not self._has(scheduled, row.row_id)]
            ready = [row for row in others if not row.must_wait]
            self.counts["left to others"] += bool(ready)
            share = -(-self.scheduler.num_running // self.config.num_batches)
            assert not ready or len(scheduled.rows) >= share, "a running row starves"
            assert all(row.is_decoding for row in ready), "a prompt starves"
            assert self.config.num_batches > 1 or not ready, "a running row starves"
        if self.config.num_batches > 1:
            flying = [{share.row_id for share in step.rows if share.is_sampled} for step, _ in self.in_flight]
            assert not any(ids & {share.row_id for share in scheduled.rows} for ids in flying), "a token is not known"
        assert self.num_logits(scheduled) <= self.config.max_num_logits, "more logits than planned for"
        self.in_flight.append((scheduled, self.runner.execute(scheduled)))

    def _check_prefill(self, scheduled: SchedulerOutput) -> None:
        """Beyond the budget of all that have more than one token to compute, each may have its one."""
        larger = [share.num_scheduled_tokens for share in scheduled.rows if share.num_scheduled_tokens > 1]
        assert sum(larger) <= self.config.max_num_prefill_tokens, f"too much prefill beside a decode: {scheduled.rows}"
        self.counts["limited prefill"] += bool(larger)

    def _has(self, scheduled: SchedulerOutput, row_id: int) -> bool:
        return any(share.row_id == row_id for share in scheduled.rows)

    def _update(self) -> list[SampleUpdate]:
        free_before = self.scheduler.kv_cache.num_free_blocks
        updates = self.scheduler.update(*self.in_flight.popleft())
        if not self.scheduler.has_unfinished():
            assert self.scheduler.kv_cache.num_free_blocks == self.config.num_blocks - 1 >= free_before
        self.hear(updates)
        return updates

    def num_logits(self, scheduled: SchedulerOutput) -> int:
        """Rows of logits that a runner computes: as `runner.inputs` chooses them."""
        count = 0
        for share in scheduled.rows:
            row = self.scheduler._rows[share.row_id]
            until = min(share.num_computed_tokens + share.num_scheduled_tokens, row.num_prompt_tokens - 1)
            if row.params.prompt_logprobs is not None:
                count += max(0, until - share.num_computed_tokens)
            count += share.is_sampled
        return count

    def hear(self, updates: list[SampleUpdate]) -> None:
        for update in updates:
            self._hear_one(self.samples[update.request_id, update.index], update)
        for (request_id, _), sample in self.samples.items():
            is_owed = sample.request.params.prompt_logprobs is not None and sample.token_ids
            assert not is_owed or request_id in self.prompt_logprobs, "tokens before the prompt's logprobs"
        self.check()

    def _hear_one(self, sample: Sample, update: SampleUpdate) -> None:
        assert sample.finish_reason is None, "news after the end"
        sample.token_ids += update.new_token_ids
        expected, reason, stop_reason = sample.expected
        assert sample.token_ids == expected[: len(sample.token_ids)], "other tokens than alone"
        if update.new_logprobs is not None:
            assert tuple(entry.token_ids[0] for entry in update.new_logprobs) == update.new_token_ids
        if update.finish_reason in ("stop", "length") and update.stop_reason != "a stop string":
            assert (sample.token_ids, update.finish_reason, update.stop_reason) == (expected, reason, stop_reason)
        else:
            assert len(sample.token_ids) < len(expected), "went on after its end"
        sample.finish_reason = update.finish_reason
        self.counts[update.finish_reason or "running"] += 1
        self._hear_prompt(sample, update)

    def _hear_prompt(self, sample: Sample, update: SampleUpdate) -> None:
        prompt = list(sample.request.prompt_token_ids)
        if sample.token_ids:
            assert sample.num_cached_tokens in (None, update.num_cached_tokens)
            sample.num_cached_tokens = update.num_cached_tokens
        assert update.num_cached_tokens < len(prompt) and update.num_cached_tokens % self.config.block_size == 0
        if update.prompt_logprobs is not None:
            assert update.request_id not in self.prompt_logprobs, "prompt logprobs delivered twice"
            assert update.prompt_logprobs == prompt_logprobs_of(prompt, 0, len(prompt) - 1)
            assert sample.request.params.prompt_logprobs is not None
            self.prompt_logprobs[update.request_id] = update.prompt_logprobs
            self.counts["prompt_logprobs"] += 1

    def check(self) -> None:
        self.scheduler.check_integrity()
        assert self.scheduler.has_unfinished() == bool(self.unfinished)
        assert self.scheduler.num_running + self.scheduler.num_waiting == len(self.unfinished)

    def drain(self) -> None:
        """Run until all is done: every sample ended, no block leaked."""
        total = sum(len(sample.expected[0]) + len(sample.request.prompt_token_ids) for sample in self.samples.values())
        steps = 0
        while self.scheduler.has_unfinished():
            self.step()
            steps += 1
            assert steps <= 100 + 10 * total, "livelock"
        assert not self.unfinished and self.scheduler.kv_cache.num_free_blocks == self.config.num_blocks - 1
        self.counts.update(self.scheduler.num_preemptions)
        self.counts["hit"] += self.scheduler.kv_cache.num_hit_tokens

    def tokens(self, request_id: str, index: int = 0) -> list[int]:
        return self.samples[request_id, index].token_ids


def random_config(rng: random.Random) -> SchedulerConfig:
    """A configuration in which something is usually scarce."""
    max_num_seqs, is_chunked = rng.randint(1, 8), rng.random() < 0.7
    return SchedulerConfig(
        max_model_len=rng.randint(4, 40),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=rng.choice((1, 2, 3, 5, 8, 16, 64)),
        max_num_prefill_tokens=rng.choice((1, 2, 4, 1 << 30)),
        max_num_logits=max_num_seqs + rng.choice((0, 1, 5)) if is_chunked else 64,
        block_size=rng.randint(1, 5),
        num_blocks=rng.randint(2, 24),
        enable_prefix_caching=rng.random() < 0.75,
        enable_chunked_prefill=is_chunked,
        scheduling_policy=rng.choice(("fcfs", "priority")),
        num_batches=rng.choice((1, 1, 2, 3)),
    )


def random_request(rng: random.Random, request_id: str, world: SchedulerWorld) -> Request:
    """A request that often shares a prefix with others and uses every parameter the scheduler reads."""
    config = world.config
    longest = min(config.max_model_len - 1, (config.num_blocks - 1) * config.block_size, 24)
    start, salt = [1] * rng.randint(0, 20), rng.choice(("", "", "tenant"))
    if world.samples and rng.random() < 0.4:  # The next turn of a chat.
        sample = rng.choice(list(world.samples.values())[-8:])
        start = [*sample.request.prompt_token_ids, *sample.token_ids]
        salt = sample.request.cache_salt
    prompt = (start + rng.choices((1, 2), k=rng.randint(1, 5)))[:longest]
    max_tokens = rng.randint(1, max(1, min(10, longest + 1 - len(prompt))))
    params = SamplingParams(
        n=rng.choice((1, 1, 1, 2, 3, 5)),
        seed=rng.randint(0, 5),
        max_tokens=max_tokens,
        min_tokens=rng.choice((0, 0, rng.randint(0, max_tokens))),
        stop_token_ids=rng.choice(((), (3,), (3, 6))),
        ignore_eos=rng.random() < 0.6,
        prompt_logprobs=rng.choice((None, None, None, 0)),
    )
    return Request(request_id, tuple(prompt), params, EOS, priority=rng.randint(0, 2), cache_salt=salt)


def random_operation(world: SchedulerWorld, rng: random.Random, number: int) -> None:
    """Do one thing that an engine could do."""
    kind = rng.choices(("add", "step", "abort", "finish", "abort in step", "reset"), (3, 10, 0.4, 0.4, 0.3, 0.1))[0]
    some = rng.choice(world.unfinished) if world.unfinished else ("unknown", 0)
    if kind == "add" and len(world.unfinished) < 24:
        world.add(random_request(rng, f"request-{number}", world))
    elif kind == "abort":
        world.abort(some[0])
    elif kind == "finish":
        world.finish(*some)
    elif kind == "abort in step":
        world.step(aborted=some[0])
    elif kind == "reset":
        world.scheduler.reset_prefix_cache()
    else:
        world.step()
