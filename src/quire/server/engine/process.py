"""The engine process, for `quire.distributed.program`: it loads a Plan, then runs it while its parent lives.

It sleeps on its socket when there is nothing to do. Between two steps it takes in what has arrived, and it sends all
that a step brought in one frame. A second thread answers pings on a second socket, so that a long step is not mistaken
for a stopped process.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import NoReturn

import msgspec

from quire.builder.open import open_plan
from quire.core import env, log
from quire.core.errors import QuireError
from quire.core.log import get_logger
from quire.core.request import Request, SampleUpdate
from quire.distributed.channel import MAX_FRAME_BYTES, Channel, ChannelError
from quire.distributed.lifeline import answer_pings, die_with_parent
from quire.engine.engine_loop import EngineLoop
from quire.engine.grammars import token_vocabulary
from quire.plan.plan import Plan
from quire.sampling.grammar.compiler import GrammarCompiler, TokenVocabulary
from quire.server.engine.messages import (
    Abort,
    Add,
    Command,
    Event,
    Failed,
    Finish,
    Look,
    Looked,
    Opened,
    Pong,
    Progress,
    Ready,
    Refused,
    Start,
    StepDone,
    encode,
)

_log = get_logger(__name__)


class EngineProcess:
    """Serves one loop over one channel.

    Args:
        channel: To the server.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._commands = msgspec.msgpack.Decoder(Command)
        self._requests = msgspec.msgpack.Decoder(Request)
        self._step_began_s: float | None = None
        self._compilers = ThreadPoolExecutor(1, "grammar")
        self._preparing: dict[str, tuple[Request, Future[None]]] = {}

    def step_age_s(self) -> float:
        """Return since when the present step runs, 0 between steps. Called from the other thread."""
        began_s = self._step_began_s
        return 0.0 if began_s is None else time.monotonic() - began_s

    def run(self) -> NoReturn:
        """Load, then serve until the server is gone.

        Raises:
            ChannelError: It is.
        """
        start = self._receive_start()
        plan = open_plan(start.model, start.build, self._report)
        directory = None if plan.directory is None else str(plan.directory)
        self._send(Opened(directory, tuple(plan.spec.eos_token_ids), plan.spec.vocab_size))
        total = len(plan.network.weights)
        self._grammars = GrammarCompiler(partial(_vocabulary, plan, start.tokenizer))
        loop = EngineLoop(
            plan,
            start.engine,
            lambda done: self._report("Loading weights", done, total),
            self._grammars,
            self._channel.wake,
        )
        self._send(Ready(loop.scheduler_config))
        while True:
            self._turn(loop)

    def _receive_start(self) -> Start:
        for payload in self._channel.receive(is_waiting=True):
            command = self._commands.decode(payload)
            if isinstance(command, Start):
                return command
        raise ChannelError("channel: expected the command to start first.")

    def _report(self, title: str, done: int, total: int) -> None:
        self._send(Progress(title, done, total))

    def _send(self, event: Event) -> None:
        self._channel.send(encode(event))

    def _turn(self, loop: EngineLoop) -> None:
        """Take in commands, sleeping until there are some if there is nothing else to do; then run one step.

        Raises:
            WorkerError: A worker process is lost, though nobody may wait for it now.
        """
        payloads = self._channel.receive(is_waiting=not loop.has_unfinished())
        loop.check_workers()
        for payload in payloads:
            self._obey(loop, self._commands.decode(payload))
        self._add_prepared(loop)
        updates: list[SampleUpdate] = []
        if loop.has_unfinished():
            self._step_began_s = time.monotonic()
            updates = loop.step()
            self._step_began_s = None
        self._send_updates(loop, updates)

    def _obey(self, loop: EngineLoop, command: Command) -> None:
        if isinstance(command, Add):
            self._add(loop, command)
        elif isinstance(command, Abort):
            self._preparing.pop(command.request_id, None)
            loop.abort(command.request_id)
        elif isinstance(command, Finish):
            loop.finish(command.request_id, command.index, command.reason, command.stop_reason)
        elif isinstance(command, Look):
            self._send(Looked(loop.scheduler.picture()))
        else:
            raise ChannelError("channel: expected no second command to start.")

    def _add(self, loop: EngineLoop, command: Add) -> None:
        """Queue a request, one with a grammar once another thread has compiled it."""
        with self._refusing(command.request_id):
            request = self._requests.decode(command.request)
            outputs = request.params.structured_outputs
            if outputs is None:
                loop.add(request)
                return
            future = self._compilers.submit(self._grammars.prepare, outputs)
            self._preparing[request.request_id] = request, future
            future.add_done_callback(lambda _: self._channel.wake())

    def _add_prepared(self, loop: EngineLoop) -> None:
        """Queue the requests whose grammars are compiled by now."""
        for request_id in [request_id for request_id, (_, future) in self._preparing.items() if future.done()]:
            request, future = self._preparing.pop(request_id)
            with self._refusing(request_id):
                future.result()
                loop.add(request)

    @contextmanager
    def _refusing(self, request_id: str) -> Iterator[None]:
        """Whatever is wrong with a request stays with it."""
        try:
            yield
        except QuireError as error:
            self._send(Refused(request_id, str(error)))
        except Exception as error:
            _log.exception("request %s could not be added", request_id)
            self._send(Refused(request_id, f"The engine could not take it in ({type(error).__name__})."))

    def _send_updates(self, loop: EngineLoop, updates: Sequence[SampleUpdate]) -> None:
        """Send news in one frame, in several if too large; a sample whose own are too large ends with an error."""
        payload = encode(StepDone(tuple(updates), loop.metrics()))
        if len(payload) <= MAX_FRAME_BYTES:
            self._channel.send(payload)
        elif len(updates) > 1:
            middle = len(updates) // 2
            self._send_updates(loop, updates[:middle])
            self._send_updates(loop, updates[middle:])
        else:
            request_id, index = updates[0].request_id, updates[0].index
            reason = f"its logprobs take more than {MAX_FRAME_BYTES} bytes; ask for fewer"
            loop.finish(request_id, index, "error", reason)
            self._send_updates(loop, [SampleUpdate(request_id, index, finish_reason="error", stop_reason=reason)])


def _vocabulary(plan: Plan, tokenizer: str | None) -> TokenVocabulary:
    """Return what grammars need of the model's tokenizer, which is read for that alone."""
    from quire.engine.model_text import load_model_text  # late: most servers never see a grammar

    text = load_model_text(plan.directory, plan.spec.eos_token_ids, tokenizer)
    assert text.tokenizer is not None, "the server admits no structured outputs without a tokenizer"
    return token_vocabulary(text.tokenizer, plan.spec.vocab_size, text.eos_token_ids)


def main(command_fd: str, health_fd: str) -> int:
    """Serve; returns the exit code: 0 when the server went away, 1 when loading or the loop failed."""
    die_with_parent()
    log.configure()
    with Channel(socket.socket(fileno=int(command_fd))) as channel:
        process = EngineProcess(channel)
        answer_pings(Channel(socket.socket(fileno=int(health_fd))), lambda: encode(Pong(process.step_age_s())))
        try:
            env.check_environment()
            process.run()
        except ChannelError as error:
            _log.debug("the engine process ends: %s", error)
            return 0
        except Exception as error:
            is_ours = isinstance(error, QuireError)
            if not is_ours:
                _log.exception("the engine process fails")
            with suppress(ChannelError):  # nobody is left to be told
                channel.send(encode(Failed(type(error).__name__, str(error) if is_ours else "")))
            return 1
