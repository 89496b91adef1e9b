"""From ids to what a caller sees: text, logprobs and finish reasons of each request."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from quire.core.log import get_logger
from quire.core.request import (
    CompletionOutput,
    Logprob,
    Request,
    RequestMetrics,
    RequestOutput,
    SampleUpdate,
    TokenLogprobs,
)
from quire.core.sampling_params import RequestOutputKind, SamplingParams
from quire.tokenizer.detokenizer import IncrementalDetokenizer
from quire.tokenizer.stop_checker import StopChecker
from quire.tokenizer.tokenizer import Tokenizer

_log = get_logger(__name__)


class Ended(NamedTuple):
    """A sample that must end because of its text.

    Attributes:
        request_id: Whose.
        sample: Which of its samples.
        reason: Finish reason.
        stop_reason: The stop string, or what went wrong.
    """

    request_id: str
    sample: int
    reason: str
    stop_reason: str


@dataclass(slots=True)
class _Sample:
    """Text state of one sample."""

    index: int
    detokenizer: IncrementalDetokenizer | None
    stop_checker: StopChecker
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    cumulative_logprob: float = 0.0
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    num_reported_chars: int = 0
    num_reported_tokens: int = 0
    is_reported_finished: bool = False
    num_preemptions: int = 0


@dataclass(slots=True)
class _Tracked:
    """Output state of one request."""

    request: Request
    prompt_token_ids: list[int]  # one for all outputs: a copy for each token would cost more than its text
    samples: list[_Sample]
    num_unfinished: int
    metrics: RequestMetrics
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    num_cached_tokens: int = 0
    embedding: tuple[float, ...] | None = None
    last_news_s: float | None = None

    def note_scheduled(self, time_s: float) -> None:
        if self.metrics.scheduled_time_s is None:
            self.metrics = replace(self.metrics, scheduled_time_s=time_s)

    def finish(self, sample: _Sample, reason: str, stop_reason: int | str | None) -> None:
        sample.finish_reason, sample.stop_reason = reason, stop_reason
        self.num_unfinished -= 1

    @property
    def is_finished(self) -> bool:
        return not self.num_unfinished

    @property
    def is_due(self) -> bool:
        """Whether its kind of output asks for one now."""
        return not self.num_unfinished or self.request.params.output_kind is not RequestOutputKind.FINAL_ONLY


class OutputProcessor:
    """Keeps the text of unfinished requests.

    Args:
        tokenizer: None if the engine runs on ids alone.
    """

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._tracked: dict[str, _Tracked] = {}

    def add(self, request: Request) -> None:
        """Start to track a request."""
        samples = [self._new_sample(request, index) for index in range(request.params.n)]
        metrics, ids = RequestMetrics(request.arrival_time_s), list(request.prompt_token_ids)
        self._tracked[request.request_id] = _Tracked(request, ids, samples, len(samples), metrics)

    def process(self, updates: Sequence[SampleUpdate]) -> tuple[list[RequestOutput], list[Ended]]:
        """Take in news of samples.

        Args:
            updates: What the scheduler reported.

        Returns:
            Outputs to hand out, and samples that the scheduler must end because of their text.
        """
        touched, ended = self.apply(updates)
        return [output for request_id in touched if (output := self.report(request_id)) is not None], ended

    def apply(self, updates: Iterable[SampleUpdate]) -> tuple[list[str], list[Ended]]:
        """Take in news of samples without making outputs of them yet.

        Args:
            updates: What the scheduler reported.

        Returns:
            Requests with something to report, and samples that the scheduler must end because of their text.
        """
        ended: list[Ended] = []
        touched: dict[str, None] = {}
        now = time.monotonic()
        for update in updates:
            tracked = self._tracked.get(update.request_id)
            if tracked is None or tracked.samples[update.index].finish_reason is not None:
                continue
            if update.scheduled_time_s is not None:
                tracked.note_scheduled(update.scheduled_time_s)
                continue
            if (end := self._apply(tracked, update, now)) is not None:
                ended.append(end)
            if tracked.is_due:
                touched[update.request_id] = None
        return list(touched), ended

    def report(self, request_id: str) -> RequestOutput | None:
        """Return what there is to say about a request now, None if its `output_kind` asks for nothing yet.

        Deltas hold all since the last report, so whoever reports late gets fewer and larger ones. A request whose last
        output this is, is forgotten.
        """
        tracked = self._tracked[request_id]
        if tracked.is_finished:
            del self._tracked[request_id]
        return self._report(tracked)

    def is_finished(self, request_id: str) -> bool:
        """Return whether all samples of a request have ended; its last output may still have to be reported."""
        return request_id in self._tracked and self._tracked[request_id].is_finished

    def forget(self, request_id: str) -> None:
        """Stop to track a request that nobody waits for any more, if it is known."""
        self._tracked.pop(request_id, None)

    def _new_sample(self, request: Request, index: int) -> _Sample:
        params = request.params
        detokenizer = None
        if params.detokenize and self._tokenizer is not None:
            detokenizer = IncrementalDetokenizer(
                self._tokenizer,
                prompt_token_ids=request.prompt_token_ids,
                skip_special_tokens=params.skip_special_tokens,
                spaces_between_special_tokens=params.spaces_between_special_tokens,
            )
        return _Sample(index, detokenizer, StopChecker(_stops(params), params.include_stop_str_in_output))

    def _apply(self, tracked: _Tracked, update: SampleUpdate, now_s: float) -> Ended | None:
        """Add an update to its sample; a failure here ends that sample alone."""
        sample = tracked.samples[update.index]
        try:
            self._add_tokens(tracked, sample, update, now_s)
            stop = None if sample.detokenizer is None else _add_text(sample.detokenizer, tracked, sample, update)
        except Exception as error:
            _log.exception("output of request %s, sample %d failed", update.request_id, update.index)
            stop_reason = f"{type(error).__name__} while making text"
            tracked.finish(sample, "error", stop_reason)
            return Ended(update.request_id, update.index, "error", stop_reason)
        if stop is not None:
            tracked.finish(sample, "stop", stop)
            return Ended(update.request_id, update.index, "stop", stop)
        if update.finish_reason is not None:
            tracked.finish(sample, update.finish_reason, update.stop_reason)
        return None

    def _add_tokens(self, tracked: _Tracked, sample: _Sample, update: SampleUpdate, now_s: float) -> None:
        tracked.last_news_s = now_s
        if update.new_token_ids and tracked.metrics.first_token_time_s is None:
            tracked.metrics = replace(tracked.metrics, first_token_time_s=now_s)
        sample.num_preemptions = update.num_preemptions
        if update.num_cached_tokens > tracked.num_cached_tokens:
            tracked.num_cached_tokens = update.num_cached_tokens
        if update.prompt_logprobs is not None:
            tracked.prompt_logprobs = [None, *map(self._logprobs, update.prompt_logprobs)]
        if update.embedding is not None:
            tracked.embedding = update.embedding
        sample.token_ids += update.new_token_ids
        for entry in update.new_logprobs or ():
            sample.logprobs.append(self._logprobs(entry))
            sample.cumulative_logprob += entry.logprobs[0]

    def _logprobs(self, entry: TokenLogprobs) -> dict[int, Logprob]:
        text = self._tokenizer.token_text if self._tokenizer is not None else (lambda token: None)
        return {
            token: Logprob(logprob, rank, text(token))
            for token, logprob, rank in zip(entry.token_ids, entry.logprobs, entry.ranks, strict=True)
        }

    def _report(self, tracked: _Tracked) -> RequestOutput | None:
        """Return the output to hand out now, if its kind asks for one."""
        if not tracked.is_due:
            return None
        finished, metrics = tracked.is_finished, tracked.metrics
        if finished:
            num_preemptions = sum(sample.num_preemptions for sample in tracked.samples)
            metrics = replace(metrics, finished_time_s=tracked.last_news_s, num_preemptions=num_preemptions)
        is_delta = tracked.request.params.output_kind is RequestOutputKind.DELTA
        samples = [s for s in tracked.samples if not (is_delta and s.is_reported_finished)]
        completions = [_completion(sample, tracked.request.params, is_delta) for sample in samples]
        request = tracked.request
        return RequestOutput(
            request.request_id,
            request.prompt,
            tracked.prompt_token_ids,
            completions,
            finished,
            tracked.prompt_logprobs,
            metrics,
            tracked.num_cached_tokens,
            tracked.embedding,
        )


def _add_text(
    detokenizer: IncrementalDetokenizer, tracked: _Tracked, sample: _Sample, update: SampleUpdate
) -> str | None:
    """Append an update's text; returns the stop string that was found."""
    ids: Sequence[int] = update.new_token_ids
    if update.finish_reason == "stop" and not tracked.request.params.include_stop_str_in_output:
        ids = ids[:-1]  # the end-of-sequence or stop token is no text
    text = detokenizer.append(ids)
    if update.finish_reason is not None:
        text += detokenizer.finish()
    safe, stop = sample.stop_checker.append(text)
    sample.text += safe
    if stop is None and update.finish_reason is not None:
        sample.text += sample.stop_checker.finish()
        stop = sample.stop_checker.matched
    return stop


def _stops(params: SamplingParams) -> tuple[str, ...]:
    return tuple(params.stop or ())


def _completion(sample: _Sample, params: SamplingParams, is_delta: bool) -> CompletionOutput:
    chars, tokens = (sample.num_reported_chars, sample.num_reported_tokens) if is_delta else (0, 0)
    sample.num_reported_chars, sample.num_reported_tokens = len(sample.text), len(sample.token_ids)
    sample.is_reported_finished = sample.finish_reason is not None
    has_logprobs = params.logprobs is not None
    return CompletionOutput(
        sample.index,
        sample.text[chars:],
        sample.token_ids[tokens:],
        sample.cumulative_logprob if has_logprobs else None,
        sample.logprobs[tokens:] if has_logprobs else None,
        sample.finish_reason,
        sample.stop_reason,
    )
