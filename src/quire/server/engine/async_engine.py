"""`AsyncEngine`: an engine in a process of its own, for one event loop. Text is made here, integers there.

A request is checked and counted here, then queued there; what a step brings comes back in one frame and wakes the
readers. When the process dies every reader gets one error, and another process is started.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from quire.core import errors
from quire.core.config import BuildConfig, EngineConfig, SchedulerConfig
from quire.core.errors import CapacityError, QuireError, RequestError
from quire.core.log import get_logger
from quire.core.progress import OnProgress
from quire.core.request import CachePicture, Request, RequestOutput
from quire.core.sampling_params import SamplingParams
from quire.core.server_config import ServerConfig
from quire.engine.admission import Admission
from quire.engine.model_text import ModelText, load_model_text
from quire.engine.output import OutputProcessor
from quire.scheduler.capacity import check_fits
from quire.server.engine.child import PING_INTERVAL_S, EngineChild
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
    Progress,
    Ready,
    Refused,
    Start,
    StepDone,
    encode,
)
from quire.server.engine.metrics import ServerMetrics
from quire.server.engine.request_stream import RequestStream
from quire.server.engine.settings import embedding_params, for_serving
from quire.server.engine.viewers import Viewers
from quire.server.engine.waiting_room import WaitingRoom
from quire.server.engine_client import EngineDeadError, OverloadedError, Readiness, ServedModel

T = TypeVar("T")
_log = get_logger(__name__)

# A text or prompt of this length takes about a millisecond; longer ones are looked at beside the event loop.
_LONG_TEXT_CHARS = 1024
_LONG_PROMPT_TOKENS = 8192
_NUM_THREADS = 2
_SILENCE_S = 1.5
_BACK_OFF_S = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
_STANDBY_DELAY_S = 1.0  # the first requests come first
_LIVED_S = 2.0  # a process that was ready for less has failed to start


class AsyncEngine:
    """Implements `EngineClient`. `start` it, `close` it; in between it may die and come back.

    Args:
        model: A model directory, an engine directory, a hub id, or "quire-tiny".
        build: How to build it.
        engine: How to run it.
        server: Limits and timeouts.
        tokenizer: Directory of another tokenizer.
        skip_tokenizer_init: Take and give token ids only.
        chat_template: Jinja text that replaces the model's own.

    Attributes:
        prometheus: What `/metrics` shows.
        dead: Done, with the reason, when the engine process has died and `server.restart` is off.
    """

    prometheus: ServerMetrics
    dead: asyncio.Future[str]

    def __init__(
        self,
        model: str,
        build: BuildConfig | None = None,
        engine: EngineConfig | None = None,
        server: ServerConfig | None = None,
        tokenizer: str | None = None,
        *,
        skip_tokenizer_init: bool = False,
        chat_template: str | None = None,
    ) -> None:
        self._config = server or ServerConfig()
        self._command = Start(model, build or BuildConfig(), for_serving(engine or EngineConfig()), tokenizer)
        self._skip_tokenizer_init = skip_tokenizer_init
        self._chat_template = chat_template
        self._executor = ThreadPoolExecutor(_NUM_THREADS, "text")
        self._checks = ThreadPoolExecutor(1, "grammar")  # a check may take a second, and they queue for one process
        self._streams: dict[str, RequestStream] = {}
        self._served: ServedModel | None = None
        self._child: EngineChild | None = None
        self._successor: EngineChild | None = None
        self._failed: Failed | None = None
        self._ready_time_s: float | None = None
        self._loading = "it starts"
        self._metrics: dict[str, float] = {}
        self._viewers = Viewers(lambda: self._send(Look()))
        self._is_draining = self._is_closed = False

    # ------------------------------------------------------------------------------------------------- life and death

    async def start(self, on_progress: OnProgress | None = None) -> None:
        """Start the engine process and wait until it takes requests.

        Args:
            on_progress: Told how far loading is.

        Raises:
            ConfigError: A setting cannot be honoured.
            PlanError: The model is incomplete or damaged.
            CapacityError: It does not fit into memory.
            EngineDeadError: The process ended for another reason.
        """
        self._on_progress = on_progress
        self.dead = asyncio.get_running_loop().create_future()
        self._idle = asyncio.Event()
        self._idle.set()
        self._first_ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._supervisor = asyncio.create_task(self._supervise())
        try:
            await asyncio.shield(self._first_ready)
        except BaseException:
            await self.close()
            raise

    async def drain(self, timeout_s: float) -> bool:
        """Take in no more requests and wait for those that run.

        Args:
            timeout_s: Most seconds to wait.

        Returns:
            Whether all have ended.
        """
        self._is_draining = True
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        return self._idle.is_set()

    async def close(self) -> None:
        """End all that runs and the engine process; return when it is gone."""
        self._is_closed = True
        self._fail_streams(EngineDeadError("The server shuts down."))
        for child in (self._child, self._successor):
            if child is not None:
                await child.stop()
        self._supervisor.cancel()
        with suppress(asyncio.CancelledError):
            await self._supervisor
        for executor in (self._executor, self._checks):
            executor.shutdown(wait=False, cancel_futures=True)
        if self._served is not None:
            self._admission.close()

    def readiness(self) -> Readiness:
        """Return whether requests would be served now."""
        child = self._child
        if self._is_draining or self._is_closed:
            return Readiness(False, "The server shuts down.")
        if child is None or not child.is_ready:
            return Readiness(False, f"The engine process is not ready: {self._loading}.")
        if (silence_s := child.num_unanswered * PING_INTERVAL_S) > _SILENCE_S:
            return Readiness(False, f"The engine process has not answered for {silence_s:g} s.")
        if child.step_age_s > self._config.ready_timeout_s:
            return Readiness(False, f"The engine has not finished a step for {child.step_age_s:.1f} s.")
        return Readiness(True, "The engine takes requests.")

    async def _supervise(self) -> None:
        """Start process after process, each when the one before is dead."""
        num_failures = 0
        while True:
            lived_s = await self._live()
            if not self._first_ready.done():
                self._first_ready.set_exception(self._start_error())
            if self._is_closed or self._first_ready.exception() is not None:
                return
            self.prometheus.note_death()
            if not self._config.restart:
                self.dead.set_result(self._loading)
                return
            num_failures = 0 if lived_s > _LIVED_S else num_failures + 1
            delay_s = _BACK_OFF_S[min(num_failures, len(_BACK_OFF_S) - 1)]
            _log.error("the engine process died: %s; it starts again in %g s", self._loading, delay_s)
            await asyncio.sleep(delay_s)

    async def _live(self) -> float:
        """See one process through from start to death; returns for how many seconds it was ready."""
        self._failed = self._ready_time_s = None
        child, self._successor = self._successor or await self._spawn(), None
        self._child = child
        child.on_silence = self._raise_successor
        child.send(self._command)
        reason = await child.wait_dead()
        self._child = None
        self._loading = self._failed.message or self._failed.kind if self._failed else reason
        self._metrics = {}
        self._fail_streams(EngineDeadError("The engine process ended; what was running in it is lost."))
        return 0.0 if self._ready_time_s is None else time.monotonic() - self._ready_time_s

    async def _spawn(self) -> EngineChild:
        return await EngineChild.spawn(self._take, self._config.hang_timeout_s)

    def _raise_successor(self) -> None:
        """Start the process that is to follow: most of a start is reading libraries, which it does meanwhile."""
        if self._config.restart and self._successor is None and not self._is_closed:
            self._raising = asyncio.create_task(self._keep_successor())

    async def _keep_successor(self) -> None:
        child = await self._spawn()
        if self._is_closed or self._successor is not None:
            await child.stop()
        else:
            self._successor = child

    def _start_error(self) -> QuireError:
        """Return why the first start failed, as the error that the process raised, if it is one of ours."""
        kind = getattr(errors, self._failed.kind, None) if self._failed else None
        if self._failed and isinstance(kind, type) and issubclass(kind, QuireError):
            return kind(self._failed.message)
        return EngineDeadError(f"engine process: expected it to start, got: {self._loading}.")

    def _fail_streams(self, error: QuireError) -> None:
        """Tell the readers whose requests are lost; what has ended but was not read yet is not."""
        self._viewers.show(None)
        for request_id, stream in self._streams.items():
            if not stream.is_over and not self._outputs.is_finished(request_id):
                self._outputs.forget(request_id)
                stream.fail(error)

    # ------------------------------------------------------------------------------------------------------- requests

    @property
    def served(self) -> ServedModel:
        """What it serves; known once `start` has returned."""
        assert self._served is not None, "the engine has not been started"
        return self._served

    def check_room(self) -> None:
        """Find out whether any request could be taken in, as `EngineClient.check_room` says."""
        self._waiting_room.check()

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return a text's ids; long texts are encoded beside the event loop.

        Raises:
            RequestError: There is no tokenizer, or the text is not valid Unicode.
        """
        tokenizer = self.served.tokenizer
        if tokenizer is None:
            raise RequestError("prompt: expected token ids, because there is no tokenizer, got text.")
        executor = self._executor if len(text) > _LONG_TEXT_CHARS else None
        return await self._run(executor, partial(tokenizer.encode, text, add_special_tokens))

    async def generate(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        prompt: str | None = None,
        priority: int = 0,
        cache_salt: str = "",
    ) -> AsyncIterator[RequestOutput]:
        """Complete a prompt; outputs follow `params.output_kind`. Leaving the iterator aborts the request.

        Args:
            request_id: Unique among unfinished requests.
            prompt_token_ids: Ids.
            params: How to sample.
            prompt: The text they came from.
            priority: Lower is served first under the "priority" policy.
            cache_salt: Cached prefixes are shared with requests of the same salt.

        Raises:
            RequestError: It is not valid (from the first `anext`).
            OverloadedError: The queue is full (likewise).
            EngineDeadError: At any time.
        """
        asked = {"prompt": prompt or None, "prompt_token_ids": prompt_token_ids}
        async with aclosing(self._complete(request_id, asked, params, priority, cache_salt)) as outputs:
            async for output in outputs:
                yield output

    async def embed(
        self, request_id: str, prompt_token_ids: Sequence[int], pooling: str, *, cache_salt: str = ""
    ) -> list[float]:
        """Return the pooled last hidden state of a prompt, as `EngineClient.embed` says.

        It is a request for one token whose prompt is computed for what comes before the logits.

        Raises:
            QuireError: As `generate`; also where the plan gives no hidden states, or the engine fails at this request.
        """
        asked = {"prompt_token_ids": prompt_token_ids}
        params = embedding_params(pooling)
        async with aclosing(self._complete(request_id, asked, params, 0, cache_salt, pooling)) as outputs:
            found = [output.embedding async for output in outputs]
        if not found or found[-1] is None:
            raise EngineDeadError("The engine failed while computing this request; the log says why.")
        return list(found[-1])

    async def _complete(
        self,
        request_id: str,
        prompt: Mapping[str, Any],
        params: SamplingParams,
        priority: int,
        cache_salt: str,
        pooling: str | None = None,
    ) -> AsyncGenerator[RequestOutput]:
        """See a request through from its admission to its last output."""
        arrival_time_s, ids = time.monotonic(), prompt["prompt_token_ids"]
        room = self._enter(request_id, ids, params)
        stream = self._streams[request_id] = RequestStream(arrival_time_s, len(ids))
        self._idle.clear()
        try:
            admit = partial(self._admission.admit, request_id, prompt, params, priority, arrival_time_s, cache_salt)
            request = await self._run(self._executor_for(ids, params), admit)
            self._queue(msgspec.structs.replace(request, pooling=pooling), stream)
            while not stream.is_over:
                await stream.wait()
                if (output := self._outputs.report(request_id)) is not None:
                    stream.is_over = output.finished
                    if output.finished:
                        self.prometheus.note_finished(stream, output)
                    yield output
        finally:
            self._leave(request_id, stream, room)

    def metrics(self) -> dict[str, float]:
        """Return the engine's latest counters and gauges by the names that `LLMEngine.metrics` uses."""
        return dict(self._metrics)

    async def picture(self) -> CachePicture:
        """Return what the KV cache holds between two steps; all who look meanwhile get the same one.

        Raises:
            EngineDeadError: There is no engine process, or it dies before it answers.
        """
        self._check_alive()
        return await self._viewers.look()

    def _enter(self, request_id: str, prompt_token_ids: Sequence[int], params: SamplingParams) -> WaitingRoom:
        """Check what is cheap to check, and count the request."""
        self._check_alive()
        if self._is_draining:
            raise OverloadedError("The server shuts down and takes no more requests.", self._config.drain_timeout_s)
        if request_id in self._streams:
            raise RequestError(f"request_id: expected one that no unfinished request has, got {request_id!r}.")
        for name in ("logprobs", "prompt_logprobs"):
            value, most = getattr(params, name), self._config.max_logprobs
            if value is not None and not 0 <= value <= most:
                raise RequestError(f"{name}: expected 0 to {most}, got {value}.")
        num_prompt = len(prompt_token_ids)
        left = max(0, self._scheduler.max_model_len - num_prompt)
        num_tokens = num_prompt + params.n * min(params.max_tokens or left, left)
        self._waiting_room.enter(request_id, params.n, num_tokens)
        return self._waiting_room

    def _queue(self, request: Request, stream: RequestStream) -> None:
        self._check_alive()
        try:
            check_fits(request, self._scheduler)
        except CapacityError as error:  # of this request, not of the model: it is for the client to change
            raise RequestError(str(error)) from None
        self._outputs.add(request)
        stream.is_over = False
        self._send(Add(request.request_id, msgspec.Raw(encode(request))))

    def _leave(self, request_id: str, stream: RequestStream, room: WaitingRoom) -> None:
        """Forget a request whose reader has gone; if it still runs, end it."""
        room.leave(request_id)
        del self._streams[request_id]
        if not stream.is_over:
            self._outputs.forget(request_id)
            self.prometheus.note_abort()
            self._send(Abort(request_id))
        if not self._streams:
            self._idle.set()

    def _check_alive(self) -> None:
        if self._is_closed or self._child is None or not self._child.is_ready:
            raise EngineDeadError(f"The engine takes no requests: {self.readiness().reason}")

    def _send(self, command: Command) -> None:
        if self._child is not None:
            self._child.send(command)

    def _executor_for(self, prompt_token_ids: Sequence[int], params: SamplingParams) -> ThreadPoolExecutor | None:
        """Return where a request is admitted; None if that takes no time."""
        if params.structured_outputs is not None:
            return self._checks
        return self._executor if len(prompt_token_ids) > _LONG_PROMPT_TOKENS else None

    async def _run(self, executor: ThreadPoolExecutor | None, work: Callable[[], T]) -> T:
        """Return what `work` does, done beside the event loop if there is an executor."""
        if executor is None:
            return work()
        return await asyncio.get_running_loop().run_in_executor(executor, work)

    # ------------------------------------------------------------------------------------- what the engine process says

    def _take(self, event: Event) -> None:
        if isinstance(event, StepDone):
            self._take_step(event)
        elif isinstance(event, Looked):
            self._viewers.show(event.picture)
        elif isinstance(event, Refused):
            if event.request_id in self._streams:
                self._outputs.forget(event.request_id)
                self._streams[event.request_id].fail(RequestError(event.message))
        elif isinstance(event, Progress):
            self._loading = f"{event.title}, {event.done} of {event.total}"
            if self._on_progress is not None:
                self._on_progress(event.title, event.done, event.total)
        elif isinstance(event, Opened):
            self._take_opened(event)
        elif isinstance(event, Ready):
            self._take_ready(event.scheduler)
        else:
            self._failed = event

    def _take_opened(self, event: Opened) -> None:
        """Read the tokenizer while the engine process reads the weights; once is enough."""
        self._vocab_size = event.vocab_size
        if self._served is not None:
            return
        directory = None if event.directory is None else Path(event.directory)
        try:
            self._text: ModelText = load_model_text(
                directory, event.eos_token_ids, self._command.tokenizer, skip_tokenizer_init=self._skip_tokenizer_init
            )
        except QuireError as error:
            self._first_ready.set_exception(error)

    def _take_ready(self, scheduler: SchedulerConfig) -> None:
        if self._first_ready.done() and self._first_ready.exception() is not None:
            return
        text, length = self._text, scheduler.max_model_len
        self._scheduler = scheduler
        self._waiting_room = WaitingRoom(self._config, scheduler)
        self._admission = Admission(
            text.tokenizer, self._vocab_size, length, text.eos_token_ids, self._command.engine.seed
        )
        if self._served is None:
            self._outputs = OutputProcessor(text.tokenizer)
            name, *aliases = self._config.model_names or (self._command.model,)
            self._served = ServedModel(
                name,
                tuple(aliases),
                text.tokenizer,
                self._chat_template,
                text.default_params,
                length,
                self._vocab_size,
                int(time.time()),
            )
            self.prometheus = ServerMetrics(name, self._config.metrics_compat)
        assert self._child is not None
        self._child.is_ready = True
        self._ready_time_s = time.monotonic()
        if self._config.standby:
            asyncio.get_running_loop().call_later(_STANDBY_DELAY_S, self._raise_successor)
        if not self._first_ready.done():
            self._first_ready.set_result(None)

    def _take_step(self, event: StepDone) -> None:
        """Make text of a step's tokens, end what ends by its text, and wake the readers."""
        self._metrics = event.metrics
        self.prometheus.note_step(event.metrics)
        for update in event.updates:
            if (stream := self._streams.get(update.request_id)) is None:
                continue
            if update.scheduled_time_s is not None:
                self._waiting_room.seat(update.request_id)
            if update.new_token_ids:
                self.prometheus.note_tokens(stream, update)
        touched, ended = self._outputs.apply(event.updates)
        for sample in ended:
            self._send(Finish(*sample))
        for request_id in touched:
            self._streams[request_id].notify()
