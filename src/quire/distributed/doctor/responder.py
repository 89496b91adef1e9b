"""`Responder`: a port at which a rank tells its clock, during an examination; `reach` asks it."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from contextlib import suppress

from quire.distributed.doctor.diagnosis import Reach
from quire.distributed.doctor.facts import Facts

_NONCE_BYTES = 16
_CLOCK = struct.Struct("!d")
_TIMEOUT_S = 3.0


class Responder:
    """Answers each connection with what was sent and the time; nothing else can be asked. Use it in a `with` block.

    Args:
        address: Where to listen.

    Attributes:
        port: One that was free.
    """

    def __init__(self, address: str) -> None:
        self._listener = socket.create_server((address, 0), family=_family(address))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Responder:
        threading.Thread(target=self._serve, name="responder", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._listener.close()

    def _serve(self) -> None:
        with suppress(OSError):  # closed
            while True:
                connection, _ = self._listener.accept()
                with connection, suppress(OSError):
                    connection.settimeout(_TIMEOUT_S)
                    nonce = connection.recv(_NONCE_BYTES, socket.MSG_WAITALL)
                    connection.sendall(nonce + _CLOCK.pack(time.time()))


def reach(source: int, target: Facts) -> Reach:
    """Return what comes of connecting to another rank.

    Args:
        source: Who asks.
        target: Who is asked.
    """
    nonce = os.urandom(_NONCE_BYTES)
    try:
        with socket.create_connection((target.address, target.port), _TIMEOUT_S) as connection:
            began_s = time.time()
            connection.sendall(nonce)
            answer = connection.recv(_NONCE_BYTES + _CLOCK.size, socket.MSG_WAITALL)
            round_trip_s = time.time() - began_s
    except TimeoutError:
        error = f"no answer from {target.address}:{target.port} within {_TIMEOUT_S:g} s, as if a firewall were between"
        return Reach(source, target.rank, error)
    except OSError as error:
        return Reach(source, target.rank, f"{target.address}:{target.port}: {error.strerror or error}")
    if answer[:_NONCE_BYTES] != nonce or len(answer) < _NONCE_BYTES + _CLOCK.size:
        return Reach(source, target.rank, f"somebody else answers at {target.address}:{target.port}")
    (clock_s,) = _CLOCK.unpack(answer[_NONCE_BYTES:])
    return Reach(source, target.rank, "", round_trip_s, clock_s - began_s - round_trip_s / 2)


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
