"""Frames over a socket pair: four bytes of length, then that many bytes. Both ends are ours; neither is believed."""

from __future__ import annotations

import asyncio
import select
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Self, cast

from quire.core.errors import QuireError

# One request's logprobs of a prompt of 128k tokens, 20 each, are 52 MB; more than this is a mistake or an attack.
MAX_FRAME_BYTES = 64 << 20
_LENGTH = struct.Struct("!I")
_READ_BYTES = 1 << 20


class ChannelError(QuireError):
    """The other end closed the socket, or sent what is no frame."""


def pack_frame(payload: bytes) -> bytes:
    """Return a payload with its length before it.

    Raises:
        ChannelError: It is empty or larger than `MAX_FRAME_BYTES`.
    """
    _check_length(len(payload))
    return _LENGTH.pack(len(payload)) + payload


def _check_length(num_bytes: int) -> None:
    if not 0 < num_bytes <= MAX_FRAME_BYTES:
        raise ChannelError(f"frame: expected 1 to {MAX_FRAME_BYTES} bytes, got {num_bytes}.")


class FrameReader:
    """Cuts a stream of bytes into frames, however it arrives."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Take in bytes and return the payloads that are complete now.

        Raises:
            ChannelError: A length is zero or above `MAX_FRAME_BYTES`; nothing can be read from here on.
        """
        self._buffer += data
        payloads, start = [], 0
        while len(self._buffer) - start >= _LENGTH.size:
            (num_bytes,) = _LENGTH.unpack_from(self._buffer, start)
            _check_length(num_bytes)
            end = start + _LENGTH.size + num_bytes
            if len(self._buffer) < end:
                break
            payloads.append(bytes(self._buffer[start + _LENGTH.size : end]))
            start = end
        del self._buffer[:start]
        return payloads


class Channel:
    """The blocking end, in the engine process.

    Args:
        sock: Connected; closed at the end of a `with` block.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._reader = FrameReader()
        self._waking, self._woken = socket.socketpair()
        self._woken.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in (self._sock, self._waking, self._woken):
            sock.close()

    def wake(self) -> None:
        """Have a `receive` that waits, or the next that does, return. May be called from any thread."""
        with suppress(OSError):  # closed by now
            self._waking.send(b"w")

    def send(self, payload: bytes) -> None:
        """Send one frame; waits while the other end is behind.

        Raises:
            ChannelError: The other end is gone, or the payload is too large.
        """
        try:
            self._sock.sendall(pack_frame(payload))
        except OSError as error:
            raise ChannelError(f"channel: expected a reader, got: {error.strerror}.") from None

    def receive(self, *, is_waiting: bool) -> list[bytes]:
        """Return the frames that have arrived.

        Args:
            is_waiting: Sleep until there is one, or until `wake`. Otherwise there may be none.

        Raises:
            ChannelError: The other end is gone, or sent what is no frame.
        """
        payloads: list[bytes] = []
        while not payloads:
            if is_waiting and self._is_woken():
                return payloads
            try:
                data = self._sock.recv(_READ_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                if is_waiting:
                    continue
                return payloads
            except OSError as error:
                raise ChannelError(f"channel: expected a writer, got: {error.strerror}.") from None
            if not data:
                raise ChannelError("channel: the other end was closed.")
            payloads = self._reader.feed(data)
        return payloads

    def _is_woken(self) -> bool:
        """Sleep until there is something to read, and return whether it is a call to wake up."""
        readable, _, _ = select.select([self._sock, self._woken], [], [])
        if self._woken in readable:
            self._woken.recv(_READ_BYTES)
        return self._woken in readable


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
