"""Life and death of the engine process: it sleeps when idle, dies with its parent, comes back when it was killed."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from quire.core.config import BuildConfig, EngineConfig
from quire.core.request import Request, SampleUpdate
from quire.core.sampling_params import RequestOutputKind, SamplingParams
from quire.core.server_config import ServerConfig
from quire.distributed.channel import Channel, ChannelError, FrameReader, pack_frame
from quire.distributed.program import command
from quire.server.engine import process as engine_process
from quire.server.engine.async_engine import AsyncEngine
from quire.server.engine.child import EngineChild
from quire.server.engine.messages import Add, Event, Failed, Finish, Opened, Ready, Refused, Start, StepDone, encode
from quire.server.engine.process import EngineProcess
from quire.server.engine_client import EngineDeadError
from tests.server.conftest import MODEL
from tests.server.engine.test_async_engine import LONG, generate, settled, until

ENGINE = EngineConfig(max_num_seqs=8, max_model_len=512)


def is_alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_gone(pid: int, timeout_s: float = 5.0) -> None:
    until_s = time.monotonic() + timeout_s
    while is_alive(pid):
        assert time.monotonic() < until_s, f"process {pid} is still there"
        time.sleep(0.02)


class Peer:
    """A server of one engine process, without an event loop."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        health, their_health = socket.socketpair()
        with theirs, their_health:
            fds = (theirs.fileno(), their_health.fileno())
            words = command("quire.server.engine.process", *fds)
            self.process = subprocess.Popen(words, pass_fds=fds, stderr=subprocess.PIPE)
        self.sock, self.health = ours, health
        self.channel = Channel(ours)
        self.events: list[Event] = []

    def load(self, model: str = MODEL) -> None:
        self.channel.send(encode(Start(model, BuildConfig(), ENGINE)))

    def next(self, kind: type) -> Event:
        """The next event of a kind; others stay for later."""
        while not (found := [event for event in self.events if isinstance(event, kind)]):
            for payload in self.channel.receive(is_waiting=True):
                self.events.append(msgspec.msgpack.decode(payload, type=Event))
        self.events.remove(found[0])
        return found[0]

    def close(self) -> str:
        """Close the sockets and return what the process has written."""
        with self.channel, self.health:
            self.sock.close()
        return self.process.communicate(timeout=10)[1].decode()


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    made = Peer()
    made.load()
    opened = made.next(Opened)
    assert isinstance(opened, Opened) and opened.vocab_size > 0
    made.next(Ready)
    yield made
    made.close()
    assert made.process.returncode == 0


def add(peer: Peer, request_id: str, max_tokens: int = 3, prompt: tuple[int, ...] = (5, 6)) -> None:
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0, seed=0, ignore_eos=True)
    peer.channel.send(encode(Add(request_id, msgspec.Raw(encode(Request(request_id, prompt, params))))))


def ended(peer: Peer, request_id: str) -> tuple[list[int], str]:
    """Tokens and finish reason of a request."""
    ids: list[int] = []
    while True:
        event = peer.next(StepDone)
        assert isinstance(event, StepDone)
        for update in event.updates:
            if update.request_id == request_id:
                ids += update.new_token_ids
                if update.finish_reason:
                    return ids, update.finish_reason


def test_a_bad_request_is_refused_alone(peer: Peer) -> None:
    add(peer, "good", 8)
    peer.channel.send(encode(Add("no request", msgspec.Raw(encode(Finish("x", 0, "stop", None))))))
    add(peer, "too long", 3, (1,) * 600)
    refused = [peer.next(Refused), peer.next(Refused)]
    assert [event.request_id for event in refused] == ["no request", "too long"]  # type: ignore[union-attr]
    assert "ValidationError" in refused[0].message and "1 to 511 tokens" in refused[1].message  # type: ignore[union-attr]
    assert [len(ids) for ids, _ in [ended(peer, "good")]] == [8]


def test_a_stop_in_the_middle_frees_its_blocks(peer: Peer) -> None:
    add(peer, "stopped", 300)
    peer.next(StepDone)
    peer.channel.send(encode(Finish("stopped", 0, "stop", "a string")))
    until_s = time.monotonic() + 5
    while True:
        event = peer.next(StepDone)
        assert isinstance(event, StepDone) and time.monotonic() < until_s
        if event.metrics["kv_cache_usage_perc"] == event.metrics["num_requests_running"] == 0:
            return


def test_it_sleeps_when_there_is_nothing_to_do(peer: Peer) -> None:
    def ticks() -> int:
        return sum(map(int, Path(f"/proc/{peer.process.pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]))

    time.sleep(0.5)  # threads of the last step stop to spin
    before = ticks()
    time.sleep(2)
    assert (ticks() - before) / os.sysconf("SC_CLK_TCK") < 0.02, "1 % of two seconds"


def test_too_much_news_comes_in_several_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_process, "MAX_FRAME_BYTES", 400)
    sent: list[StepDone] = []
    finished: list[object] = []

    class Loop:
        def metrics(self) -> dict[str, float]:
            return {}

        def finish(self, *sample: object) -> None:
            finished.append(sample)

    class Sink:
        def send(self, payload: bytes) -> None:
            assert len(payload) <= 400
            sent.append(msgspec.msgpack.decode(payload, type=Event))  # type: ignore[arg-type]

    process = EngineProcess(Sink())  # type: ignore[arg-type]
    small = [SampleUpdate(f"request-{i}", 0, (1, 2, 3)) for i in range(20)]
    large = SampleUpdate("large", 1, tuple(range(1000, 2000)))
    process._send_updates(Loop(), [*small, large])  # type: ignore[arg-type]
    updates = [update for event in sent for update in event.updates]
    assert updates[:20] == small and len(sent) > 3
    assert updates[20].finish_reason == "error" and finished[0][:3] == ("large", 1, "error")  # type: ignore[index]


def run_main(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> tuple[int, list[bytes]]:
    """Run the entry of an engine process here; returns its exit code and what it said."""
    ours, theirs = socket.socketpair()
    health, their_health = socket.socketpair()
    monkeypatch.setattr(engine_process, "die_with_parent", lambda: None)
    with ours, health:
        ours.sendall(sent)
        code = engine_process.main(theirs.detach(), their_health.detach())
        ours.shutdown(socket.SHUT_WR)
        data = b"".join(iter(lambda: ours.recv(1 << 16), b""))
    for thread in threading.enumerate():
        if thread.name == "pings":
            thread.join(5)
    return code, FrameReader().feed(data)


@pytest.mark.parametrize(
    ("garbage", "kind"),
    (
        (b"\xff" * 16, None),
        (pack_frame(b"\xc1"), "DecodeError"),
        (pack_frame(encode(StepDone((), {}))), "ValidationError"),
        (pack_frame(encode(Finish("a", 0, "x", None))), None),
    ),
)
def test_garbage_ends_the_process(monkeypatch: pytest.MonkeyPatch, garbage: bytes, kind: str | None) -> None:
    code, said = run_main(monkeypatch, garbage)
    assert code == (kind is not None)
    assert [msgspec.msgpack.decode(payload, type=Event) for payload in said] == ([Failed(kind, "")] if kind else [])


def test_a_loop_that_fails_says_so_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    class Loop:
        def check_workers(self) -> None:
            pass

        def has_unfinished(self) -> bool:
            return True

        def step(self) -> list[SampleUpdate]:
            raise ZeroDivisionError("in a kernel")

    monkeypatch.setattr(EngineProcess, "run", lambda self: self._turn(Loop()))
    code, (payload,) = run_main(monkeypatch, b"")
    assert code == 1 and msgspec.msgpack.decode(payload, type=Event) == Failed("ZeroDivisionError", "")


PARENT = """
import asyncio, sys
from quire.server.engine.async_engine import AsyncEngine
from quire.core.sampling_params import SamplingParams
async def main():
    engine = AsyncEngine("quire-tiny")
    await engine.start()
    print(engine.replicas[0]._child.pid, flush=True)
    async for _ in engine.generate("a", [5], SamplingParams(max_tokens=2000, ignore_eos=True)):
        pass
asyncio.run(main())
"""


@pytest.mark.parametrize("number", (signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)))
def test_it_dies_with_its_parent_even_within_a_step(number: int) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        if number == signal.SIGSTOP:
            os.kill(pid, number)
        parent.kill()
        wait_gone(pid)


@pytest.fixture(scope="module")
def mortal(runner: asyncio.Runner) -> Iterator[AsyncEngine]:
    """One engine, killed and stopped again and again."""
    made = AsyncEngine(MODEL, engine=ENGINE)
    runner.run(made.start())
    yield made
    pids = [child.pid for child in (made.replicas[0]._child, made.replicas[0]._successor) if child is not None]
    runner.run(made.close())
    assert pids and not any(map(is_alive, pids))


@pytest.mark.parametrize("number", (signal.SIGKILL, signal.SIGSTOP))
def test_every_stream_hears_of_it_once_and_another_process_serves(runner, mortal, number) -> None:  # type: ignore[no-untyped-def]
    async def run() -> None:
        ids = list(range(40, 120))
        plain = SamplingParams(max_tokens=4, temperature=0.0, output_kind=RequestOutputKind.FINAL_ONLY)
        before = [o async for o in mortal.generate("before", ids, plain)][-1]
        pid, loop = mortal.replicas[0]._child.pid, asyncio.get_running_loop()
        streams = [asyncio.create_task(generate(mortal, f"s{i}", "a", LONG)) for i in range(5)]
        await until(lambda: mortal.metrics()["num_requests_running"] == 5)
        os.kill(pid, number)
        began = loop.time()
        await until(lambda: not mortal.readiness().is_ready)
        results = await asyncio.gather(*streams, return_exceptions=True)
        assert [type(result) for result in results] == [EngineDeadError] * 5
        with pytest.raises(EngineDeadError, match="takes no requests"):
            await anext(mortal.generate("between", ids, plain))
        await until(lambda: mortal.readiness().is_ready, 60.0)
        took_s = loop.time() - began
        assert not is_alive(pid) and not mortal._streams
        after = [o async for o in mortal.generate("after", ids, plain)][-1]
        assert after.outputs[0].token_ids == before.outputs[0].token_ids
        assert after.num_cached_tokens == 0, "the prefix cache is another one"
        await settled(mortal)
        print(f"recovered from {signal.Signals(number).name} in {took_s:.1f} s")

    runner.run(run())


def test_what_had_ended_before_is_read_to_its_end(runner, mortal) -> None:  # type: ignore[no-untyped-def]
    async def run() -> None:
        params = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True, output_kind=RequestOutputKind.DELTA)
        ids = list(range(40, 60))
        outputs, unread = (mortal.generate(name, ids, params) for name in ("read later", "never read"))
        found = [await anext(outputs)]
        await anext(unread)
        await until(lambda: mortal.metrics()["num_requests_running"] == 0)
        os.kill(mortal.replicas[0]._child.pid, signal.SIGKILL)
        await until(lambda: not mortal.readiness().is_ready)
        await until(lambda: mortal.readiness().is_ready, 60.0)
        found += [output async for output in outputs]
        assert found[-1].finished and sum(len(output.outputs[0].token_ids) for output in found) == 12
        await unread.aclose()
        assert not mortal._streams
        await generate(mortal, "after", "a", params)
        await settled(mortal)

    runner.run(run())


def test_the_loop_that_was_late_itself_kills_nobody(runner, mortal) -> None:  # type: ignore[no-untyped-def]
    pid = mortal.replicas[0]._child.pid
    time.sleep(4)  # longer than a silent process may live
    runner.run(asyncio.sleep(1))
    assert mortal.replicas[0]._child.pid == pid and mortal.readiness().is_ready


def test_a_step_without_end_is_not_ready_and_then_killed(runner: asyncio.Runner) -> None:
    async def run() -> str:
        child = await EngineChild.spawn(lambda event: None, hang_timeout_s=3.0)
        child.is_ready = True
        child._take_pong(encode(engine_process.Pong(3.5)))
        return await child.wait_dead()

    assert "a step did not end within 3 s" in runner.run(run())


def test_a_step_that_lasts_is_seen_from_the_other_thread() -> None:
    process = EngineProcess(None)  # type: ignore[arg-type]
    assert process.step_age_s() == 0
    process._step_began_s = time.monotonic() - 7
    assert 7 <= process.step_age_s() < 8


def test_without_restart_the_death_is_told_and_nothing_is_left_open(runner: asyncio.Runner) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    async def run() -> str:
        engine = AsyncEngine(MODEL, engine=ENGINE, server=ServerConfig(restart=False))
        await engine.start()
        child = engine.replicas[0]._child
        assert child is not None
        pid = child.pid
        child.kill("a test")
        reason = await asyncio.wait_for(engine.dead, 5)
        assert not engine.readiness().is_ready and not is_alive(pid)
        await engine.close()
        await asyncio.sleep(0.05)
        return reason

    before = descriptors()
    assert runner.run(run()) == "a test (exit code -9)"
    assert descriptors() == before


def test_a_channel_to_nobody() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with Channel(ours) as channel, pytest.raises(ChannelError, match="closed"):
        EngineProcess(channel).run()
