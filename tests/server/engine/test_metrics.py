"""Every name that dashboards hard-code, with numbers that add up."""

from __future__ import annotations

import prometheus_client
import pytest
from prometheus_client.parser import text_string_to_metric_families

from quire.core.request import CompletionOutput, RequestMetrics, RequestOutput, SampleUpdate
from quire.server.engine.histogram import Histogram
from quire.server.engine.metrics import EngineMetrics, render
from quire.server.engine.request_stream import RequestStream

GAUGES = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "pipeline_bubble_perc")
COUNTERS = (
    "prompt_tokens", "generation_tokens", "num_preemptions", "prefix_cache_queries", "prefix_cache_hits",
    "communication_bytes", "communication_calls", "request_success",
)  # fmt: skip
HISTOGRAMS = (
    "time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds",
    "request_queue_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds",
    "request_prompt_tokens", "request_generation_tokens", "iteration_tokens_total",
)  # fmt: skip
STEP = {
    "num_steps": 3.0, "computed_tokens": 12.0, "generation_tokens": 2.0, "num_requests_running": 1.0,
    "num_requests_waiting": 2.0, "num_preemptions": 1.0, "prefix_cache_queries": 9.0, "prefix_cache_hits": 4.0,
    "kv_cache_usage_perc": 0.25,
}  # fmt: skip


def series(metrics: EngineMetrics, compat: str = "none") -> dict[str, float]:
    """All samples but buckets, summed over labels."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(render([metrics], compat).decode()):
        for sample in family.samples:
            assert sample.labels["model_name"] == "tiny"
            if not sample.name.endswith("_bucket"):
                found[sample.name] = found.get(sample.name, 0) + sample.value
    return found


def filled() -> EngineMetrics:
    """Metrics after one request of two samples, three tokens each."""
    metrics = EngineMetrics("tiny")
    metrics.note_step(STEP)
    stream = RequestStream(0.0, 7)
    for _ in range(3):
        for index in range(2):
            metrics.note_tokens(stream, SampleUpdate("a", index, (1,)))
    completions = [
        CompletionOutput(0, "", [], finish_reason="stop"),
        CompletionOutput(1, "", [], finish_reason="length"),
    ]
    times = RequestMetrics(10.0, 13.0, 18.0, 11.0)
    metrics.note_finished(stream, RequestOutput("a", None, [1] * 7, completions, True, metrics=times))
    return metrics


@pytest.mark.parametrize("compat", ("none", "vllm"))
def test_every_name_is_there(compat: str) -> None:
    found = series(filled(), compat)
    names = {*GAUGES, *(f"{name}_total" for name in COUNTERS)}
    names |= {f"{name}_{part}" for name in HISTOGRAMS for part in ("sum", "count")} | {"engine_deaths_total"}
    prefixes = ("quire:", "vllm:") if compat == "vllm" else ("quire:",)
    assert set(found) == {prefix + name for prefix in prefixes for name in names}
    assert all(found[prefix + name] == found["quire:" + name] for prefix in prefixes for name in names)


def test_numbers() -> None:
    found = series(filled())
    wanted = {
        "prompt_tokens_total": 7, "generation_tokens_total": 2, "num_preemptions_total": 1, "request_success_total": 2,
        "time_to_first_token_seconds_count": 1, "inter_token_latency_seconds_count": 4,
        "e2e_request_latency_seconds_sum": 8, "request_queue_time_seconds_sum": 1,
        "request_prefill_time_seconds_sum": 2,
        "request_decode_time_seconds_sum": 5, "request_prompt_tokens_sum": 7, "request_generation_tokens_sum": 6,
        "iteration_tokens_total_sum": 12, "kv_cache_usage_perc": 0.25,
    }  # fmt: skip
    assert {name: found["quire:" + name] for name in wanted} == wanted


def test_counters_go_on_after_the_engine_process_died() -> None:
    metrics = filled()
    metrics.note_step({**STEP, "prefix_cache_hits": 6.0})
    metrics.note_death()
    found = series(metrics)
    assert found["quire:prefix_cache_hits_total"] == 6 and found["quire:num_requests_running"] == 0
    metrics.note_step({**STEP, "prefix_cache_hits": 1.0})
    assert series(metrics)["quire:prefix_cache_hits_total"] == 7


def test_what_ranks_count_is_shown() -> None:
    metrics = filled()
    metrics.note_step({**STEP, "pipeline_bubble_perc": 0.25, "communication_bytes": 9.0, "communication_calls": 2.0})
    found = series(metrics)
    assert found["quire:pipeline_bubble_perc"] == 0.25
    assert (found["quire:communication_bytes_total"], found["quire:communication_calls_total"]) == (9, 2)


def test_two_servers_in_one_process_do_not_share_a_registry() -> None:
    assert [series(filled())["quire:generation_tokens_total"] for _ in range(2)] == [2, 2]


def test_a_value_is_in_the_bucket_that_it_does_not_exceed() -> None:
    made = prometheus_client.Histogram("ours", "text", ("model_name",), registry=None, buckets=(0.1, 1, 5))
    theirs, ours = made.labels("tiny"), Histogram("ours", "text", {"model_name": "tiny"}, (0.1, 1, 5))
    for value in (0.0, 0.1, 0.10001, 1, 3.5, 5, 5.5, 1e9):
        theirs.observe(value)
        ours.observe(value)
    (wanted,), (found,) = made.collect(), ours.collect()
    assert found.type == wanted.type == "histogram" and found.documentation == wanted.documentation
    assert found.samples == [sample for sample in wanted.samples if not sample.name.endswith("_created")]
