"""`measure`: sends each request when it is due, whatever became of those before, and notes when tokens come."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import msgspec

from quire.cli.load.http_client import BrokenAnswer, HttpClient
from quire.cli.load.settings import LoadConfig
from quire.cli.load.workload import Texts
from quire.core.errors import ConfigError
from quire.simulation.load import PlannedRequest, plan_load

_PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
_PROBE_WORDS = (8, 72)  # far enough apart for a slope, short enough for any model
_LEAD_S = 0.1  # between planning and the first request


@dataclass(slots=True)
class RequestRecord:
    """What became of a request. Times are in seconds from the start of the load.

    Attributes:
        planned: When it was due and how long it was to be.
        sent_s: When it was sent. Without a limit of concurrency, what it is late is the generator's own fault.
        first_s: When its first token came, None before.
        last_s: When its last one came.
        end_s: When its answer ended.
        gaps_s: Between two events with tokens.
        num_prompt_tokens: As the server counted.
        num_output_tokens: Likewise; the number of events with tokens if it does not.
        error: "429" or another status, "connect", "timeout", "cut", "error_frame", "no_tokens"; None if all is well.
    """

    planned: PlannedRequest
    sent_s: float = 0.0
    first_s: float | None = None
    last_s: float = 0.0
    end_s: float = 0.0
    gaps_s: list[float] = field(default_factory=list)
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """A load, and what it cost the generator.

    Attributes:
        model: Name of the model.
        records: In order of arrival.
        cpu_share: Processor time of this process by wall time; near 1 the generator was the limit.
        lag_s: How late each request was started.
    """

    model: str
    records: list[RequestRecord]
    cpu_share: float
    lag_s: list[float]


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: object = None


class _Model(msgspec.Struct):
    id: str
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_Model]


_CHUNKS = msgspec.json.Decoder(_Chunk)


async def measure(base_url: str, config: LoadConfig) -> Measured:
    """Put a load on a server and return what came of it.

    Args:
        base_url: Where it is.
        config: The load.

    Raises:
        ConfigError: The server cannot be reached, refuses the key, or does not serve the model.
    """
    client = HttpClient(base_url, config.api_key)
    try:
        model = await _find_model(client, base_url, config)
        texts = Texts(config.seed)
        await _calibrate(client, model.id, config, texts)
        planned = plan_load(config, model.max_model_len)
        requests = []
        for item in planned:
            text = texts.of_tokens(item.num_prompt_tokens)
            requests.append((item, _compose(client, model.id, config, text, item.num_output_tokens)))
        return await _Load(client, config).run(model.id, requests)
    finally:
        client.close()


async def _find_model(client: HttpClient, base_url: str, config: LoadConfig) -> _Model:
    try:
        status, body = await client.send(client.compose("GET", "/v1/models"))
    except (OSError, BrokenAnswer) as error:
        raise ConfigError(f"base_url: expected a server at {base_url}, got: {error}.") from None
    if status != 200:
        raise ConfigError(f"base_url: expected a list of models from {base_url}, got status {status}.")
    try:
        models = msgspec.json.decode(body, type=_Models).data
    except msgspec.DecodeError:
        raise ConfigError(f"base_url: expected OpenAI's API at {base_url}, got another.") from None
    named = {model.id: model for model in models}
    if config.model is None and models:
        return models[0]
    if config.model not in named:
        raise ConfigError(f"model: expected one of {', '.join(named) or '(none)'}, got {config.model!r}.")
    return named[config.model]


async def _calibrate(client: HttpClient, model: str, config: LoadConfig, texts: Texts) -> None:
    """Ask for one token after two texts, and learn how many tokens their words have; it warms the server, too."""
    counted = []
    for num_words in _PROBE_WORDS:
        record = RequestRecord(PlannedRequest(0.0, 0, 1))
        data = _compose(client, model, config, texts.of_words(num_words), 1)
        await asyncio.wait_for(_exchange(client, data, record, time.perf_counter()), config.timeout_s)
        if record.error is not None:
            raise ConfigError(f"base_url: expected an answer to a first request, got: {record.error}.")
        counted.append((num_words, record.num_prompt_tokens))
    if all(tokens for _, tokens in counted):
        texts.learn(*counted)


def _compose(client: HttpClient, model: str, config: LoadConfig, text: str, num_tokens: int) -> bytes:
    body: dict[str, object] = {
        "model": model,
        "max_tokens": num_tokens,
        "temperature": config.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    body |= {"prompt": text} if config.api == "completions" else {"messages": [{"role": "user", "content": text}]}
    if config.ignore_eos:
        body["ignore_eos"] = True
    return client.compose("POST", _PATHS[config.api], msgspec.json.encode(body))


async def _exchange(client: HttpClient, data: bytes, record: RequestRecord, start_s: float) -> None:
    """Send a request and fill in its record."""
    is_done = False

    def take(event: bytes) -> None:
        nonlocal is_done
        now_s = time.perf_counter() - start_s
        if event == b"[DONE]":
            is_done = True
            return
        chunk = _CHUNKS.decode(event)
        if chunk.error is not None:
            record.error = "error_frame"
        if chunk.usage is not None:
            record.num_prompt_tokens = chunk.usage.prompt_tokens
            record.num_output_tokens = chunk.usage.completion_tokens
        if any(_has_text(choice) for choice in chunk.choices):
            _note_tokens(record, now_s)

    record.sent_s = time.perf_counter() - start_s
    try:
        status, _ = await client.send(data, take)
    except OSError:
        record.error = "connect"
    except (BrokenAnswer, msgspec.DecodeError):
        record.error = "cut"
    else:
        if status != 200:
            record.error = str(status)
        elif not is_done:
            record.error = record.error or "cut"
        elif record.first_s is None and record.num_output_tokens == 0:
            record.error = record.error or "no_tokens"
    record.end_s = time.perf_counter() - start_s
    if record.error is None and record.first_s is None:  # tokens without text, all at the end
        record.first_s = record.last_s = record.end_s
    record.num_output_tokens = record.num_output_tokens or len(record.gaps_s) + (record.first_s is not None)


def _has_text(choice: _Choice) -> bool:
    delta = choice.delta
    return bool(choice.text or (delta and (delta.content or delta.reasoning_content)))


def _note_tokens(record: RequestRecord, now_s: float) -> None:
    if record.first_s is None:
        record.first_s = now_s
    else:
        record.gaps_s.append(now_s - record.last_s)
    record.last_s = now_s


class _Load:
    """Starts requests by the clock."""

    def __init__(self, client: HttpClient, config: LoadConfig) -> None:
        self._client = client
        self._timeout_s = config.timeout_s
        self._seats = asyncio.Semaphore(config.max_concurrency) if config.max_concurrency else None
        self._start_s = 0.0

    async def run(self, model: str, requests: list[tuple[PlannedRequest, bytes]]) -> Measured:
        """Send all requests and wait for all answers."""
        records = [RequestRecord(planned) for planned, _ in requests]
        lag_s, tasks = [], []
        self._start_s = time.perf_counter() + _LEAD_S
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        for record, (planned, data) in zip(records, requests, strict=True):
            due_s = self._start_s + planned.due_s
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))  # at 0 others have their turn, too
            lag_s.append(max(0.0, time.perf_counter() - due_s))
            tasks.append(asyncio.create_task(self._one(record, data)))
        await asyncio.gather(*tasks)
        share = (time.process_time() - cpu_s) / (time.perf_counter() - wall_s)
        return Measured(model, records, share, lag_s)

    async def _one(self, record: RequestRecord, data: bytes) -> None:
        if self._seats is not None:
            await self._seats.acquire()
        try:
            async with asyncio.timeout(self._timeout_s):
                await _exchange(self._client, data, record, self._start_s)
        except TimeoutError:
            record.error = "timeout"
            record.end_s = time.perf_counter() - self._start_s
        finally:
            if self._seats is not None:
                self._seats.release()
