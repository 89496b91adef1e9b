"""`Exchange`: one request's way through the server, from its headers to the last byte of its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from quire.server.errors import ApiError, slow_body, too_large
from quire.server.http.limits import Limits


class ClientGone(Exception):
    """The client closed its connection; there is nobody to answer."""


@dataclass(slots=True, eq=False)
class Exchange:
    """One request and what has been sent for it.

    Attributes:
        request_id: For logs and for the client; its own if it sent one.
        identity: Who sent it, from `Keys.identify`.
        receive: The rest of the request.
        transmit: Where the answer goes.
        status: Status that was sent, 0 before.
        is_stream: Whether an event stream has been started.
        is_complete: Whether the whole answer was sent.
        error_frame: How this stream tells an error.
        trace_parent: The client's own place in a trace, from the header `traceparent`.
        notes: What the log line says beside method, path, status and time.
        is_routine: Whether the log line is for debugging only, because there are some of them a second.
    """

    request_id: str
    receive: Receive
    transmit: Send
    identity: bytes = b""
    status: int = 0
    is_stream: bool = False
    is_complete: bool = False
    error_frame: Callable[[ApiError], bytes] = field(default=lambda error: event(error.encoded()))
    trace_parent: str | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    is_routine: bool = False
    _task: asyncio.Task[Any] | None = None
    _stopped_by: Exception | None = None

    async def send(self, message: Message) -> None:
        """Send a part of the answer, with the request's id among its headers."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self.request_id.encode())]
        elif not message.get("more_body", False):
            self.is_complete = True
        await self.transmit(message)

    async def send_body(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """Send a whole answer."""
        sized = [*headers, (b"content-length", str(len(body)).encode())]
        await self.send({"type": "http.response.start", "status": status, "headers": sized})
        await self.send({"type": "http.response.body", "body": body})

    async def send_error(self, error: ApiError) -> None:
        """Answer with an error; if a stream has begun, with a frame, after which it ends."""
        self.notes["error"] = error.body.code or error.body.type
        if not self.status:
            await self.send_body(error.status, error.headers(), error.encoded())
        elif not self.is_complete:
            await self.send({"type": "http.response.body", "body": self.error_frame(error) if self.is_stream else b""})

    async def read_body(self, scope: Scope, limits: Limits) -> bytes:
        """Return the request's body.

        Raises:
            ApiError: It is too large or too slow.
            ClientGone: The client left before its end.
        """
        lengths = [value for name, value in scope["headers"] if name == b"content-length"]
        if lengths and int(lengths[0]) > limits.max_body_bytes:  # the HTTP parser lets digits through only
            raise too_large(limits.max_body_bytes)
        try:
            async with asyncio.timeout(limits.body_timeout_s):
                return await self._all_parts(limits.max_body_bytes)
        except TimeoutError:
            raise slow_body(limits.body_timeout_s) from None

    async def _all_parts(self, max_bytes: int) -> bytes:
        body = bytearray()
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            body += message.get("body", b"")
            if len(body) > max_bytes:
                raise too_large(max_bytes)
            if not message.get("more_body", False):
                return bytes(body)

    async def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Answer the request; stop at once if the client leaves.

        Args:
            work: What sends the answer. Cancelled where it waits when the exchange is stopped.

        Raises:
            ClientGone: The client left.
            ApiError: The reason given to `stop`.
        """
        self._task = asyncio.current_task()
        watcher = asyncio.create_task(self._watch())
        try:
            await work
        except asyncio.CancelledError:
            if self._stopped_by is None or self._task is None or self._task.uncancel() > 0:
                raise
            raise self._stopped_by from None
        finally:
            watcher.cancel()

    def stop(self, reason: Exception) -> None:
        """End the exchange with a reason; does nothing if it is complete."""
        if self._task is not None and not self.is_complete and self._stopped_by is None:
            self._stopped_by = reason
            self._task.cancel()

    async def _watch(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self.stop(ClientGone())


def event(data: bytes, name: str | None = None) -> bytes:
    """Return a server-sent event; JSON holds no line breaks, so it is one line."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + data + b"\n\n"
