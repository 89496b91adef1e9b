"""`LLMEngine`: requests in, outputs out, one step at a time. The whole loop is `step`."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

from quire.core.config import EngineConfig, SchedulerConfig
from quire.core.errors import ConfigError, RequestError
from quire.core.request import RequestOutput, SampleUpdate, SchedulerOutput
from quire.core.sampling_params import SamplingParams
from quire.engine.admission import Admission, Prompt
from quire.engine.grammars import make_grammars
from quire.engine.output import OutputProcessor
from quire.engine.resolve import resolve
from quire.engine.stats_log import StatsLog
from quire.plan.device import device_kind
from quire.plan.plan import Plan
from quire.runner.model_runner import Pending, RunnerLimits, make_runner
from quire.scheduler.scheduler import Scheduler
from quire.tokenizer.tokenizer import Tokenizer


class LLMEngine:
    """Runs a Plan with paged KV cache and continuous batching.

    Args:
        plan: What to execute.
        config: How; None takes the defaults.
        tokenizer: None runs on token ids alone.
        eos_token_ids: Ids that end a sample.
        on_progress: Called with the number of weights loaded so far.

    Raises:
        ConfigError: A setting contradicts the model.
        CapacityError: The model does not fit.
        PlanError: A weight is missing or damaged.
    """

    def __init__(
        self,
        plan: Plan,
        config: EngineConfig | None = None,
        tokenizer: Tokenizer | None = None,
        eos_token_ids: frozenset[int] = frozenset(),
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        settings = config or EngineConfig()
        self.plan = plan
        self.eos_token_ids = eos_token_ids
        self.scheduler_config, self.memory = resolve(settings, plan)
        self.grammars = make_grammars(tokenizer, plan.spec.vocab_size, eos_token_ids)
        self.runner = make_runner(
            plan,
            _limits(self.scheduler_config),
            device_kind(settings.device),
            deterministic=settings.deterministic,
            enforce_eager=settings.enforce_eager,
            on_progress=on_progress,
            grammars=self.grammars,
        )
        self._in_flight: deque[tuple[SchedulerOutput, Pending]] = deque()
        self.scheduler = Scheduler(self.scheduler_config)
        self.outputs = OutputProcessor(tokenizer)
        self._stats_log = None if settings.disable_log_stats else StatsLog()
        self._counters = {"num_steps": 0, "computed_tokens": 0, "generation_tokens": 0}
        self._admission = Admission(
            tokenizer,
            plan.spec.vocab_size,
            self.scheduler_config.max_model_len,
            eos_token_ids,
            settings.seed,
            self.grammars,
        )

    def add_request(self, request_id: str, prompt: Prompt, params: SamplingParams, priority: int = 0) -> None:
        """Queue a request.

        Args:
            request_id: Unique among unfinished requests.
            prompt: Text, token ids, or a mapping with `prompt` or `prompt_token_ids`.
            params: How to sample.
            priority: Lower is served first under the "priority" policy.

        Raises:
            RequestError: It is not valid; nothing else is touched.
            CapacityError: It could never fit into the KV cache.
        """
        request = self._admission.admit(request_id, prompt, params, priority, time.monotonic())
        if self.grammars is not None and params.structured_outputs is not None:
            self.grammars.prepare(params.structured_outputs)
        self.scheduler.add(request)
        self.outputs.add(request)

    def step(self) -> list[RequestOutput]:
        """Start a step, take the result of the oldest one in flight, and return the outputs that it produced.

        There are none while as many steps may be in flight as there are. A runner that computes at once has none.
        """
        scheduled = self.scheduler.schedule()  # requests -> integers
        if scheduled.rows:
            self._in_flight.append((scheduled, self.runner.execute(scheduled)))  # integers -> tensors -> integers
        is_full = len(self._in_flight) > self.runner.max_ahead
        if not self._in_flight or (scheduled.rows and not is_full):
            return []
        return self._take_result()

    def _take_result(self) -> list[RequestOutput]:
        """Wait for the oldest step in flight; once nobody is left, for those that were started in vain as well."""
        scheduled, pending = self._in_flight.popleft()
        updates = self.scheduler.update(scheduled, pending.result())
        outputs, ended = self.outputs.process(updates)  # integers -> text
        for sample in ended:
            self.scheduler.finish(*sample)
        self._count(scheduled, updates)
        self._drain()
        return outputs

    def _drain(self) -> None:
        """Wait for steps whose results nobody needs any more."""
        while self._in_flight and not self.scheduler.has_unfinished():
            scheduled, pending = self._in_flight.popleft()
            self.scheduler.update(scheduled, pending.result())

    def abort_request(self, request_id: str) -> list[RequestOutput]:
        """End a request at once; returns its last output, with finish reason "abort", if it was unfinished."""
        outputs, _ = self.outputs.process(self.scheduler.abort(request_id))
        self._drain()
        return outputs

    def prompt_token_ids(self, prompt: Prompt) -> list[int]:
        """Return a prompt's ids.

        Raises:
            RequestError: It is not of a known form.
        """
        return self._admission.token_ids(prompt)[1]

    def has_unfinished_requests(self) -> bool:
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
        self.outputs = OutputProcessor(None)
        self.scheduler = Scheduler(self.scheduler_config)
        while self._in_flight:
            self._in_flight.popleft()[1].result()
        self.runner.sleep(2)
        if self.grammars is not None:
            self.grammars.close()

    def _count(self, scheduled: SchedulerOutput, updates: Sequence[SampleUpdate]) -> None:
        """Count a step, and log the load every few seconds if asked to."""
        generated = sum(len(update.new_token_ids) for update in updates)
        self._counters["num_steps"] += 1
        self._counters["generation_tokens"] += generated
        self._counters["computed_tokens"] += scheduled.num_scheduled_tokens
        if self._stats_log is not None:
            self._stats_log.note(self.metrics())

    def _check_idle(self, what: str) -> None:
        if self.has_unfinished_requests():
            raise RequestError(f"{what}: expected no unfinished requests, got some; wait for them or abort them.")


def _limits(config: SchedulerConfig) -> RunnerLimits:
    return RunnerLimits(
        config.num_blocks,
        config.block_size,
        config.max_num_seqs,
        config.max_num_batched_tokens,
        config.max_num_logits,
        config.max_model_len,
    )
