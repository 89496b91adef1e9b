"""`Gate`: the outermost layer. Names every request, asks for its key, answers failures, writes its log line."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Mapping
from logging import DEBUG, INFO

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from quire.core.log import get_logger
from quire.server.errors import from_exception, unauthorized
from quire.server.http.auth import Keys
from quire.server.http.exchange import ClientGone, Exchange

_log = get_logger(__name__)

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_MAX_PATH_CHARS = 200


class Gate:
    """Wraps the routes.

    Args:
        app: The routes; they find the request's `Exchange` as `scope["state"]["exchange"]`.
        keys: Who may ask.
        free_paths: Paths that need no key: liveness.
    """

    def __init__(self, app: ASGIApp, keys: Keys, free_paths: frozenset[str]) -> None:
        self._app = app
        self._keys = keys
        self._free_paths = free_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        headers = dict(scope["headers"])
        exchange = Exchange(_request_id(headers), receive, send)
        if (trace_parent := headers.get(b"traceparent")) is not None:
            exchange.trace_parent = trace_parent.decode("latin-1")
        scope.setdefault("state", {})["exchange"] = exchange
        start = time.perf_counter()
        try:
            await self._serve(scope, headers, exchange)
        except ClientGone:
            exchange.notes["error"] = "client_gone"
        except Exception as error:  # whatever it is, it ends this request only
            await exchange.send_error(from_exception(error))
        finally:
            self._note(scope, exchange, time.perf_counter() - start)

    async def _serve(self, scope: Scope, headers: Mapping[bytes, bytes], exchange: Exchange) -> None:
        identity = self._keys.identify(headers.get(b"authorization"))
        if identity is None and scope["path"] not in self._free_paths:
            raise unauthorized()
        exchange.identity = identity or b""
        await self._app(scope, exchange.receive, exchange.send)

    def _note(self, scope: Scope, exchange: Exchange, seconds: float) -> None:
        """Write one line of JSON; never a prompt, an answer or a key."""
        line = {
            "request_id": exchange.request_id,
            "method": scope["method"],
            "path": scope["path"][:_MAX_PATH_CHARS],
            "status": exchange.status,
            "ms": round(seconds * 1e3, 1),
            **exchange.notes,
        }
        _log.log(DEBUG if exchange.is_routine else INFO, "%s", msgspec.json.encode(line).decode())


def _request_id(headers: Mapping[bytes, bytes]) -> str:
    """Return the client's own id if it is harmless, or a new one."""
    given = headers.get(b"x-request-id", b"")
    return given.decode() if _REQUEST_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"
