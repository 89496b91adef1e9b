"""Frames over a socket: four bytes of length, then that many bytes. Both ends are ours; neither is believed."""

from __future__ import annotations

import select
import socket
import struct
from contextlib import suppress
from typing import Self

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
    """The blocking end.

    Args:
        sock: Connected; closed at the end of a `with` block.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._reader = FrameReader()
        self._arrived: list[bytes] = []
        self._waking, self._woken = socket.socketpair()
        self._woken.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wake(self) -> None:
        """Have a `receive` that waits, or the next that does, return. May be called from any thread."""
        with suppress(OSError):  # closed by now
            self._waking.send(b"w")

    def send(self, payload: bytes) -> None:
        """Send one frame; while the other end is behind, take in what it sends, so that neither waits for the other.

        Raises:
            ChannelError: The other end is gone, or the payload is too large.
        """
        left = memoryview(pack_frame(payload))
        while left:
            try:
                left = left[self._sock.send(left, socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                readable, _, _ = select.select([self._sock], [self._sock], [])
                if readable:
                    self._arrived += self._read()
            except OSError as error:
                raise ChannelError(f"channel: expected a reader, got: {error.strerror}.") from None

    def receive(self, *, is_waiting: bool) -> list[bytes]:
        """Return the frames that have arrived.

        Args:
            is_waiting: Sleep until there is one, or until `wake`. Otherwise there may be none.

        Raises:
            ChannelError: The other end is gone, or sent what is no frame.
        """
        while not self._arrived:
            if is_waiting and self._is_woken():
                break
            try:
                self._arrived = self._read()
            except BlockingIOError:
                if not is_waiting:
                    break
        payloads, self._arrived = self._arrived, []
        return payloads

    def close(self) -> None:
        """Close the socket."""
        for sock in (self._sock, self._waking, self._woken):
            sock.close()

    def _read(self) -> list[bytes]:
        """Return the frames that are complete with what can be read now.

        Raises:
            BlockingIOError: Nothing can.
            ChannelError: The other end is gone, or sent what is no frame.
        """
        try:
            data = self._sock.recv(_READ_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            raise
        except OSError as error:
            raise ChannelError(f"channel: expected a writer, got: {error.strerror}.") from None
        if not data:
            raise ChannelError("channel: the other end was closed.")
        return self._reader.feed(data)

    def _is_woken(self) -> bool:
        """Sleep until there is something to read, and return whether it is a call to wake up."""
        readable, _, _ = select.select([self._sock, self._woken], [], [])
        if self._woken in readable:
            self._woken.recv(_READ_BYTES)
        return self._woken in readable
