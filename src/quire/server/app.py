"""`build_app`: the table of routes, and around it the gate that every request passes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from starlette.routing import Route as StarletteRoute
from starlette.routing import Router
from starlette.types import Receive, Scope, Send

from quire.core.server_config import ServerConfig
from quire.server.engine_client import EngineClient
from quire.server.errors import no_route
from quire.server.http.auth import Keys
from quire.server.http.gate import Gate
from quire.server.http.lifecycle import Drain
from quire.server.http.limits import Limits
from quire.server.openapi import document
from quire.server.page import endpoints as page
from quire.server.routes import chat, completions, docs, embeddings, health, models, responses, tokenization
from quire.server.routes.endpoint import Context, Endpoint, Route
from quire.server.tracing import RequestTraces

ENDPOINTS: tuple[Endpoint, ...] = (
    completions.ENDPOINT,
    chat.ENDPOINT,
    responses.ENDPOINT,
    embeddings.ENDPOINT,
    models.LIST,
    models.SHOW,
    tokenization.TOKENIZE,
    tokenization.DETOKENIZE,
    tokenization.INFO,
    health.HEALTH,
    health.LIVE,
    health.READY,
    health.VERSION,
    health.METRICS,
    page.KV_CACHE,
    page.KV_CACHE_OF,
    *page.FILES,
)
"""What is served, beside the documentation of itself."""

# The page is the same for everybody and tells nothing of this server: a browser can send no key before it shows it.
_FREE_PATHS = frozenset({health.LIVE.path, *(file.path for file in page.FILES)})


@cache
def all_endpoints() -> tuple[Endpoint, ...]:
    """Return all routes, those of the documentation included."""
    table: list[Endpoint] = list(ENDPOINTS)
    table += docs.endpoints(cache(lambda: document(table)))
    return tuple(table)


def build_app(
    engine: EngineClient,
    config: ServerConfig,
    keys: Keys,
    drain: Drain,
    metrics_text: Callable[[], bytes],
    limits: Limits | None = None,
    traces: RequestTraces | None = None,
) -> Gate:
    """Return the application.

    Args:
        engine: What is served.
        config: How.
        keys: Who may ask.
        drain: Which requests are running.
        metrics_text: Returns the text of `/metrics`.
        limits: Of bodies and connections; None takes the defaults.
        traces: What makes traces of requests, None if nobody asked for them.
    """
    context = Context(engine, config, limits or Limits(), drain, metrics_text, traces)
    routes = [StarletteRoute(endpoint.path, Route(endpoint, context)) for endpoint in all_endpoints()]
    router = Router(routes, redirect_slashes=False, default=_unknown)
    return Gate(router, keys, _FREE_PATHS)


async def _unknown(scope: Scope, _receive: Receive, _send: Send) -> None:
    raise no_route(scope["path"])
