"""`Drain` and `HttpServer`: the first SIGTERM lets running requests finish, the second one stops."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from uvicorn import Config, Server

from quire.core.log import get_logger
from quire.server.errors import cut_off
from quire.server.http.exchange import Exchange

_log = get_logger(__name__)

# After streams were cut off: time for their last frames to leave.
_FAREWELL_S = 1


class Drain:
    """Which requests are running, and whether new ones are taken.

    Args:
        timeout_s: How long running requests may go on after `begin`.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._deadline_s: float | None = None
        self.running: set[Exchange] = set()

    @property
    def is_draining(self) -> bool:
        """Whether new work is refused."""
        return self._deadline_s is not None

    def begin(self) -> None:
        """Refuse new work from now on."""
        if self._deadline_s is None:
            self._deadline_s = time.monotonic() + self._timeout_s

    def is_over(self) -> bool:
        """Return whether the server may stop; what still runs at the deadline is told so and ended."""
        if self._deadline_s is None:
            return False
        if self.running and time.monotonic() >= self._deadline_s:
            self.cut()
        return not self.running

    def cut(self) -> None:
        """End all that is running."""
        for exchange in list(self.running):
            exchange.stop(cut_off())


class HttpServer(Server):
    """uvicorn's server, which goes on listening while it drains, so that health checks see why.

    Args:
        config: uvicorn's settings.
        drain: What is running.
        on_listening: Called when clients can connect.

    Attributes:
        is_cut: Whether a second signal asked to stop at once.
    """

    def __init__(self, config: Config, drain: Drain, on_listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_listening = on_listening
        self.drain = drain
        self.is_cut = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        self._on_listening()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; at the second signal, stop."""
        if self.drain.is_draining:
            self.is_cut = True
        else:
            _log.info("%s: finishing %d requests; once more stops at once", signal.Signals(sig).name,
                      len(self.drain.running))  # fmt: skip
            self.drain.begin()

    async def on_tick(self, counter: int) -> bool:
        """Return whether to stop now; called ten times a second."""
        if self.is_cut:
            self.drain.cut()
        if self.is_cut or self.drain.is_over():
            self.should_exit = True
        return await super().on_tick(counter)


def uvicorn_config(app: Any, connection: type[asyncio.Protocol], keep_alive_s: int) -> Config:
    """Return settings under which uvicorn does nothing but HTTP/1.1: no web sockets, no logs, no proxy headers.

    Args:
        app: The application.
        connection: Its protocol class.
        keep_alive_s: How long a connection may be idle.
    """
    return Config(
        app,
        http=connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=keep_alive_s,
        timeout_graceful_shutdown=_FAREWELL_S,
    )
