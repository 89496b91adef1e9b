"""HTTP/1.1 on asyncio's transports: as little as a load generator needs, so that it is not the limit itself."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from urllib.parse import urlsplit

from quire.core.errors import ConfigError

OnEvent = Callable[[bytes], None]
_MAX_BODY_BYTES = 64 << 20


class BrokenAnswer(Exception):
    """The connection ended before the answer did, or what came is not HTTP/1.1."""


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self.is_reusable = False
        self._transport: asyncio.Transport
        self._done: asyncio.Future[tuple[int, bytes]] | None = None
        self._on_event: OnEvent | None = None
        self._buffer = bytearray()
        self._forget_answer()

    def request(self, data: bytes, on_event: OnEvent | None) -> asyncio.Future[tuple[int, bytes]]:
        """Send a request; returns what will be its status and body.

        Args:
            data: All of it.
            on_event: Called with the data of each server-sent event of an answer with status 200.
        """
        self._forget_answer()
        self._on_event = on_event
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(data)
        return self._done

    def abort(self) -> None:
        """Close at once."""
        self.is_reusable = False
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.is_reusable = True

    def connection_lost(self, error: Exception | None) -> None:
        """Called by the event loop."""
        self.is_reusable = False
        if self._status and self._framing == "until_closed" and error is None:
            self._finish()
        elif self._done is not None and not self._done.done():
            self._done.set_exception(BrokenAnswer("the connection was closed"))

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        if self._done is None or self._done.done():
            self.abort()  # nobody asked
            return
        try:
            self._buffer += data
            if self._status or self._take_head():
                self._take_body()
        except ValueError:
            self._fail("an answer that is not HTTP/1.1")

    def _forget_answer(self) -> None:
        self._status, self._framing, self._left = 0, "", 0
        self._is_stream = False
        self._body, self._line = bytearray(), bytearray()

    def _take_head(self) -> bool:
        """Read status and headers, if they are complete."""
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        first, *lines = bytes(self._buffer[:end]).split(b"\r\n")
        del self._buffer[: end + 4]
        headers = {name.strip().lower(): value.strip().lower() for name, _, value in (x.partition(b":") for x in lines)}
        version, status, *_ = first.split(b" ", 2)
        self._status = int(status)
        self._is_stream = headers.get(b"content-type", b"").startswith(b"text/event-stream")
        self.is_reusable = version == b"HTTP/1.1" and headers.get(b"connection") != b"close"
        if b"chunked" in headers.get(b"transfer-encoding", b""):
            self._framing = "chunked"
        elif b"content-length" in headers:
            self._framing, self._left = "length", int(headers[b"content-length"])
        else:
            self._framing, self.is_reusable = "until_closed", False
        return True

    def _take_body(self) -> None:
        if self._framing == "chunked":
            self._take_chunks()
            return
        data = bytes(self._buffer)
        self._buffer.clear()
        self._left -= len(data)
        self._take_payload(data)
        if self._framing == "length" and self._left <= 0:
            self._finish()

    def _take_chunks(self) -> None:
        """Read all chunks that are complete; the one of size 0 is the last."""
        buffer, start = self._buffer, 0
        while (line_end := buffer.find(b"\r\n", start)) >= 0:
            size = int(bytes(buffer[start:line_end]).partition(b";")[0], 16)
            end = line_end + 2 + size
            if len(buffer) < end + 2:
                break
            start = end + 2
            if size == 0:
                self._finish()
                break
            self._take_payload(bytes(buffer[line_end + 2 : end]))
        del buffer[:start]

    def _take_payload(self, data: bytes) -> None:
        if self._on_event is None or not self._is_stream or self._status != 200:
            self._body += data
            if len(self._body) > _MAX_BODY_BYTES:
                self._fail("an answer of more than 64 MiB")
            return
        *lines, rest = (bytes(self._line) + data).split(b"\n")
        self._line[:] = rest
        for line in lines:
            if line.startswith(b"data:"):
                self._on_event(line[5:].strip())

    def _finish(self) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result((self._status, bytes(self._body)))

    def _fail(self, reason: str) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(BrokenAnswer(reason))
        self.abort()


class HttpClient:
    """Connections to one server, kept open between requests.

    Args:
        base_url: For example "http://127.0.0.1:8000" or "https://host/v1"; a final "/v1" may be there or not.
        api_key: Sent as a bearer token.

    Raises:
        ConfigError: The URL is none.
    """

    def __init__(self, base_url: str, api_key: str | None = None) -> None:
        parts = urlsplit(base_url if "://" in base_url else f"http://{base_url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"base_url: expected http://HOST:PORT or https://HOST, got {base_url!r}.")
        self._host, is_tls = parts.hostname, parts.scheme == "https"
        self._port = parts.port or (443 if is_tls else 80)
        self._tls = ssl.create_default_context() if is_tls else None
        self._root = parts.path.rstrip("/").removesuffix("/v1")
        key = f"authorization: Bearer {api_key}\r\n" if api_key else ""
        self._head = f"host: {parts.netloc.rpartition('@')[2]}\r\naccept: */*\r\n{key}"
        self._idle: list[Connection] = []

    def compose(self, method: str, path: str, body: bytes = b"") -> bytes:
        """Return a request, ready to be sent."""
        head = f"{method} {self._root}{path} HTTP/1.1\r\n{self._head}content-type: application/json\r\n"
        return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body

    async def send(self, data: bytes, on_event: OnEvent | None = None) -> tuple[int, bytes]:
        """Send what `compose` has made; returns status and body, which is empty where events were taken.

        Raises:
            OSError: There is no connection.
            BrokenAnswer: It ended too early.
        """
        connection = await self._connect()
        try:
            answer = await connection.request(data, on_event)
        except BaseException:
            connection.abort()
            raise
        if connection.is_reusable:
            self._idle.append(connection)
        return answer

    def close(self) -> None:
        """Close all connections."""
        for connection in self._idle:
            connection.abort()
        self._idle.clear()

    async def _connect(self) -> Connection:
        while self._idle:
            if (connection := self._idle.pop()).is_reusable:
                return connection
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, self._host, self._port, ssl=self._tls)
        return connection
