"""`RequestTraces`: a trace of each request for OpenTelemetry, sent to a collector if one is named.

A request is a span `llm_request` below its client's own (`traceparent`), with `queue`, `prefill` and `decode` in it. It
is made when the request has ended, of the times that are kept anyway; so a request that is not traced costs nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from quire import __version__
from quire.core.errors import ConfigError
from quire.core.request import RequestMetrics, RequestOutput

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter


class RequestTraces:
    """Makes spans of requests that have ended.

    Args:
        provider: Where spans go.
    """

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("quire", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def note(self, model: str, trace_parent: str | None, output: RequestOutput, num_generated: int) -> None:
        """Make the spans of a request.

        Args:
            model: Its name.
            trace_parent: Header of that name (W3C Trace Context), None without one.
            output: Its last one.
            num_generated: Tokens of all samples.
        """
        from opentelemetry.trace import Status, StatusCode, set_span_in_context

        if output.metrics is None or output.metrics.finished_time_s is None:
            return
        context = self._propagator.extract({} if trace_parent is None else {"traceparent": trace_parent})
        begin_ns, end_ns = _unix_ns(output.metrics.arrival_time_s), _unix_ns(output.metrics.finished_time_s)
        reasons = [completion.finish_reason or "" for completion in output.outputs]
        attributes: dict[str, str | int | list[str]] = {
            "gen_ai.response.model": model,
            "gen_ai.response.id": output.request_id,
            "gen_ai.usage.input_tokens": len(output.prompt_token_ids),
            "gen_ai.usage.output_tokens": num_generated,
            "gen_ai.response.finish_reasons": reasons,
            "quire.num_cached_tokens": output.num_cached_tokens,
            "quire.num_preemptions": output.metrics.num_preemptions,
        }
        span = self._tracer.start_span("llm_request", context, attributes=attributes, start_time=begin_ns)
        for name, start_s, end_s in _phases(output.metrics):
            part = self._tracer.start_span(name, set_span_in_context(span), start_time=_unix_ns(start_s))
            part.end(_unix_ns(end_s))
        if "error" in reasons:
            span.set_status(Status(StatusCode.ERROR))
        span.end(end_ns)

    def close(self) -> None:
        """Send what has not been sent."""
        self._provider.shutdown()


def _unix_ns(monotonic_s: float) -> int:
    return time.time_ns() - time.monotonic_ns() + int(monotonic_s * 1e9)


def _phases(metrics: RequestMetrics) -> Iterator[tuple[str, float, float]]:
    """Yield where the time went, as far as the request got."""
    times = (metrics.arrival_time_s, metrics.scheduled_time_s, metrics.first_token_time_s, metrics.finished_time_s)
    for name, start_s, end_s in zip(("queue", "prefill", "decode"), times, times[1:], strict=False):
        if start_s is None or end_s is None:
            return
        yield name, start_s, end_s


def open_traces(endpoint: str) -> RequestTraces:
    """Return what sends traces to a collector.

    Args:
        endpoint: Of OTLP over HTTP, for example "http://localhost:4318/v1/traces".

    Raises:
        ConfigError: The packages are not there, or the endpoint is no URL.
    """
    if not endpoint.startswith(("http://", "https://")):
        raise ConfigError(f"otlp_traces_endpoint: expected http://HOST:4318/v1/traces, got {endpoint!r}.")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise ConfigError(
            'otlp_traces_endpoint: expected OpenTelemetry, got a Python without it. Install "quire[otel]".'
        ) from None
    return RequestTraces(provider_of(OTLPSpanExporter(endpoint)))


def provider_of(exporter: SpanExporter) -> TracerProvider:
    """Return what hands spans to an exporter, in a thread of its own."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": "quire"}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider
