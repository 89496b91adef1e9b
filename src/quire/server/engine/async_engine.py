"""`AsyncEngine`: engines in processes of their own, for one event loop. Text is made here, integers there.

A request is checked and counted here, then sent to one of them; what a step brings comes back in one frame and wakes
the readers. When a process dies the readers of what it held get one error, and another process is started.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from quire.core.config import BuildConfig, EngineConfig
from quire.core.errors import CapacityError, QuireError, RequestError
from quire.core.progress import OnProgress
from quire.core.request import CachePicture, Request, RequestOutput
from quire.core.sampling_params import SamplingParams
from quire.core.server_config import ServerConfig
from quire.engine.admission import Admission
from quire.engine.model_text import ModelText, load_model_text
from quire.engine.output import OutputProcessor
from quire.scheduler.capacity import check_fits
from quire.server.engine.child import EngineChild
from quire.server.engine.messages import Abort, Add, Finish, Opened, Progress, Refused, Start, StepDone, encode
from quire.server.engine.metrics import EngineMetrics, render
from quire.server.engine.places import Place, divide_machine, this_machine
from quire.server.engine.replica import News, Replica
from quire.server.engine.request_stream import RequestStream
from quire.server.engine.router import Router, prefix_keys
from quire.server.engine.settings import embedding_params, for_serving
from quire.server.engine.waiting_room import WaitingRoom
from quire.server.engine_client import EngineDeadError, OverloadedError, Readiness, ServedModel

T = TypeVar("T")

# A text or prompt of this length takes about a millisecond; longer ones are looked at beside the event loop.
_LONG_TEXT_CHARS = 1024
_LONG_PROMPT_TOKENS = 8192
_NUM_THREADS = 2


class AsyncEngine:
    """Implements `EngineClient` over one engine or several. `start` it, `close` it; in between they may die and return.

    Args:
        model: A model directory, an engine directory, a hub id, or "quire-tiny".
        build: How to build it.
        engine: How to run it.
        server: Limits and timeouts.
        tokenizer: Directory of another tokenizer.
        skip_tokenizer_init: Take and give token ids only.
        chat_template: Jinja text that replaces the model's own.

    Attributes:
        replicas: The engines, once `start` was called.
        dead: Done, with the reason, when the last engine process has died and `server.restart` is off.
        child_class: What an engine process is.

    Raises:
        ConfigError: There are fewer devices than engines.
    """

    replicas: tuple[Replica, ...]
    dead: asyncio.Future[str]
    child_class = EngineChild

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
        self._places = divide_machine(self._config.replicas, self._command.engine, *this_machine())
        self._names = self._config.model_names or (model,)
        self._skip_tokenizer_init = skip_tokenizer_init
        self._chat_template = chat_template
        self._executor = ThreadPoolExecutor(_NUM_THREADS, "text")
        self._checks = ThreadPoolExecutor(1, "grammar")  # a check may take a second, and they queue for one process
        self._streams: dict[str, RequestStream] = {}
        self._text: ModelText | None = None
        self._served: ServedModel | None = None
        self._is_draining = self._is_closed = False

    # ------------------------------------------------------------------------------------------------- life and death

    async def start(self, on_progress: OnProgress | None = None) -> None:
        """Start the engine processes and wait until all of them take requests.

        Args:
            on_progress: Told how far loading is.

        Raises:
            ConfigError: A setting cannot be honoured.
            PlanError: The model is incomplete or damaged.
            CapacityError: It does not fit into memory.
            EngineDeadError: A process ended for another reason.
        """
        self._on_progress = on_progress
        self.dead = asyncio.get_running_loop().create_future()
        self._idle = asyncio.Event()
        self._idle.set()
        self._router = Router(self._command.engine.block_size)
        self.replicas = tuple(self._make_replica(index, place) for index, place in enumerate(self._places))
        self._supervisor = asyncio.create_task(self._supervise())
        try:
            await asyncio.shield(asyncio.gather(*(replica.started for replica in self.replicas)))
            self._open()
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
        """End all that runs and the engine processes; return when they are gone."""
        self._is_closed = True
        self._fail_streams(self._streams, EngineDeadError("The server shuts down."))
        await asyncio.gather(*(replica.close() for replica in self.replicas))
        self._supervisor.cancel()
        with suppress(asyncio.CancelledError):
            await self._supervisor
        for executor in (self._executor, self._checks):
            executor.shutdown(wait=False, cancel_futures=True)
        if self._served is not None:
            self._admission.close()

    def readiness(self) -> Readiness:
        """Return whether requests would be served now: by one engine, if there are several."""
        if self._is_draining or self._is_closed:
            return Readiness(False, "The server shuts down.")
        engines = tuple(replica.readiness() for replica in self.replicas)
        if len(engines) == 1:
            return engines[0]
        num_ready = sum(engine.is_ready for engine in engines)
        return Readiness(num_ready > 0, f"{num_ready} of {len(engines)} engines take requests.", engines)

    async def _supervise(self) -> None:
        """See all engines through; without one that is started again, the server is dead."""
        *_, reason = await asyncio.gather(*(replica.run() for replica in self.replicas))
        if self._served is not None and not self._is_closed:
            self.dead.set_result(reason)

    def _make_replica(self, index: int, place: Place) -> Replica:
        command = msgspec.structs.replace(self._command, engine=place.adapt(self._command.engine))
        prometheus = EngineMetrics(self._names[0], index)
        made = Replica(index, command, self._config, place, prometheus, self._take, self._take_death)
        made.child_class = self.child_class
        return made

    def _open(self) -> None:
        """Know what is served, now that all engines have said it."""
        assert self._text is not None, "a process that is ready has opened its plan"
        text, schedulers = self._text, [replica.scheduler for replica in self.replicas]
        length = min(scheduler.max_model_len for scheduler in schedulers)
        self._waiting_room = WaitingRoom(self._config, schedulers)
        self._outputs = OutputProcessor(text.tokenizer)
        self._admission = Admission(
            text.tokenizer, self._vocab_size, length, text.eos_token_ids, self._command.engine.seed
        )
        name, *aliases = self._names
        created_s = int(time.time())
        self._served = ServedModel(
            name, tuple(aliases), text.tokenizer, self._chat_template, text.default_params, length, self._vocab_size,
            created_s,
        )  # fmt: skip

    def _fail_streams(self, request_ids: Iterable[str], error: QuireError) -> None:
        """Tell the readers whose requests are lost; what has ended but was not read yet is not."""
        for request_id in request_ids:
            stream = self._streams[request_id]
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
        self._enter(request_id, ids, params)
        stream = self._streams[request_id] = RequestStream(arrival_time_s, len(ids))
        self._idle.clear()
        try:
            admit = partial(self._admit, request_id, prompt, params, priority, arrival_time_s, cache_salt)
            request, keys = await self._run(self._executor_for(ids, params), admit)
            self._queue(msgspec.structs.replace(request, pooling=pooling), keys, stream)
            while not stream.is_over:
                await stream.wait()
                if (output := self._outputs.report(request_id)) is not None:
                    stream.is_over = output.finished
                    if output.finished:
                        self._replica(stream).prometheus.note_finished(stream, output)
                    yield output
        finally:
            self._leave(request_id, stream)

    @property
    def num_engines(self) -> int:
        """How many engines there are."""
        return len(self.replicas)

    def metrics(self, engine: int = 0) -> dict[str, float]:
        """Return an engine's latest counters and gauges by the names that `LLMEngine.metrics` uses."""
        return dict(self.replicas[engine].metrics)

    def metrics_text(self) -> bytes:
        """Return what `/metrics` shows of all engines."""
        return render([replica.prometheus for replica in self.replicas], self._config.metrics_compat)

    async def picture(self, engine: int = 0) -> CachePicture:
        """Return what the KV cache of an engine holds between two steps; all who look meanwhile get the same one.

        Raises:
            EngineDeadError: There is no engine process, or it dies before it answers.
        """
        return await self.replicas[engine].picture()

    def _enter(self, request_id: str, prompt_token_ids: Sequence[int], params: SamplingParams) -> None:
        """Check what is cheap to check, and count the request."""
        self._alive()
        if self._is_draining:
            raise OverloadedError("The server shuts down and takes no more requests.", self._config.drain_timeout_s)
        if request_id in self._streams:
            raise RequestError(f"request_id: expected one that no unfinished request has, got {request_id!r}.")
        for name in ("logprobs", "prompt_logprobs"):
            value, most = getattr(params, name), self._config.max_logprobs
            if value is not None and not 0 <= value <= most:
                raise RequestError(f"{name}: expected 0 to {most}, got {value}.")
        num_prompt = len(prompt_token_ids)
        left = max(0, self.served.max_model_len - num_prompt)
        num_tokens = num_prompt + params.n * min(params.max_tokens or left, left)
        self._waiting_room.enter(request_id, params.n, num_tokens)

    def _admit(self, *asked: Any) -> tuple[Request, list[int]]:
        """Return the request, and what its prompt's prefixes are known by where several engines may have them."""
        request = self._admission.admit(*asked)
        if self.num_engines == 1:
            return request, []
        return request, prefix_keys(request.prompt_token_ids, self._command.engine.block_size, request.cache_salt)

    def _queue(self, request: Request, keys: Sequence[int], stream: RequestStream) -> None:
        """Send a request to the engine that will be done with it first."""
        chosen = self._router.choose(request, keys, self._alive())
        replica = self.replicas[chosen]
        try:
            check_fits(request, replica.scheduler)
        except CapacityError as error:  # of this request, not of the model: it is for the client to change
            raise RequestError(str(error)) from None
        self._outputs.add(request)
        stream.engine, stream.is_over = chosen, False
        replica.send(Add(request.request_id, msgspec.Raw(encode(request))))

    def _leave(self, request_id: str, stream: RequestStream) -> None:
        """Forget a request whose reader has gone; if it still runs, end it."""
        self._waiting_room.leave(request_id)
        self._router.end(request_id)
        del self._streams[request_id]
        if not stream.is_over:
            self._outputs.forget(request_id)
            replica = self._replica(stream)
            replica.prometheus.note_abort()
            replica.send(Abort(request_id))
        if not self._streams:
            self._idle.set()

    def _alive(self) -> list[int]:
        """Return the engines that take requests: those that answer, and none that is stuck if there is another.

        Raises:
            EngineDeadError: There is none.
        """
        alive = [replica.index for replica in self.replicas if replica.is_alive]
        if self._is_closed or not alive:
            raise EngineDeadError(f"The engine takes no requests: {self.readiness().reason}")
        return [index for index in alive if self.replicas[index].readiness().is_ready] or alive

    def _replica(self, stream: RequestStream) -> Replica:
        """Return the engine that has a request."""
        assert stream.engine is not None, "a request that is not over was sent to an engine"
        return self.replicas[stream.engine]

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

    def _take(self, replica: Replica, news: News) -> None:
        if isinstance(news, StepDone):
            self._take_step(replica, news)
        elif isinstance(news, Refused):
            if news.request_id in self._streams:
                self._outputs.forget(news.request_id)
                self._streams[news.request_id].fail(RequestError(news.message))
        elif isinstance(news, Progress):
            if self._on_progress is not None and replica.index == 0:  # the others do the same at the same time
                self._on_progress(news.title, news.done, news.total)
        elif isinstance(news, Opened):
            self._take_opened(replica, news)
        else:
            self._router.open(replica.index, news.scheduler.num_blocks)
            self._resize()

    def _take_opened(self, replica: Replica, event: Opened) -> None:
        """Read the tokenizer while engine processes read the weights; once is enough."""
        if self._text is not None:
            return
        self._vocab_size = event.vocab_size
        directory = None if event.directory is None else Path(event.directory)
        try:
            self._text = load_model_text(
                directory, event.eos_token_ids, self._command.tokenizer, skip_tokenizer_init=self._skip_tokenizer_init
            )
        except QuireError as error:
            replica.fail(error)

    def _take_step(self, replica: Replica, event: StepDone) -> None:
        """Make text of a step's tokens, end what ends by its text, and wake the readers."""
        for update in event.updates:
            if (stream := self._streams.get(update.request_id)) is None:
                continue
            if update.scheduled_time_s is not None:
                self._waiting_room.seat(update.request_id)
            if update.new_token_ids:
                replica.prometheus.note_tokens(stream, update)
        touched, ended = self._outputs.apply(event.updates)
        for sample in ended:
            replica.send(Finish(*sample))
        for request_id in touched:
            self._streams[request_id].notify()

    def _take_death(self, replica: Replica) -> None:
        lost = [request_id for request_id, stream in self._streams.items() if stream.engine == replica.index]
        self._fail_streams(lost, EngineDeadError("The engine process ended; what was running in it is lost."))
        self._resize()

    def _resize(self) -> None:
        """Let as much wait as the engines that live can be asked to hold."""
        if self._served is not None:
            self._waiting_room.resize([replica.scheduler for replica in self.replicas if replica.is_alive])
