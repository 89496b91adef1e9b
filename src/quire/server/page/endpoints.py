"""`/`, the page's files, and `/kv_cache`, the pictures that it draws."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import msgspec

from quire.core.request import CachePicture
from quire.server.errors import no_engine
from quire.server.http.answers import Answer, JsonAnswer, TextAnswer
from quire.server.routes.endpoint import Call, Endpoint

_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_NAMES = ("page.css", "api.js", "chat.js", "cache.js", "icon.svg")


class KVCacheView(msgspec.Struct, frozen=True):
    """What an engine's KV cache holds between two steps; bytes are base64.

    Attributes:
        picture: Blocks and sequences.
        metrics: The engine's counters and gauges after its last step.
        engine: Which of the server's engines it is.
        num_engines: How many there are.
    """

    picture: CachePicture
    metrics: dict[str, float]
    engine: int = 0
    num_engines: int = 1


async def kv_cache(call: Call, number: int | None) -> Answer:
    """Return the picture; the engine is asked for it now, and draws none otherwise. 404 if there is no such engine."""
    call.exchange.is_routine = True
    client = call.context.engine
    engine = number or 0
    if engine >= client.num_engines:
        raise no_engine(engine, client.num_engines)
    return JsonAnswer(KVCacheView(await client.picture(engine), client.metrics(engine), engine, client.num_engines))


@cache
def _content(name: str) -> bytes:
    return Path(__file__).with_name(name).read_bytes()


def _file(path: str, name: str, summary: str) -> Endpoint:
    content_type = f"{_TYPES[Path(name).suffix]}; charset=utf-8"

    async def show(_call: Call, _body: None) -> Answer:
        return TextAnswer(_content(name), content_type, _HEADERS)

    return Endpoint("GET", path, show, summary, answer=content_type)


KV_CACHE = Endpoint("GET", "/kv_cache", kv_cache, "What the first engine's KV cache holds now.", answer=KVCacheView)
KV_CACHE_OF = Endpoint(
    "GET", "/kv_cache/{engine:int}", kv_cache, "What an engine's KV cache holds now, from 0.", answer=KVCacheView
)
FILES = (
    _file("/", "index.html", "A page to chat with the model; needs no key."),
    *(_file(f"/page/{name}", name, "A file of that page; needs no key.") for name in _NAMES),
)
