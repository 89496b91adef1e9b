"""What a route returns: one JSON value, text, or a stream of events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any

import msgspec

from quire.server.errors import ApiError
from quire.server.http.exchange import Exchange


class JsonAnswer:
    """An answer of one JSON value.

    Args:
        value: What to encode.
        status: HTTP status.
    """

    def __init__(self, value: Any, status: int = 200) -> None:
        self._value = value
        self._status = status

    async def send(self, exchange: Exchange) -> None:
        """Send it."""
        body = msgspec.json.encode(self._value)
        await exchange.send_body(self._status, [(b"content-type", b"application/json")], body)


class TextAnswer:
    """An answer of text.

    Args:
        text: The text, as UTF-8.
        content_type: Its type.
        headers: Beside type and length, names in lower case.
    """

    def __init__(self, text: bytes, content_type: str, headers: Mapping[str, str] | None = None) -> None:
        self._text = text
        self._headers = {"content-type": content_type, **(headers or {})}

    async def send(self, exchange: Exchange) -> None:
        """Send it."""
        headers = [(name.encode(), value.encode()) for name, value in self._headers.items()]
        await exchange.send_body(200, headers, self._text)


class StreamAnswer:
    """An answer of server-sent events, made by `begin`.

    Args:
        first: The first event.
        frames: The other ones; closed when the client leaves.
        error_frame: How an error is told in this stream; None takes `{"error": ...}`.
    """

    def __init__(
        self, first: bytes, frames: AsyncGenerator[bytes, None], error_frame: Callable[[ApiError], bytes] | None = None
    ) -> None:
        self._first = first
        self._frames = frames
        self._error_frame = error_frame

    @classmethod
    async def begin(
        cls, frames: AsyncGenerator[bytes, None], error_frame: Callable[[ApiError], bytes] | None = None
    ) -> StreamAnswer:
        """Wait for the first event, so that what fails before it is answered with a status of its own."""
        return cls(await anext(frames), frames, error_frame)

    async def send(self, exchange: Exchange) -> None:
        """Send all events."""
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"),
                   (b"x-accel-buffering", b"no")]  # fmt: skip
        exchange.is_stream = True
        if self._error_frame is not None:
            exchange.error_frame = self._error_frame
        async with aclosing(self._frames) as frames:
            await exchange.send({"type": "http.response.start", "status": 200, "headers": headers})
            await exchange.send({"type": "http.response.body", "body": self._first, "more_body": True})
            async for frame in frames:
                await exchange.send({"type": "http.response.body", "body": frame, "more_body": True})
        await exchange.send({"type": "http.response.body", "body": b""})


Answer = JsonAnswer | TextAnswer | StreamAnswer
