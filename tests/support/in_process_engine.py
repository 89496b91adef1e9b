"""An `EngineClient` over an `LLMEngine` in a thread of this process: what routes need, without an engine process."""

import asyncio
import threading
import time
from contextlib import suppress

from quire.core.errors import RequestError
from quire.core.request import RequestOutput
from quire.engine.llm_engine import LLMEngine
from quire.engine.loading import LoadedEngine
from quire.server.engine_client import EngineDeadError, OverloadedError, Readiness, ServedModel


class InProcessEngine:
    """Steps an engine in a thread; `max_waiting` requests at most are unfinished."""

    def __init__(self, loaded: LoadedEngine, name: str, max_waiting: int = 256) -> None:
        self._engine: LLMEngine = loaded.engine
        self._tokenizer = loaded.tokenizer
        config = loaded.engine.scheduler_config
        self.served = ServedModel(
            name, ("alias",), loaded.tokenizer, None, loaded.default_params, config.max_model_len,
            loaded.engine.plan.spec.vocab_size, int(time.time()),
        )  # fmt: skip
        self._max_waiting = max_waiting
        self._queues: dict[str, tuple[asyncio.Queue, asyncio.AbstractEventLoop]] = {}
        self._lock = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    def readiness(self) -> Readiness:
        return Readiness(self._thread.is_alive(), "stepping")

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens)

    async def generate(self, request_id, prompt_token_ids, params, *, prompt=None, priority=0, cache_salt=""):
        if len(self._queues) >= self._max_waiting:
            raise OverloadedError("queue: expected fewer requests, got too many. Come back later.", 1.0)
        queue: asyncio.Queue[RequestOutput | None] = asyncio.Queue()
        given = {"prompt_token_ids": list(prompt_token_ids)}
        with self._lock:
            self._engine.add_request(request_id, given if prompt is None else {**given, "prompt": prompt}, params, priority)
            self._queues[request_id] = (queue, asyncio.get_running_loop())
            self._lock.notify()
        try:
            while True:
                output = await queue.get()
                if output is None:
                    raise EngineDeadError("engine: it ended.")
                yield output
                if output.finished:
                    return
        finally:
            with self._lock:
                self._queues.pop(request_id, None)
                self._engine.abort_request(request_id)

    async def embed(self, request_id, prompt_token_ids, pooling):
        raise RequestError("input: expected an engine that can embed, got another.")

    def metrics(self) -> dict[str, float]:
        with self._lock:
            return self._engine.metrics()

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            self._lock.notify()
        self._thread.join()
        self._engine.close()

    def _loop(self) -> None:
        while True:
            with self._lock:
                while not self._is_closed and not self._engine.has_unfinished_requests():
                    self._lock.wait()
                if self._is_closed:
                    return
                for output in self._engine.step():
                    self._deliver(output)
            time.sleep(0)  # lets the event loop take the lock between steps

    def _deliver(self, output: RequestOutput) -> None:
        queue, loop = self._queues.get(output.request_id, (None, None))
        if queue is not None:
            with suppress(RuntimeError):  # the loop has gone
                loop.call_soon_threadsafe(queue.put_nowait, output)
