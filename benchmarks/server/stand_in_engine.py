"""An engine process that computes nothing: a token for each request in each step, as fast as the server takes them.

The environment variable `STAND_IN_STEP_S` gives the least time that a step takes, in seconds.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress

import msgspec

from quire.builder.open import open_plan
from quire.core.config import SchedulerConfig
from quire.core.request import Request, SampleUpdate
from quire.distributed.channel import Channel, ChannelError
from quire.server.engine.messages import Abort, Add, Command, Opened, Pong, Ready, Start, StepDone, encode

STEP_VARIABLE = "STAND_IN_STEP_S"
_FIRST_ID, _NUM_IDS = 1000, 1500  # ordinary words of quire-tiny: each makes text, so each token is an event
_LIMITS = SchedulerConfig(2048, 1024, 1 << 20, 16, 1 << 20)


class StandIn:
    """Serves one channel."""

    def __init__(self, channel: Channel, step_s: float) -> None:
        self._channel = channel
        self._step_s = step_s
        self._left: dict[str, int] = {}
        self._commands = msgspec.msgpack.Decoder(Command)
        self._requests = msgspec.msgpack.Decoder(Request)
        self._metrics = dict.fromkeys(
            ("num_steps", "computed_tokens", "generation_tokens", "num_requests_running", "num_requests_waiting",
             "num_preemptions", "prefix_cache_queries", "prefix_cache_hits", "kv_cache_usage_perc"), 0.0,
        )  # fmt: skip

    def run(self) -> None:
        """Serve until the server is gone."""
        (payload,) = self._channel.receive(is_waiting=True)
        start = self._commands.decode(payload)
        assert isinstance(start, Start), f"expected the command to start first, got {start}"
        plan = open_plan(start.model, start.build)
        self._channel.send(encode(Opened(str(plan.directory), tuple(plan.spec.eos_token_ids), plan.spec.vocab_size)))
        self._channel.send(encode(Ready(_LIMITS)))
        with suppress(ChannelError):
            while True:
                self._turn()

    def _turn(self) -> None:
        updates, began_s = [], time.monotonic()
        for payload in self._channel.receive(is_waiting=not self._left):
            command = self._commands.decode(payload)
            if isinstance(command, Add):
                request = self._requests.decode(command.request)
                self._left[request.request_id] = request.params.max_tokens or 1
                updates.append(SampleUpdate(request.request_id, 0, scheduled_time_s=request.arrival_time_s))
            elif isinstance(command, Abort):
                self._left.pop(command.request_id, None)
        for request_id, left in list(self._left.items()):
            self._left[request_id] = left - 1
            reason = "length" if left == 1 else None
            updates.append(SampleUpdate(request_id, 0, (_FIRST_ID + left % _NUM_IDS,), finish_reason=reason))
            if reason:
                del self._left[request_id]
        self._metrics["generation_tokens"] += len(updates)
        self._channel.send(encode(StepDone(tuple(updates), self._metrics)))
        if self._step_s:
            time.sleep(max(0.0, began_s + self._step_s - time.monotonic()))


def _answer_pings(channel: Channel) -> None:
    with suppress(ChannelError):
        while True:
            channel.receive(is_waiting=True)
            channel.send(encode(Pong(0.0)))


def main(*sockets: str) -> int:
    """Serve, given two numbers of sockets; returns the exit code."""
    ours, health = (Channel(socket.socket(fileno=int(word))) for word in sockets)
    threading.Thread(target=_answer_pings, args=(health,), daemon=True).start()
    StandIn(ours, float(os.environ.get(STEP_VARIABLE, "0"))).run()
    return 0
