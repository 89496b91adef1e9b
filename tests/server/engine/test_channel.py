"""Frames arrive whole however they are cut, and what is no frame closes the channel."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.core.config import BuildConfig, EngineConfig
from quire.core.request import Request, SampleUpdate, TokenLogprobs
from quire.core.sampling_params import RequestOutputKind, SamplingParams
from quire.distributed.channel import MAX_FRAME_BYTES, Channel, ChannelError, FrameReader, pack_frame
from quire.server.engine.channel import AsyncChannel
from quire.server.engine.messages import Add, Command, Event, Start, StepDone, encode


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8), st.lists(st.integers(1, 30), min_size=1, max_size=50))
def test_frames_survive_every_cut(payloads: list[bytes], cuts: list[int]) -> None:
    data, reader, found = b"".join(map(pack_frame, payloads)), FrameReader(), []
    for size in cuts:
        found += reader.feed(data[:size])
        data = data[size:]
    assert found + reader.feed(data) == payloads


@pytest.mark.parametrize("length", (0, MAX_FRAME_BYTES + 1, 0xFFFFFFFF))
def test_a_length_out_of_bounds_is_no_frame(length: int) -> None:
    reader = FrameReader()
    assert reader.feed(pack_frame(b"good")) == [b"good"]
    with pytest.raises(ChannelError, match=f"got {length}"):
        reader.feed(struct.pack("!I", length))


def test_an_empty_or_oversized_payload_is_not_sent() -> None:
    for payload in (b"", bytes(MAX_FRAME_BYTES + 1)):
        with pytest.raises(ChannelError, match="expected 1 to"):
            pack_frame(payload)


def test_the_blocking_end() -> None:
    ours, theirs = socket.socketpair()
    with ours, Channel(theirs) as channel:
        assert channel.receive(is_waiting=False) == []
        ours.sendall(pack_frame(b"one")[:5])
        assert channel.receive(is_waiting=False) == []
        ours.sendall(pack_frame(b"one")[5:] + pack_frame(b"two"))
        assert channel.receive(is_waiting=True) == [b"one", b"two"]
        ours.close()
        with pytest.raises(ChannelError, match="closed"):
            channel.receive(is_waiting=False)
        with pytest.raises(ChannelError, match="expected a reader"):
            channel.send(b"three")


def test_a_call_to_wake_up_is_heard_by_who_waits_now_or_next() -> None:
    ours, theirs = socket.socketpair()
    with ours, Channel(theirs) as channel:
        channel.wake()
        assert channel.receive(is_waiting=False) == [], "who does not wait does not hear it"
        assert channel.receive(is_waiting=True) == []
        timer = threading.Timer(0.05, channel.wake)
        timer.start()
        assert channel.receive(is_waiting=True) == []
        timer.join()
        ours.sendall(pack_frame(b"one"))
        assert channel.receive(is_waiting=True) == [b"one"], "no call is left over"
    channel.wake()  # closed: nothing


def test_garbage_closes_the_asynchronous_end_once() -> None:
    async def run() -> tuple[list[bytes], list[str], int]:
        ours, theirs = socket.socketpair()
        frames: list[bytes] = []
        closed: list[str] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: None)
        channel = await AsyncChannel.open(ours, frames.append, closed.append)
        theirs.sendall(pack_frame(b"good"))
        while not frames:
            await asyncio.sleep(0.001)
        theirs.sendall(b"\xff" * 64)
        while not closed:
            await asyncio.sleep(0.001)
        channel.send(b"nobody hears this")
        left = theirs.recv(16)
        theirs.close()
        return frames, closed, len(left)

    frames, closed, left = asyncio.run(run())
    assert frames == [b"good"] and len(closed) == 1 and "got 4294967295" in closed[0] and left == 0


def test_the_asynchronous_end_within_uvloop() -> None:
    uvloop = pytest.importorskip("uvloop")

    async def run() -> bytes:
        ours, theirs = socket.socketpair()
        frames: list[bytes] = []
        channel = await AsyncChannel.open(ours, frames.append, lambda reason: None)
        theirs.sendall(pack_frame(b"hello"))
        while not frames:
            await asyncio.sleep(0.001)
        channel.send(frames[0] * 2)
        await asyncio.sleep(0.01)
        channel.close()
        with theirs:
            return theirs.recv(64)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(run()) == pack_frame(b"hellohello")


def test_an_exception_of_the_owner_closes_the_channel() -> None:
    async def run() -> list[str]:
        ours, theirs = socket.socketpair()
        closed: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        decode = msgspec.msgpack.Decoder(Event).decode
        await AsyncChannel.open(ours, decode, closed.append)
        theirs.sendall(pack_frame(b"\xc1 is no msgpack"))
        while not closed:
            await asyncio.sleep(0.001)
        theirs.close()
        return closed

    assert asyncio.run(run()) == ["DecodeError in a frame"]


def test_messages_keep_every_field() -> None:
    params = SamplingParams(
        n=3, presence_penalty=0.5, frequency_penalty=-0.5, repetition_penalty=1.5, temperature=0.7, top_p=0.9, top_k=7,
        min_p=0.1, seed=(1 << 64) - 1, stop=["a", "b"], stop_token_ids=[1, 2], ignore_eos=True, max_tokens=9,
        min_tokens=2, logprobs=3, prompt_logprobs=4, skip_special_tokens=False, include_stop_str_in_output=True,
        output_kind=RequestOutputKind.DELTA, logit_bias={3: -1.5}, allowed_token_ids=[1, 2, 3], bad_words=["no"],
    )  # fmt: skip
    request = Request("a", (1, 2), params, frozenset({5}), "text", -3, 1.25, "salt", ((1, 2), (3,)))
    add = msgspec.msgpack.decode(encode(Add("a", msgspec.Raw(encode(request)))), type=Command)
    assert isinstance(add, Add) and msgspec.msgpack.decode(add.request, type=Request) == request
    start = Start("m", BuildConfig(hf_overrides={"a": [1, {"b": None}]}), EngineConfig(max_model_len=7))
    assert msgspec.msgpack.decode(encode(start), type=Command) == start
    logprobs = (TokenLogprobs((1, 2), (-0.1, float("-inf")), (1, 2)),)
    update = SampleUpdate("a", 1, (7,), logprobs, logprobs, 16, "stop", "x", 2, 1.5)
    step = StepDone((update, SampleUpdate("b", 0)), {"num_steps": 1.0})
    assert msgspec.msgpack.decode(encode(step), type=Event) == step
