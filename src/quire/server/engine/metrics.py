"""`EngineMetrics`: what `/metrics` shows of an engine, in a registry of its own; `render` shows it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from quire.core.request import RequestMetrics, RequestOutput, SampleUpdate
from quire.server.engine.histogram import Histogram
from quire.server.engine.request_stream import RequestStream

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 640, 2560)
_TOKENS = tuple(float(first * 10**power) for power in range(6) for first in (1, 2, 5))
_STEP_TOKENS = tuple(float(1 << power) for power in range(15))

_GAUGES = {
    "num_requests_running": "Sequences with a seat.",
    "num_requests_waiting": "Sequences without one.",
    "kv_cache_usage_perc": "Share of the KV cache's blocks that are held, 1 is all.",
    "pipeline_bubble_perc": "Share of the time with work in which a rank had nothing to compute, since the start.",
}
_ENGINE_COUNTERS = {
    "num_preemptions": "Sequences that gave their blocks back and started over.",
    "prefix_cache_queries": "Prompt tokens that were looked up in the prefix cache.",
    "prefix_cache_hits": "Prompt tokens that were found there.",
    "generation_tokens": "Tokens generated.",
    "communication_bytes": "Bytes that ranks have sent each other.",
    "communication_calls": "Exchanges among ranks.",
}
_COUNTERS = {
    **_ENGINE_COUNTERS,
    "prompt_tokens": "Prompt tokens of requests whose first token came.",
    "engine_deaths": "How often the engine process died.",
}
_HISTOGRAMS = {
    "time_to_first_token_seconds": ("From arrival to the first token.", _SECONDS),
    "inter_token_latency_seconds": ("Between two tokens of a sequence.", _SECONDS),
    "e2e_request_latency_seconds": ("From arrival to the last token.", _SECONDS),
    "request_queue_time_seconds": ("From arrival to the first seat.", _SECONDS),
    "request_prefill_time_seconds": ("From the first seat to the first token.", _SECONDS),
    "request_decode_time_seconds": ("From the first to the last token.", _SECONDS),
    "request_prompt_tokens": ("Prompt tokens of a finished request.", _TOKENS),
    "request_generation_tokens": ("Tokens that a finished request has generated.", _TOKENS),
    "iteration_tokens_total": ("Tokens computed in a step.", _STEP_TOKENS),
}


_LABELS = ("model_name", "engine")


class EngineMetrics:
    """Counts and times the requests of one engine. Names are the field's; `render` shows those of all engines.

    Args:
        model_name: Label of every series.
        engine: The other label: which of a server's engines.
    """

    def __init__(self, model_name: str, engine: int = 0) -> None:
        self._registry = CollectorRegistry()
        self._labels = (model_name, str(engine))
        self._last: dict[str, float] = {}
        self._gauges = {name: self._gauge(name, text) for name, text in _GAUGES.items()}
        self._counters = {name: self._counter(name, text) for name, text in _COUNTERS.items()}
        self._histograms = {name: self._histogram(name, *rest) for name, rest in _HISTOGRAMS.items()}
        self._token_gaps = self._histograms["inter_token_latency_seconds"]
        self._success = Counter(
            "request_success",
            "Finished sequences.",
            (*_LABELS, "finished_reason"),
            registry=self._registry,
        )

    def note_step(self, metrics: Mapping[str, float]) -> None:
        """Take in what the engine reported after a step, by the names of `EngineLoop.metrics`.

        What only several ranks count is 0 of one.
        """
        for name, gauge in self._gauges.items():
            gauge.set(metrics.get(name, 0))
        for name in _ENGINE_COUNTERS:
            self._counters[name].inc(self._increase(metrics, name))
        if computed := self._increase(metrics, "computed_tokens"):
            self._histograms["iteration_tokens_total"].observe(computed)

    def note_death(self) -> None:
        """Note that the engine process died: nothing runs, and its counters start again."""
        self._last.clear()
        for gauge in self._gauges.values():
            gauge.set(0)
        self._counters["engine_deaths"].inc()

    def note_tokens(self, stream: RequestStream, update: SampleUpdate) -> None:
        """Note new tokens of a sample: the gap since the last ones, or since the request's arrival.

        Args:
            stream: Of its request. Mutated: it remembers when tokens came.
            update: With new tokens.
        """
        now, times = time.monotonic(), stream.last_token_s
        if (last_s := times.get(update.index)) is not None:
            self._token_gaps.observe(now - last_s)
        elif not times:
            self._histograms["time_to_first_token_seconds"].observe(now - stream.arrival_time_s)
            self._counters["prompt_tokens"].inc(stream.num_prompt_tokens)
        times[update.index] = now
        stream.num_generated += len(update.new_token_ids)

    def note_finished(self, stream: RequestStream, output: RequestOutput) -> None:
        """Note the last output of a request."""
        for completion in output.outputs:
            self._success.labels(*self._labels, completion.finish_reason).inc()
        self._histograms["request_prompt_tokens"].observe(stream.num_prompt_tokens)
        self._histograms["request_generation_tokens"].observe(stream.num_generated)
        for name, seconds in _phases(output.metrics):
            self._histograms[name].observe(seconds)

    def note_abort(self) -> None:
        """Note that a reader left before the end."""
        self._success.labels(*self._labels, "abort").inc()

    def collect(self) -> Iterator[Metric]:
        """Yield each family, in an order that is the same for all engines."""
        yield from self._registry.collect()

    def _increase(self, metrics: Mapping[str, float], name: str) -> float:
        now = metrics.get(name, 0)
        increase = now - self._last.get(name, 0)
        self._last[name] = now
        return max(0.0, increase)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, _LABELS, registry=self._registry).labels(*self._labels)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, _LABELS, registry=self._registry).labels(*self._labels)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        made = Histogram(name, text, dict(zip(_LABELS, self._labels, strict=True)), buckets)
        self._registry.register(made)
        return made


def render(engines: Sequence[EngineMetrics], compat: str = "none") -> bytes:
    """Return all series of all engines in Prometheus' text format, of type `CONTENT_TYPE`, below `quire:`.

    Args:
        engines: Those of one server.
        compat: "vllm" shows everything below `vllm:` as well.
    """
    prefixes = ("quire:",) if compat == "none" else ("quire:", f"{compat}:")
    return b"".join(generate_latest(_Prefixed(engines, prefix)) for prefix in prefixes)


class _Prefixed(Collector):
    """The series of engines below a prefix, without the times at which they were made."""

    def __init__(self, engines: Sequence[EngineMetrics], prefix: str) -> None:
        self._engines = engines
        self._prefix = prefix

    def collect(self) -> Iterator[Metric]:
        """Yield each family, renamed, with the samples of all engines."""
        for families in zip(*(engine.collect() for engine in self._engines), strict=True):
            family = families[0]
            renamed = Metric(self._prefix + family.name, family.documentation, family.type)
            kept = (sample for each in families for sample in each.samples if not sample.name.endswith("_created"))
            renamed.samples = [Sample(self._prefix + sample.name, sample.labels, sample.value) for sample in kept]
            yield renamed


def _phases(metrics: RequestMetrics | None) -> Iterator[tuple[str, float]]:
    """Yield what a finished request spent where, as far as it got there."""
    if metrics is None or metrics.finished_time_s is None:
        return
    yield "e2e_request_latency_seconds", metrics.finished_time_s - metrics.arrival_time_s
    if metrics.scheduled_time_s is None:
        return
    yield "request_queue_time_seconds", metrics.scheduled_time_s - metrics.arrival_time_s
    if metrics.first_token_time_s is None:
        return
    yield "request_prefill_time_seconds", metrics.first_token_time_s - metrics.scheduled_time_s
    yield "request_decode_time_seconds", metrics.finished_time_s - metrics.first_token_time_s
