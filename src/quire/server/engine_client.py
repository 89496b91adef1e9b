"""What routes ask of an engine: the one contract between HTTP and the engine process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from quire.core.errors import QuireError
from quire.core.request import CachePicture, RequestOutput
from quire.core.sampling_params import SamplingParams
from quire.tokenizer.tokenizer import Tokenizer


class OverloadedError(QuireError):
    """The queue is full; nothing was taken in.

    Attributes:
        retry_after_s: When to come back, an estimate from the present rate.
    """

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineDeadError(QuireError):
    """The engine process ended or does not answer; what was running there is lost."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What is served, as far as routes must know it.

    Attributes:
        name: The id under `/v1/models`, first of the accepted names.
        aliases: Other names that requests may use.
        tokenizer: None if the engine runs on ids alone.
        chat_template: Jinja text that replaces the model's own, or None.
        default_params: What generation_config.json asks for.
        max_model_len: Longest prompt plus output, in tokens.
        vocab_size: Ids are below it.
        created_s: Unix time in seconds when it was loaded.
    """

    name: str
    aliases: tuple[str, ...]
    tokenizer: Tokenizer | None
    chat_template: str | None
    default_params: SamplingParams
    max_model_len: int
    vocab_size: int
    created_s: int


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether the engine takes requests and its loop moves.

    Attributes:
        is_ready: Both; of several engines, those of one of them.
        reason: A sentence for `/health/ready`.
        engines: The same of each engine, if there are several.
    """

    is_ready: bool
    reason: str
    engines: tuple[Readiness, ...] = ()


class EngineClient(Protocol):
    """An engine, or several of one model, seen from an event loop. Implementations never block it."""

    @property
    def served(self) -> ServedModel:
        """What it serves."""
        ...

    @property
    def num_engines(self) -> int:
        """How many engines there are."""
        ...

    def readiness(self) -> Readiness:
        """Return whether requests would be served now."""
        ...

    def check_room(self) -> None:
        """Find out whether any request could be taken in, before one is read.

        Raises:
            OverloadedError: The queue is full.
        """
        ...

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return a text's ids; long texts are encoded beside the event loop."""
        ...

    def generate(
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

        Raises:
            RequestError: It is not valid (from the first `anext`).
            OverloadedError: The queue is full (likewise).
            EngineDeadError: At any time.
        """
        ...

    async def embed(
        self, request_id: str, prompt_token_ids: Sequence[int], pooling: str, *, cache_salt: str = ""
    ) -> list[float]:
        """Return the pooled last hidden state of a prompt, [hidden_size], unit length.

        Args:
            request_id: Unique among unfinished requests.
            prompt_token_ids: Ids.
            pooling: "mean" or "last".
            cache_salt: Cached prefixes are shared with requests of the same salt.

        Raises:
            RequestError: It is not valid.
            OverloadedError: The queue is full.
            EngineDeadError: At any time.
        """
        ...

    def metrics(self, engine: int) -> dict[str, float]:
        """Return the latest counters and gauges of an engine by the names that `LLMEngine.metrics` uses."""
        ...

    async def picture(self, engine: int) -> CachePicture:
        """Return what the KV cache of an engine holds between two steps.

        Raises:
            EngineDeadError: At any time.
        """
        ...
