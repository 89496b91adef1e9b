"""`EngineChild`: one engine process, seen from the server: started, spoken to, watched, and buried."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import Callable
from contextlib import suppress

import msgspec

from quire.core import env
from quire.core.log import get_logger
from quire.distributed.program import command
from quire.server.engine.channel import AsyncChannel
from quire.server.engine.messages import Command, Event, Ping, Pong, encode
from quire.server.engine.places import Place

_log = get_logger(__name__)
PING_INTERVAL_S = 0.25
# Pings are answered by a thread of their own, so only a stopped process stays silent, or one that imports: that holds
# Python's lock for as long as a cold disk takes to read a gigabyte of libraries.
SUSPICIOUS_UNANSWERED = 3
MOST_UNANSWERED = 10
MOST_UNANSWERED_AT_START = 240
EXIT_TIMEOUT_S = 2.0


class EngineChild:
    """Owns a process and two sockets to it. `spawn` makes it; `wait_dead` tells its end; `stop` brings it.

    Args:
        hang_timeout_s: Seconds without a finished step, while there is work, after which it is killed.

    Attributes:
        num_unanswered: Pings since its last answer.
        step_age_s: How long the step lasted that ran when it last answered, in seconds.
        is_ready: Set by the owner once the model is loaded: from then on silence is suspect sooner.
        on_silence: Called when it begins to be suspect.
        module: What the process runs.
    """

    module = "quire.server.engine.process"

    def __init__(self, hang_timeout_s: float) -> None:
        self.num_unanswered = 0
        self.step_age_s = 0.0
        self.is_ready = False
        self.on_silence: Callable[[], object] = lambda: None
        self._hang_timeout_s = hang_timeout_s
        self._pongs = msgspec.msgpack.Decoder(Pong)
        self._dead: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._process: subprocess.Popen[bytes]
        self._commands: AsyncChannel
        self._health: AsyncChannel
        self._watch: asyncio.Task[None]

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @classmethod
    async def spawn(
        cls, on_event: Callable[[Event], None], hang_timeout_s: float, place: Place | None = None
    ) -> EngineChild:
        """Start a process, which waits for the command to `Start`; until then it holds its libraries and nothing else.

        Args:
            on_event: Called with all that it says. An exception of its ends the process.
            hang_timeout_s: Seconds without a finished step, while there is work, after which it is killed.
            place: Where it runs; None is wherever the server does.
        """
        place = place or Place()
        child = cls(hang_timeout_s)
        ours, theirs = socket.socketpair()
        our_health, their_health = socket.socketpair()
        with theirs, their_health:
            fds = (theirs.fileno(), their_health.fileno())
            words, variables = command(cls.module, *fds), env.child_environment(place.environment)
            child._process = subprocess.Popen(words, stdin=subprocess.DEVNULL, pass_fds=fds, env=variables)
        if place.cores is not None:  # it has one thread yet, from which those to come inherit it
            os.sched_setaffinity(child.pid, place.cores)
        events = msgspec.msgpack.Decoder(Event)
        child._commands = await AsyncChannel.open(ours, lambda data: on_event(events.decode(data)), child._end)
        child._health = await AsyncChannel.open(our_health, child._take_pong, lambda reason: None)
        child._watch = asyncio.create_task(child._ping())
        return child

    def send(self, command: Command) -> None:
        """Queue a command; never blocks. Nothing if the process is gone.

        Raises:
            ChannelError: It is too large for a frame.
        """
        self._commands.send(encode(command))

    async def wait_dead(self) -> str:
        """Wait for its end, and return the reason; the process is gone then."""
        reason = await asyncio.shield(self._dead)
        self._watch.cancel()
        self._health.close()
        self._commands.close()
        await asyncio.to_thread(self._bury)
        return f"{reason} (exit code {self._process.returncode})"

    def kill(self, reason: str) -> None:
        """End it at once.

        Args:
            reason: What `wait_dead` returns, unless it had ended before.
        """
        self._process.kill()
        self._end(reason)

    async def stop(self) -> None:
        """Close its sockets, which ends it after its present step, and wait; kill it if it takes too long."""
        self._end("the server closes it")
        await self.wait_dead()

    def _end(self, reason: str) -> None:
        if not self._dead.done():
            self._dead.set_result(reason)

    def _bury(self) -> None:
        """Wait for the process, so that no zombie stays; one that cannot hear is killed."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(EXIT_TIMEOUT_S)
        self._process.kill()
        self._process.wait()

    def _take_pong(self, payload: bytes) -> None:
        self.num_unanswered = 0
        self.step_age_s = self._pongs.decode(payload).step_age_s

    async def _ping(self) -> None:
        """Ask again and again; silence is counted in pings, since this event loop may be late itself."""
        while not self._dead.done():
            most = MOST_UNANSWERED if self.is_ready else MOST_UNANSWERED_AT_START
            if self.num_unanswered >= most:
                self.kill(f"it did not answer for {most * PING_INTERVAL_S:g} s")
            elif self.step_age_s > self._hang_timeout_s:
                self.kill(f"a step did not end within {self._hang_timeout_s:g} s")
            elif self.num_unanswered == SUSPICIOUS_UNANSWERED and self.is_ready:
                self.on_silence()
            self.num_unanswered += 1
            self._health.send(encode(Ping()))
            await asyncio.sleep(PING_INTERVAL_S)
