"""Traces: the spans of a request, what they are below of, and their way to a collector."""

import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from quire.core.errors import ConfigError
from quire.core.request import CompletionOutput, RequestMetrics, RequestOutput
from quire.server.tracing import RequestTraces, open_traces
from tests.support.server_process import serving

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACE_PARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def traces(exporter):
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    made = RequestTraces(provider)
    yield made
    made.close()


def ended(reason="length", scheduled_s=1.0, first_s=3.0):
    """A request that has ended a second ago, ten seconds after it came."""
    arrival = time.monotonic() - 11
    later = [None if after is None else arrival + after for after in (first_s, 10.0, scheduled_s)]
    metrics = RequestMetrics(arrival, *later, num_preemptions=1)
    completion = CompletionOutput(0, "text", [4, 5], finish_reason=reason)
    return RequestOutput("cmpl-1", None, [1, 2, 3], [completion], True, metrics=metrics, num_cached_tokens=2)


def seconds(span):
    return (span.end_time - span.start_time) / 1e9


def test_a_request_has_its_phases_below_it(traces, exporter):
    traces.note("tiny", None, ended(), 7)
    found = {span.name: span for span in exporter.get_finished_spans()}
    assert set(found) == {"llm_request", "queue", "prefill", "decode"}
    root = found.pop("llm_request")
    assert root.parent is None and all(span.parent.span_id == root.context.span_id for span in found.values())
    assert [seconds(found[name]) for name in ("queue", "prefill", "decode")] == pytest.approx([1, 2, 7], abs=1e-3)
    assert seconds(root) == pytest.approx(10, abs=1e-3) and abs(time.time() - 1 - root.end_time / 1e9) < 1
    assert root.attributes == {
        "gen_ai.response.model": "tiny", "gen_ai.response.id": "cmpl-1", "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 7, "gen_ai.response.finish_reasons": ("length",), "quire.num_cached_tokens": 2,
        "quire.num_preemptions": 1,
    }  # fmt: skip
    assert root.status.is_unset


@pytest.mark.parametrize("header, is_below", ((TRACE_PARENT, True), ("garbage \xff", False), ("", False)))
def test_the_clients_own_trace_goes_on(traces, exporter, header, is_below):
    traces.note("tiny", header, ended(), 1)
    root = exporter.get_finished_spans()[-1]
    assert (format(root.context.trace_id, "032x") == TRACE_ID) == is_below
    assert (root.parent is not None) == is_below


def test_a_request_that_failed_before_its_first_token(traces, exporter):
    traces.note("tiny", None, ended("error", first_s=None), 0)
    *phases, root = exporter.get_finished_spans()
    assert [span.name for span in phases] == ["queue"] and not root.status.is_ok


def test_without_the_packages_or_a_url_it_says_so(monkeypatch):
    with pytest.raises(ConfigError, match="otlp_traces_endpoint: expected http"):
        open_traces("localhost:4317")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"quire\[otel\]"):
        open_traces("http://localhost:4318/v1/traces")


def test_who_asks_for_no_traces_loads_nothing_of_it():
    code = "import sys, quire.server.app, quire.server.http.serving, quire.cli.serve; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "opentelemetry" not in done.stdout


def test_spans_of_a_server_reach_a_collector():
    spans = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            sent = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
            spans.extend(span for of in sent.resource_spans for scope in of.scope_spans for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        with serving("--otlp-traces-endpoint", f"http://127.0.0.1:{collector.server_port}/v1/traces") as server:
            body = b'{"prompt": "once", "max_tokens": 5, "n": 2, "ignore_eos": true, "stream": true}'
            assert server.ask("POST", "/v1/completions", body, {"traceparent": TRACE_PARENT})[0] == 200
            assert server.post("/v1/completions", {"prompt": "once", "max_tokens": 0})[0] == 200
        collector.shutdown()
    roots = [span for span in spans if span.name == "llm_request"]
    assert len(roots) == 2 and len(spans) == 8
    assert roots[0].trace_id.hex() == TRACE_ID and roots[0].parent_span_id.hex() == SPAN_ID
    numbers = {item.key: item.value.int_value for item in roots[0].attributes}
    assert numbers["gen_ai.usage.output_tokens"] == 10
