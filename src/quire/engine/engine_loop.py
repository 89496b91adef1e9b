"""`EngineLoop`: the loop over integers. Valid requests in, news of their samples out; it knows no text."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from quire.core.config import EngineConfig
from quire.core.errors import ConfigError, RequestError, WorkerError
from quire.core.request import ModelOutput, Request, SampleUpdate, SchedulerOutput
from quire.engine.runners import load_runner
from quire.engine.stats_log import StatsLog
from quire.plan.plan import Plan
from quire.runner.model_runner import Pending
from quire.runner.outputs import FailedStep
from quire.sampling.grammar.compiler import GrammarCompiler
from quire.scheduler.scheduler import Scheduler

_MOST_FAILED_STEPS = 5  # in a row, each with all of its rows: then it is the runner and not a request


class EngineLoop:
    """Owns one scheduler, one runner, and the steps in flight between them.

    Args:
        plan: What to execute.
        config: How.
        on_progress: Called with the number of weights loaded so far.
        grammars: Of the model's vocabulary, for requests with structured outputs.
        on_lost: Called once, from another thread, when a worker process is lost.

    Raises:
        ConfigError: A setting contradicts the model.
        CapacityError: The model does not fit.
        PlanError: A weight is missing or damaged.
        WorkerError: A worker process cannot be started; from other methods, it is lost, and all requests with it.
    """

    def __init__(
        self,
        plan: Plan,
        config: EngineConfig,
        on_progress: Callable[[int], None] | None = None,
        grammars: GrammarCompiler | None = None,
        on_lost: Callable[[], object] = lambda: None,
    ) -> None:
        self.scheduler_config, self.memory, self.runner = load_runner(plan, config, on_progress, grammars, on_lost)
        self.scheduler = Scheduler(self.scheduler_config)
        self.in_flight: deque[tuple[SchedulerOutput, Pending]] = deque()
        self._stats_log = None if config.disable_log_stats else StatsLog()
        self._num_failed = 0
        self._counters = {"num_steps": 0, "computed_tokens": 0, "generation_tokens": 0}

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            RequestError: Its id is in use, its prompt is too long, or it asks for hidden states that there are not.
            CapacityError: It could never fit into the KV cache.
        """
        if request.pooling is not None and not self.runner.can_pool:
            raise RequestError(
                "embeddings: expected a plan whose output projection is not quantized with its inputs, got another; "
                "serve the model so for embeddings."
            )
        self.scheduler.add(request)

    def step(self) -> list[SampleUpdate]:
        """Start a step, take the result of the oldest one in flight, and return what is new.

        No tokens are while as many steps may be in flight as there are. A runner that computes at once has none.

        Raises:
            Exception: The runner is broken: every step fails.
        """
        scheduled = self.scheduler.schedule()  # requests -> integers
        if scheduled.rows:
            self.in_flight.append((scheduled, self._start(scheduled)))  # integers -> tensors -> integers
        updates = self._take_seated()
        is_full = len(self.in_flight) > self.runner.max_ahead
        if self.in_flight and (is_full or not scheduled.rows):
            updates += self._take_result()
        while self.in_flight and isinstance(self.in_flight[-1][1], FailedStep):  # nothing can be built on it
            updates += self._take_result()
        return updates

    def _take_seated(self) -> list[SampleUpdate]:
        """Return the news of samples that run for the first time, with the time."""
        seated = self.scheduler.take_seated()
        now = time.monotonic() if seated else 0.0
        return [SampleUpdate(*sample, scheduled_time_s=now) for sample in seated]

    def _start(self, scheduled: SchedulerOutput) -> Pending:
        try:
            return self.runner.execute(scheduled)
        except WorkerError:
            self.in_flight.clear()  # no result will come any more
            raise

    def _take_result(self) -> list[SampleUpdate]:
        """Wait for the oldest step in flight."""
        scheduled, output = self._next_result()
        updates = self.scheduler.update(scheduled, output)
        self._count(scheduled, updates)
        self._drain()
        return updates

    def _next_result(self) -> tuple[SchedulerOutput, ModelOutput]:
        scheduled, pending = self.in_flight.popleft()
        self._num_failed = self._num_failed + 1 if isinstance(pending, FailedStep) else 0
        if isinstance(pending, FailedStep) and self._num_failed >= _MOST_FAILED_STEPS:
            raise pending.error
        try:
            return scheduled, pending.result()
        except WorkerError:
            self.in_flight.clear()
            raise

    def _drain(self) -> None:
        """Wait for steps that were started in vain, once nobody is left who needs their results."""
        while self.in_flight and not self.scheduler.has_unfinished():
            self.scheduler.update(*self._next_result())

    def abort(self, request_id: str) -> list[SampleUpdate]:
        """End a request at once; returns the last news of its unfinished samples."""
        updates = self.scheduler.abort(request_id)
        self._drain()
        return updates

    def finish(self, request_id: str, index: int, reason: str, stop_reason: int | str | None = None) -> None:
        """End one sample for a cause that integers do not show, such as a stop string; nothing if it has ended.

        Args:
            request_id: Whose sample.
            index: Which of its `n`.
            reason: One of `FINISH_REASONS`.
            stop_reason: For example the stop string.
        """
        self.scheduler.finish(request_id, index, reason, stop_reason)
        self._drain()

    def check_workers(self) -> None:
        """See whether all processes live that this engine needs, while none of them is asked for anything.

        Raises:
            WorkerError: One is lost.
        """
        self.runner.check()

    def has_unfinished(self) -> bool:
        """Return whether there is anything left to do."""
        return self.scheduler.has_unfinished()

    def reset_prefix_cache(self) -> None:
        """Forget all cached prefixes.

        Raises:
            RequestError: Requests are still running.
        """
        self._check_idle("reset_prefix_cache")
        self.scheduler.reset_prefix_cache()

    def metrics(self) -> dict[str, float]:
        """Return counters since the start and the present load, by the names that vLLM exports."""
        scheduler, cache = self.scheduler, self.scheduler.kv_cache
        return {
            **self._counters,
            "num_requests_running": scheduler.num_running,
            "num_requests_waiting": scheduler.num_waiting,
            "num_preemptions": sum(scheduler.num_preemptions.values()),
            "prefix_cache_queries": cache.num_query_tokens,
            "prefix_cache_hits": cache.num_hit_tokens,
            "kv_cache_usage_perc": 1 - cache.num_free_blocks / cache.num_blocks,
            **self.runner.metrics(),
        }

    def sleep(self, level: int) -> None:
        """Free the KV cache (1) or the weights as well (2), until `wake_up`.

        Raises:
            ConfigError: Another level.
            RequestError: Requests are still running.
        """
        if level not in (1, 2):
            raise ConfigError(f"level: expected 1 (KV cache) or 2 (weights, too), got {level!r}.")
        self._check_idle("sleep")
        self.scheduler.reset_prefix_cache()
        self.runner.sleep(level)

    def wake_up(self) -> None:
        """Take back what `sleep` freed; weights are read again from the Plan."""
        self.runner.wake_up()

    def close(self) -> None:
        """End all requests and return all memory."""
        self.scheduler = Scheduler(self.scheduler_config)
        with suppress(WorkerError):  # there is nothing to wait for then
            while self.in_flight:
                self._next_result()
        self.runner.close()

    def _count(self, scheduled: SchedulerOutput, updates: Sequence[SampleUpdate]) -> None:
        """Count a step, and log the load every few seconds if asked to."""
        generated = sum(len(update.new_token_ids) for update in updates)
        self._counters["num_steps"] += 1
        self._counters["generation_tokens"] += generated
        self._counters["computed_tokens"] += scheduled.num_scheduled_tokens
        if self._stats_log is not None:
            self._stats_log.note(self.metrics())

    def _check_idle(self, what: str) -> None:
        if self.has_unfinished():
            raise RequestError(f"{what}: expected no unfinished requests, got some; wait for them or abort them.")
