"""The server's end of a channel to an engine process, in its event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import cast

from quire.core.errors import QuireError
from quire.distributed.channel import FrameReader, pack_frame


class AsyncChannel(asyncio.Protocol):
    """The end in the server's event loop; made by `AsyncChannel.open`.

    Args:
        on_frame: Called with each payload. An exception of its closes the channel.
        on_closed: Called once, with the reason, when nothing will come any more.
    """

    def __init__(self, on_frame: Callable[[bytes], None], on_closed: Callable[[str], None]) -> None:
        self._on_frame = on_frame
        self._on_closed = on_closed
        self._reader = FrameReader()
        self._transport: asyncio.WriteTransport | None = None
        self._reason = "the other end was closed"

    @classmethod
    async def open(
        cls, sock: socket.socket, on_frame: Callable[[bytes], None], on_closed: Callable[[str], None]
    ) -> AsyncChannel:
        """Return a channel over a connected unix socket, which it owns from now on."""
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        _, channel = await loop.create_unix_connection(lambda: cls(on_frame, on_closed), sock=sock)
        return channel

    def send(self, payload: bytes) -> None:
        """Queue one frame; never blocks. Nothing if the channel is closed.

        Raises:
            ChannelError: The payload is too large.
        """
        frame = pack_frame(payload)
        if self._transport is not None:
            self._transport.write(frame)

    def close(self) -> None:
        """Close the socket now; what was not sent yet is dropped."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        try:
            for payload in self._reader.feed(data):
                self._on_frame(payload)
        except Exception as error:  # whatever it was, the state that both ends share is lost
            self._reason = str(error) if isinstance(error, QuireError) else f"{type(error).__name__} in a frame"
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a frame of the engine process could not be taken in", "exception": error}
            )
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        """Called by the event loop."""
        self._transport = None
        self._on_closed(self._reason)
