"""Requests of one event loop: equal to `LLM.generate`, apart from each other, bounded, and gone when nobody reads."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from quire.core.config import EngineConfig
from quire.core.errors import ConfigError, PlanError, RequestError
from quire.core.request import RequestOutput
from quire.core.sampling_params import RequestOutputKind, SamplingParams
from quire.llm import LLM
from quire.server.engine.async_engine import AsyncEngine
from quire.server.engine_client import EngineDeadError, OverloadedError
from quire.tokenizer.stop_checker import StopChecker
from tests.server.conftest import MODEL

PROMPTS = ["Once upon a time", "The capital of France is", "a", "In the middle of the night " * 12]
LONG = SamplingParams(temperature=0.0, max_tokens=400, ignore_eos=True, output_kind=RequestOutputKind.DELTA)


async def generate(engine: AsyncEngine, request_id: str, prompt: str, params: SamplingParams, **more: object):  # type: ignore[no-untyped-def]
    """All outputs of a request."""
    ids = await engine.tokenize(prompt)
    return [output async for output in engine.generate(request_id, ids, params, prompt=prompt, **more)]  # type: ignore[arg-type]


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> float:
    """Wait for a condition; returns how long it took, in seconds."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < timeout_s, f"not within {timeout_s} s"
        await asyncio.sleep(0.01)
    return time.monotonic() - began


async def settled(engine: AsyncEngine) -> None:
    """Wait until the engine has nothing to do."""
    await until(lambda: not engine.metrics() or engine.metrics()["kv_cache_usage_perc"] == 0)
    metrics = engine.metrics()
    assert metrics["num_requests_running"] == metrics["num_requests_waiting"] == 0


def kinds(prompt: str, number: int) -> SamplingParams:
    """Parameters that differ from request to request."""
    return [
        SamplingParams(temperature=0.0, max_tokens=20),
        SamplingParams(temperature=0.9, seed=number, max_tokens=17, logprobs=2),
        SamplingParams(temperature=0.8, seed=number, n=3, max_tokens=9),
        SamplingParams(temperature=0.0, max_tokens=60, stop=[" a", "."]),
        SamplingParams(temperature=1.0, seed=number, max_tokens=12, prompt_logprobs=1, frequency_penalty=0.5),
    ][number % 5]


@pytest.fixture(scope="module")
def expected() -> Iterator[list[RequestOutput]]:
    """What an engine in this process makes of 31 requests."""
    with LLM(MODEL, max_num_seqs=32, max_model_len=512) as llm:
        prompts = [PROMPTS[i % 4] for i in range(31)]
        yield llm.generate(prompts, [kinds(p, i) for i, p in enumerate(prompts)], use_tqdm=False)


def joined(outputs: list[RequestOutput], n: int) -> list[tuple[str, list[int], object, object]]:
    """Deltas of a request, put together, by sample."""
    samples: list[tuple[str, list[int], object, object]] = [("", [], None, None)] * n
    for output in outputs:
        for c in output.outputs:
            text, ids, *_ = samples[c.index]
            samples[c.index] = (text + c.text, ids + c.token_ids, c.finish_reason, c.stop_reason)
    return samples


def test_31_streams_at_once_equal_an_engine_in_this_process(runner, engine, expected) -> None:  # type: ignore[no-untyped-def]
    async def run() -> list[list[RequestOutput]]:
        wanted = [replace(kinds(o.prompt, i), output_kind=RequestOutputKind.DELTA) for i, o in enumerate(expected)]
        jobs = [generate(engine, f"r{i}", o.prompt, wanted[i]) for i, o in enumerate(expected)]
        outputs = await asyncio.gather(*jobs)
        await settled(engine)
        return outputs

    for outputs, alone in zip(runner.run(run()), expected, strict=True):
        whole = [(c.text, c.token_ids, c.finish_reason, c.stop_reason) for c in alone.outputs]
        assert joined(outputs, len(whole)) == whole
        assert outputs[-1].finished and outputs[-1].prompt_logprobs == alone.prompt_logprobs
        assert len(outputs) > 1, "it was streamed"


@pytest.mark.parametrize("kind", (RequestOutputKind.CUMULATIVE, RequestOutputKind.FINAL_ONLY))
def test_other_kinds_of_output(runner, engine, expected, kind) -> None:  # type: ignore[no-untyped-def]
    params = replace(kinds(PROMPTS[0], 0), output_kind=kind)
    outputs = runner.run(generate(engine, "kind", PROMPTS[0], params))
    assert outputs[-1].outputs[0].token_ids == expected[0].outputs[0].token_ids
    assert (len(outputs) == 1) == (kind is RequestOutputKind.FINAL_ONLY)


def test_a_slow_reader_gets_fewer_and_larger_pieces(runner, engine) -> None:  # type: ignore[no-untyped-def]
    async def run(pause_s: float) -> list[RequestOutput]:
        outputs = []
        async for output in engine.generate("slow", [5, 6, 7], replace(LONG, max_tokens=50)):
            outputs.append(output)
            await asyncio.sleep(pause_s)
        return outputs

    quick, slow = runner.run(run(0)), runner.run(run(0.3))
    assert joined(quick, 1) == joined(slow, 1) and len(slow) < len(quick) / 4


def test_timing_is_on_the_last_output(runner, engine) -> None:  # type: ignore[no-untyped-def]
    metrics = runner.run(generate(engine, "timed", PROMPTS[0], replace(LONG, max_tokens=5)))[-1].metrics
    times = (metrics.arrival_time_s, metrics.scheduled_time_s, metrics.first_token_time_s, metrics.finished_time_s)
    assert list(times) == sorted(times) and metrics.num_preemptions == 0


def test_leaving_frees_the_blocks(runner, engine) -> None:  # type: ignore[no-untyped-def]
    async def run() -> float:
        stream = engine.generate("left", [5, 6, 7], LONG)
        await anext(stream)
        assert engine.metrics()["num_requests_running"] == 1 and engine.metrics()["kv_cache_usage_perc"] > 0
        num_steps = engine.metrics()["num_steps"]
        await stream.aclose()
        await settled(engine)
        return engine.metrics()["num_steps"] - num_steps

    assert runner.run(run()) <= 3, "what was under way, and nothing after"


def test_cancelling_a_reader_ends_its_request(runner, engine) -> None:  # type: ignore[no-untyped-def]
    async def run() -> None:
        task = asyncio.create_task(generate(engine, "cancelled", "a", LONG))
        await until(lambda: engine.metrics()["num_requests_running"] == 1)
        task.cancel()
        await settled(engine)

    runner.run(run())


def test_a_stop_string_ends_the_request_in_the_engine_process(runner, engine) -> None:  # type: ignore[no-untyped-def]
    async def run() -> int:
        before = engine.metrics()["generation_tokens"]
        outputs = await generate(engine, "stopped", PROMPTS[0], replace(LONG, stop=" a"))
        assert outputs[-1].outputs[0].finish_reason == "stop" and outputs[-1].outputs[0].stop_reason == " a"
        await settled(engine)
        return engine.metrics()["generation_tokens"] - before - len(joined(outputs, 1)[0][1])

    assert runner.run(run()) <= 8, "tokens that were under way, of 400"


@pytest.mark.parametrize(
    ("ids", "params", "match"),
    (
        ([], LONG, "at least one token"),
        ([1] * 512, LONG, "at most 511 tokens"),
        ([10**9], LONG, "expected ids in"),
        ([1], SamplingParams(logprobs=21), "logprobs: expected 0 to 20"),
        ([1], SamplingParams(prompt_logprobs=-1), "prompt_logprobs: expected 0 to 20"),
    ),
)
def test_what_is_not_valid_is_refused_before_it_is_sent(runner, engine, ids, params, match) -> None:  # type: ignore[no-untyped-def]
    async def run() -> None:
        async for _ in engine.generate("bad", ids, params):
            pass

    with pytest.raises(RequestError, match=match):
        runner.run(run())
    assert not engine._streams and engine._waiting_room._num_unfinished == 0


def test_an_id_in_use_is_refused_and_its_owner_unharmed(runner, engine) -> None:  # type: ignore[no-untyped-def]
    async def run() -> bool:
        stream = engine.generate("twice", [5], replace(LONG, max_tokens=30))
        await anext(stream)
        with pytest.raises(RequestError, match="no unfinished request has"):
            await anext(engine.generate("twice", [5], LONG))
        return [output async for output in stream][-1].finished

    assert runner.run(run())


def test_text_that_fails_stays_with_its_request(runner, engine, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    async def run() -> tuple[list[RequestOutput], list[RequestOutput]]:
        good = asyncio.create_task(generate(engine, "good", "a", replace(LONG, max_tokens=20)))
        bad = asyncio.create_task(generate(engine, "bad", "a", replace(LONG, max_tokens=20, stop="never")))
        return await good, await bad

    good, _ = runner.run(run())
    append = StopChecker.append
    monkeypatch.setattr(StopChecker, "append", lambda self, text: 1 / 0 if self._stop else append(self, text))
    still_good, bad = runner.run(run())
    assert joined(still_good, 1) == joined(good, 1)
    assert bad[-1].outputs[0].finish_reason == "error" and "ZeroDivisionError" in bad[-1].outputs[0].stop_reason


def test_cached_prefixes_are_shared_within_a_salt_only(runner, engine) -> None:  # type: ignore[no-untyped-def]
    ids = list(range(40, 120))

    async def run(request_id: str, salt: str) -> int:
        params = SamplingParams(max_tokens=1, output_kind=RequestOutputKind.FINAL_ONLY)
        return [o async for o in engine.generate(request_id, ids, params, cache_salt=salt)][-1].num_cached_tokens

    assert [runner.run(run(f"salt{i}", salt)) for i, salt in enumerate("aabba")] == [0, 64, 0, 64, 64]


def test_a_long_text_does_not_stop_the_event_loop(runner, engine) -> None:  # type: ignore[no-untyped-def]
    text = "The quick brown fox jumps over the lazy dog. " * 20_000

    async def run() -> tuple[float, float]:
        task = asyncio.create_task(engine.tokenize(text))
        began = last = time.monotonic()
        longest = 0.0
        while not task.done():
            await asyncio.sleep(0.001)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        assert len(await task) > 100_000
        return longest, last - began

    longest, total = runner.run(run())
    assert longest < total / 3, f"the loop stood still for {longest:.3f} of {total:.3f} s"


def test_a_full_queue_refuses_at_once(runner, engine, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    async def run() -> None:
        streams = [engine.generate(f"s{i}", [5, 6], LONG) for i in range(4)]
        await asyncio.gather(*map(anext, streams))  # type: ignore[arg-type]
        await refused(SamplingParams(max_tokens=5), "4 sequences, of at most 4")
        await streams[0].aclose()
        await refused(SamplingParams(n=2, max_tokens=5), "3 sequences, of at most 4")
        await generate(engine, "fits", "a", SamplingParams(max_tokens=2))
        for stream in streams:
            await stream.aclose()
        await settled(engine)

    async def refused(params: SamplingParams, match: str) -> None:
        began = time.monotonic()
        with pytest.raises(OverloadedError, match=match) as caught:
            await anext(engine.generate("refused", [5, 6], params))
        assert time.monotonic() - began < 0.05
        assert 1 <= caught.value.retry_after_s <= 60

    monkeypatch.setattr(engine._waiting_room, "max_num_seqs", 4)
    runner.run(run())


@pytest.mark.parametrize(
    ("model", "options", "kind", "match"),
    (
        pytest.param("./no/such/model", {}, PlanError, "no such path", marks=pytest.mark.slow),
        (MODEL, {"max_model_len": 10**6}, ConfigError, "max_model_len: expected at most 2048"),
    ),
)
def test_a_failed_start_raises_what_the_process_raised(runner, model, options, kind, match) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(kind, match=match):
        runner.run(AsyncEngine(model, engine=EngineConfig(**options)).start())


def test_a_tokenizer_that_is_missing_is_told_at_the_start(runner, tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(PlanError):
        runner.run(AsyncEngine(MODEL, tokenizer=str(tmp_path)).start())


def test_drain_and_close(runner) -> None:  # type: ignore[no-untyped-def]
    async def run() -> None:
        engine = AsyncEngine(MODEL, engine=EngineConfig(max_model_len=512))
        await engine.start()
        short = asyncio.create_task(generate(engine, "short", "a", replace(LONG, max_tokens=20)))
        await asyncio.sleep(0.05)
        assert await engine.drain(5.0) and (await short)[-1].finished
        assert not engine.readiness().is_ready
        with pytest.raises(OverloadedError, match="shuts down"):
            await generate(engine, "late", "a", LONG)
        engine._is_draining = False
        endless = asyncio.create_task(generate(engine, "endless", "a", LONG))
        await asyncio.sleep(0.05)
        assert not await engine.drain(0.1)
        pid = engine.replicas[0]._child.pid  # type: ignore[union-attr]
        await engine.close()
        with pytest.raises(EngineDeadError, match="shuts down"):
            await endless
        assert subprocess.run(["ps", "-p", str(pid)], capture_output=True).returncode == 1

    runner.run(run())


def test_the_server_side_needs_no_tensors() -> None:
    code = "import sys, quire.server.engine.async_engine; sys.exit(any(m in sys.modules for m in ('torch', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
