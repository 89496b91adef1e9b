"""`Connection`: uvicorn's HTTP/1.1 over httptools, with bounds on headers and on slow or greedy clients."""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from quire.server.errors import ApiError
from quire.server.http.limits import Limits

_PHRASES = {400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large"}


def connection_class(limits: Limits) -> type[HttpToolsProtocol]:
    """Return the protocol class for uvicorn, bound to limits."""
    return type("Connection", (Connection,), {"limits": limits})


class Connection(HttpToolsProtocol):
    """One client's connection.

    A request that comes before the last one was answered (pipelining) is dropped and the connection closed after that
    answer, as RFC 9112 section 9.3.2 allows: so the connection is always read, and a client that leaves is noticed.
    """

    limits = Limits()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for a request."""
        super().connection_made(transport)
        self._head_bytes = 0
        self._is_in_head = True
        self._is_dropping = False
        self._timer: asyncio.TimerHandle | None = None
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all timers."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes in; headers are counted before the parser may keep them."""
        if self._is_dropping or self.transport.is_closing():
            return
        if self._is_in_head:
            if self._timer is None:
                self._wait_for_head()
            self._head_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            return  # answered as HTTP/1.1, which is what declining an upgrade means
        except httptools.HttpParserError:
            self._refuse(400, "request", "HTTP/1.1")
            return
        if self._is_in_head and self._head_bytes > self.limits.max_head_bytes:
            self._refuse(431, "headers", f"at most {self.limits.max_head_bytes} bytes")

    def on_message_begin(self) -> None:
        """Begin a request, or drop it if another one is being answered."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._is_dropping = True
            self.cycle.keep_alive = False
            return
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Collect the request line."""
        if not self._is_dropping:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header, or a trailer, which counts as one."""
        if self._is_dropping:
            return
        super().on_header(name, value)
        if len(self.headers) > self.limits.max_headers:
            self._refuse(431, "headers", f"at most {self.limits.max_headers} of them")

    def on_headers_complete(self) -> None:
        """Start to answer."""
        if self._is_dropping or self.transport.is_closing():
            return
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.limits.max_head_bytes:
            self._refuse(431, "headers", f"at most {self.limits.max_head_bytes} bytes")
            return
        self._stop_timer()
        self._is_in_head, self._head_bytes = False, 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Hand a piece of the body on."""
        if not self._is_dropping and not self._is_in_head:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that the body has ended."""
        if self._is_dropping or self._is_in_head:
            return
        self._stop_timer()
        self._is_in_head = True
        super().on_message_complete()
        if self.cycle.response_complete:
            self.cycle.more_body = False

    def on_response_complete(self) -> None:
        """After an answer that came before the end of the body, take the rest in for a little while only."""
        super().on_response_complete()
        if self.cycle.more_body and not self.transport.is_closing():
            self._start_timer(self.limits.linger_s, self.transport.close)

    def _wait_for_head(self) -> None:
        self._start_timer(self.limits.head_timeout_s, self._head_is_late)

    def _head_is_late(self) -> None:
        self._refuse(408, "headers", f"all of them within {self.limits.head_timeout_s:g} s")

    def _refuse(self, status: int, what: str, expected: str) -> None:
        """Answer a request that cannot be read, and close; what follows a whole request is dropped until its answer."""
        if self.transport.is_closing():
            return
        self._is_dropping = True
        is_running = self.cycle is not None and not self.cycle.response_complete
        if is_running and not self.cycle.more_body:
            self.cycle.keep_alive = False
            return
        if not is_running or not self.cycle.response_started:
            error = ApiError(status, "invalid_request_error", f"{what}: expected {expected}, got something else.")
            body = error.encoded()
            head = [b"HTTP/1.1 %d %s" % (status, _PHRASES[status]), b"content-length: %d" % len(body),
                    b"connection: close", *(b"%s: %s" % header for header in error.headers())]  # fmt: skip
            self.transport.write(b"\r\n".join(head) + b"\r\n\r\n" + body)
        self.transport.close()

    def _start_timer(self, seconds: float, act: Any) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, act)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
