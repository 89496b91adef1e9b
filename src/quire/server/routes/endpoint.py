"""`Endpoint`: a line of the table of routes; `Call`: what its function gets beside the body."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

from quire.core.server_config import ServerConfig
from quire.server.engine_client import EngineClient, ServedModel
from quire.server.errors import draining, invalid, no_model, wrong_method
from quire.server.http.answers import Answer
from quire.server.http.auth import cache_salt
from quire.server.http.exchange import Exchange
from quire.server.http.lifecycle import Drain
from quire.server.http.limits import Limits
from quire.server.protocol.decode import decode
from quire.server.tracing import RequestTraces
from quire.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Context:
    """What all routes share.

    Attributes:
        engine: What is served.
        config: How.
        limits: Of bodies and connections.
        drain: Which requests are running.
        metrics_text: Returns the text of `/metrics`.
        traces: What makes traces of requests, None if nobody asked for them.
    """

    engine: EngineClient
    config: ServerConfig
    limits: Limits
    drain: Drain
    metrics_text: Callable[[], bytes]
    traces: RequestTraces | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """One request.

    Attributes:
        context: What all routes share.
        exchange: Its way through the server.
        warnings: What of its body was ignored.
    """

    context: Context
    exchange: Exchange
    warnings: list[str]

    @property
    def served(self) -> ServedModel:
        """The model."""
        return self.context.engine.served

    def model(self, name: str | None) -> str:
        """Return the name of the model as the request calls it.

        Raises:
            ApiError: 404.
        """
        known = (self.served.name, *self.served.aliases)
        if name is not None and name not in known:
            raise no_model(name, known)
        return name or self.served.name

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer.

        Raises:
            ApiError: There is none.
        """
        if self.served.tokenizer is None:
            raise invalid("prompt: expected token ids, because this server has no tokenizer, got text.", "prompt")
        return self.served.tokenizer

    def salt(self, wish: str | None) -> str:
        """Return what the request's cached prefixes are salted with."""
        return cache_salt(self.exchange.identity, wish)


Handler = Callable[[Call, Any], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One route.

    Attributes:
        method: "GET" or "POST".
        path: Where.
        handle: What answers.
        summary: A sentence for the documentation.
        body: Type of the JSON body, None without one.
        answer: Type of the JSON answer, or a content type.
        chunk: Type of a stream's events, None if it cannot stream.
        ignored: Known fields that are not honoured, with the values under which that makes no difference.
        is_work: Whether it is refused while the server drains, and waited for.
    """

    method: str
    path: str
    handle: Handler
    summary: str
    body: type[msgspec.Struct] | None = None
    answer: type[msgspec.Struct] | str = "text/plain; charset=utf-8"
    chunk: Any = None
    ignored: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    is_work: bool = False


class Route:
    """An endpoint as an ASGI application.

    Args:
        endpoint: What to serve.
        context: What it needs.
    """

    def __init__(self, endpoint: Endpoint, context: Context) -> None:
        self._endpoint = endpoint
        self._context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body, answer, and stop if the client leaves."""
        endpoint, context = self._endpoint, self._context
        exchange: Exchange = scope["state"]["exchange"]
        if scope["method"] != endpoint.method and (scope["method"], endpoint.method) != ("HEAD", "GET"):
            raise wrong_method(scope["method"], endpoint.method)
        if endpoint.is_work and context.drain.is_draining:
            raise draining()
        if endpoint.is_work:
            context.engine.check_room()
        request: Any = next(iter(scope.get("path_params", {}).values()), None)
        warnings: list[str] = []
        if endpoint.body is not None:
            raw = await exchange.read_body(scope, context.limits)
            request, warnings = decode(raw, endpoint.body, endpoint.ignored, context.limits)
        call = Call(context, exchange, warnings)
        if endpoint.is_work:
            context.drain.running.add(exchange)
        try:
            await exchange.run(self._answer(call, request))
        finally:
            context.drain.running.discard(exchange)

    async def _answer(self, call: Call, request: Any) -> None:
        answer = await self._endpoint.handle(call, request)
        await answer.send(call.exchange)
