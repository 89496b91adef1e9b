"""Several engines behind one door: one dies and the others go on; what is said to a request goes to its engine."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.server.front_end import FrontEnd
from quire.core.config import EngineConfig
from quire.core.errors import ConfigError, RequestError
from quire.core.sampling_params import RequestOutputKind, SamplingParams
from quire.core.server_config import ServerConfig
from quire.llm import LLM
from quire.server.engine.async_engine import AsyncEngine
from quire.server.engine.places import Place, divide_machine
from quire.server.engine_client import EngineDeadError, OverloadedError
from tests.server.conftest import MODEL
from tests.server.engine.test_async_engine import LONG, PROMPTS, generate, joined, settled, until
from tests.support.server_process import ROOT

ENDLESS = replace(LONG, max_tokens=1900)


@pytest.fixture(scope="module", autouse=True)
def stand_ins() -> Iterator[None]:
    """Let processes find the stand-in, which takes 10 ms for a token."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        patch.setenv("STAND_IN_STEP_S", "0.01")
        yield


@pytest.fixture(scope="module")
def engines(runner: asyncio.Runner) -> Iterator[AsyncEngine]:
    """Two engines that compute nothing; one of them is killed now and then."""
    made = FrontEnd(MODEL, server=ServerConfig(replicas=2, standby=False, max_num_waiting=0))
    runner.run(made.start())
    yield made
    runner.run(made.close())


async def home(engine: AsyncEngine, request_id: str) -> int:
    """Where a request went."""
    await until(lambda: engine._streams[request_id].engine is not None)
    found = engine._streams[request_id].engine
    assert found is not None
    return found


async def begin(engine: AsyncEngine, request_id: str, ids: list[int]):  # type: ignore[no-untyped-def]
    """Start an endless request; returns its outputs, one of which has been read, and where it went."""
    outputs = engine.generate(request_id, ids, ENDLESS)
    await anext(outputs)
    return outputs, await home(engine, request_id)


def test_streams_spread_over_all_engines_and_prompts_find_their_like(runner, engines) -> None:  # type: ignore[no-untyped-def]
    async def run() -> None:
        streams = [await begin(engines, f"r{i}", [100 * i + 5] * 64) for i in range(2)]
        assert sorted(where for _, where in streams) == [0, 1]
        again = [await begin(engines, f"again{i}", [100 * i + 5] * 64) for i in range(2)]
        assert [where for _, where in again] == [where for _, where in streams]
        for outputs, _ in streams + again:
            await outputs.aclose()
        assert [engines._router.load(engine) for engine in range(2)] == [0, 0]

    runner.run(run())


def test_who_leaves_is_aborted_where_he_was(runner, engines, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    sent: list[tuple[int, str]] = []

    async def run() -> None:
        streams = [await begin(engines, f"r{i}", [i + 5] * 8) for i in range(2)]
        for replica in engines.replicas:
            monkeypatch.setattr(replica, "send", lambda c, at=replica.index: sent.append((at, type(c).__name__)))
        for outputs, _ in streams:
            await outputs.aclose()
        assert sent == [(where, "Abort") for _, where in streams]

    runner.run(run())


def test_the_queue_is_one(runner, engines) -> None:  # type: ignore[no-untyped-def]
    room = engines._waiting_room
    assert room.max_num_seqs == 2 * engines.replicas[0].scheduler.max_num_seqs


@pytest.mark.parametrize("number", (signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)))
def test_a_death_is_felt_by_its_own_requests_only(runner, engines, number) -> None:  # type: ignore[no-untyped-def]
    async def run() -> None:
        room, all_seats = engines._waiting_room, engines._waiting_room.max_num_seqs
        streams = [await begin(engines, f"r{i}", [100 * i + 5] * 64) for i in range(2)]
        victim = streams[1][1]
        os.kill(engines.replicas[victim]._child.pid, number)
        with pytest.raises(EngineDeadError, match="what was running in it is lost"):
            async for _ in streams[1][0]:
                pass
        assert engines.readiness().is_ready and "1 of 2 engines" in engines.readiness().reason
        assert [engine.is_ready for engine in engines.readiness().engines].count(False) == 1
        assert room.max_num_seqs == all_seats // 2
        await asyncio.wait_for(anext(streams[0][0]), 5)
        late, where = await begin(engines, "late", [105] * 64)
        assert where != victim, "the prefix that it had is gone with it"
        await until(lambda: "2 of 2" in engines.readiness().reason, 90)
        assert room.max_num_seqs == all_seats
        fresh, where = await begin(engines, "fresh", [9] * 8)
        assert where == victim, "it has nothing to do"
        for outputs in (streams[0][0], late, fresh):
            await outputs.aclose()
        assert not engines._streams and room._num_unfinished == 0

    runner.run(run())


def test_metrics_name_the_engine(runner, engines) -> None:  # type: ignore[no-untyped-def]
    async def run() -> None:
        for i in range(2):
            await generate(engines, f"m{i}", PROMPTS[i], replace(LONG, max_tokens=3))

    runner.run(run())
    found = {
        sample.labels["engine"]: sample.value
        for family in text_string_to_metric_families(engines.metrics_text().decode())
        for sample in family.samples
        if sample.name == "quire:generation_tokens_total"
    }
    assert set(found) == {"0", "1"} and min(found.values()) >= 3
    names = [line for line in engines.metrics_text().decode().splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names)), "each family is told once"


def test_two_engines_say_what_one_does(runner) -> None:  # type: ignore[no-untyped-def]
    """Real ones: tokens, texts and finish reasons of 12 requests at once are those of one engine in this process."""
    settings = {"max_num_seqs": 8, "max_model_len": 512}
    wanted = [SamplingParams(temperature=0.8 * (i % 2), seed=i, max_tokens=12, n=1 + i % 2) for i in range(12)]
    with LLM(MODEL, **settings) as llm:
        expected = llm.generate([PROMPTS[i % 4] for i in range(12)], wanted, use_tqdm=False)

    async def run() -> list:  # type: ignore[type-arg]
        engine = AsyncEngine(MODEL, engine=EngineConfig(**settings), server=ServerConfig(replicas=2, standby=False))
        await engine.start()
        try:
            params = [replace(each, output_kind=RequestOutputKind.DELTA) for each in wanted]
            jobs = [generate(engine, f"r{i}", PROMPTS[i % 4], params[i]) for i in range(12)]
            outputs = await asyncio.gather(*jobs)
            pictures = [await engine.picture(i) for i in range(2)]
            assert all(picture.num_cached_blocks for picture in pictures), "both have worked"
            await settled(engine)
            hits = engine.metrics(0)["prefix_cache_hits"] + engine.metrics(1)["prefix_cache_hits"]
            await generate(engine, "again", PROMPTS[3], params[3])
            assert engine.metrics(0)["prefix_cache_hits"] + engine.metrics(1)["prefix_cache_hits"] > hits
            return outputs
        finally:
            await engine.close()

    for outputs, alone in zip(runner.run(run()), expected, strict=True):
        assert joined(outputs, len(alone.outputs)) == [
            (c.text, c.token_ids, c.finish_reason, c.stop_reason) for c in alone.outputs
        ]


@pytest.mark.slow
def test_without_restart_the_server_ends_with_the_last_engine(runner) -> None:  # type: ignore[no-untyped-def]
    async def run() -> str:
        engine = FrontEnd(MODEL, server=ServerConfig(replicas=2, restart=False, standby=False))
        await engine.start()
        try:
            engine.replicas[0]._child.kill("a test")  # type: ignore[union-attr]
            await until(lambda: "1 of 2" in engine.readiness().reason)
            await generate(engine, "others go on", "a", replace(LONG, max_tokens=3))
            assert not engine.dead.done()
            engine.replicas[1]._child.kill("a test")  # type: ignore[union-attr]
            return await asyncio.wait_for(engine.dead, 5)
        finally:
            await engine.close()

    assert runner.run(run()) == "a test (exit code -9)"


@pytest.mark.slow
def test_a_start_that_fails_is_told_once(runner) -> None:  # type: ignore[no-untyped-def]
    config = EngineConfig(max_model_len=10**6)
    with pytest.raises(ConfigError, match="max_model_len: expected at most 2048"):
        runner.run(AsyncEngine(MODEL, engine=config, server=ServerConfig(replicas=2)).start())


@pytest.mark.parametrize(
    ("count", "device", "cores", "gpus", "expected"),
    (
        (1, "auto", 8, 4, [(None, None, 1.0)]),
        (2, "auto", 8, 0, [({0, 1, 2, 3}, None, 0.5), ({4, 5, 6, 7}, None, 0.5)]),
        (3, "cpu", 8, 4, [({0, 1}, None, 1 / 3), ({2, 3}, None, 1 / 3), ({4, 5}, None, 1 / 3)]),
        (2, "auto", 8, 2, [(None, "g0", 1.0), (None, "g1", 1.0)]),
        (4, "auto", 2, 0, [(None, None, 0.25)] * 4),
    ),
)
def test_what_each_gets_of_the_machine(monkeypatch, count, device, cores, gpus, expected) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    config = EngineConfig(device=device, gpu_memory_utilization=0.8)
    places = divide_machine(count, config, range(cores), [f"g{i}" for i in range(gpus)])
    found = [(p.cores, p.environment.get("CUDA_VISIBLE_DEVICES"), p.memory_share) for p in places]
    assert found == expected
    if count > 1:
        assert {p.environment["OMP_NUM_THREADS"] for p in places} == {str(max(1, cores // count))}
    assert places[0].adapt(config).gpu_memory_utilization == pytest.approx(0.8 * expected[0][2])


def test_a_wish_for_threads_is_granted_to_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert divide_machine(2, EngineConfig(), range(8), [])[1].environment["OMP_NUM_THREADS"] == "3"


def test_fewer_gpus_than_engines_are_told() -> None:
    with pytest.raises(ConfigError, match="replicas: expected at most 2, each of 1 of 2 GPUs, got 3"):
        divide_machine(3, EngineConfig(), range(8), ["0", "1"])
    with pytest.raises(ConfigError, match="replicas: expected at most 1, each of 4 of 7 GPUs, got 2"):
        divide_machine(2, EngineConfig(tensor_parallel_size=2, pipeline_parallel_size=2), range(8), list("0123456"))


def test_a_process_runs_where_it_is_put(runner: asyncio.Runner) -> None:
    async def run() -> tuple[set[int], bytes]:
        core = min(os.sched_getaffinity(0))
        place = Place(frozenset({core}), {"CUDA_VISIBLE_DEVICES": "7"})
        child = await FrontEnd.child_class.spawn(lambda event: None, 5.0, place)
        environment, deadline = b"", time.monotonic() + 5.0
        while not environment and time.monotonic() < deadline:  # we learn that it runs before it is all there
            with open(f"/proc/{child.pid}/environ", "rb") as file:
                environment = file.read()
        found = os.sched_getaffinity(child.pid) - {core}, environment
        await child.stop()
        return found

    others, environment = runner.run(run())
    assert not others and b"CUDA_VISIBLE_DEVICES=7\0" in environment


@pytest.mark.parametrize("error", (RequestError, OverloadedError))
def test_what_is_refused_counts_nowhere(runner, engines, monkeypatch, error) -> None:  # type: ignore[no-untyped-def]
    async def run() -> None:
        ids = [1] * (5000 if error is RequestError else 4)
        first, _ = await begin(engines, "first", [4] * 8)
        if error is OverloadedError:
            monkeypatch.setattr(engines._waiting_room, "max_num_seqs", 1)
        loads = [engines._router.load(i) for i in range(2)]
        with pytest.raises(error):
            await anext(engines.generate("refused", ids, LONG))
        assert [engines._router.load(i) for i in range(2)] == loads
        await first.aclose()

    runner.run(run())
