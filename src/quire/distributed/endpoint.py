"""`Endpoint`: a worker as its driver reaches it. `spawn` starts one here; `Door` takes in those that were started
elsewhere, by `torchrun` or on another host, and `knock` is what they do.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec

from quire.core.errors import WorkerError
from quire.distributed.channel import Channel, ChannelError, pack_frame
from quire.distributed.program import command

_KNOCK_TIMEOUT_S = 10.0  # from a connection to its name: it is sent at once


class RemoteProcess(Protocol):
    """A worker that somebody else started, and watches on its host."""

    def last_words(self) -> tuple[int | None, list[str]]:
        """Return its exit code, None if it lives or if nobody can tell, and the last lines that it wrote; soon."""
        ...

    def end(self, timeout_s: float) -> None:
        """End it, and all workers of its model; kill those that take longer."""
        ...


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Two connections to the worker of a rank.

    Attributes:
        rank: Which.
        commands: Steps and results go over it.
        health: Pings go over it.
        process: The worker, if it was started by this process; its standard error is a pipe.
        remote: The worker, if it was started through somebody who watches it.
    """

    rank: int
    commands: socket.socket
    health: socket.socket
    process: subprocess.Popen[bytes] | None = None
    remote: RemoteProcess | None = None


def spawn(module: str, rank: int) -> Endpoint:
    """Start a worker on this machine: `main(COMMANDS, HEALTH)` of a module, two numbers of sockets.

    The kernel kills it when the thread that called this ends (`lifeline.die_with_parent`).

    Args:
        module: What it runs.
        rank: What to call it here; it is told by its first command.
    """
    commands, their_commands = socket.socketpair()
    health, their_health = socket.socketpair()
    with their_commands, their_health:
        fds = (their_commands.fileno(), their_health.fileno())
        process = subprocess.Popen(
            command(module, *fds), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, pass_fds=fds
        )
    return Endpoint(rank, commands, health, process)


class _Name(msgspec.Struct, frozen=True, array_like=True):
    """The first frame of a connection to a `Door`."""

    secret: str
    rank: int
    is_health: bool


class Door:
    """Where workers that others started come in.

    Args:
        host: Address to listen on, one that they can reach.

    Attributes:
        address: "host:port".
        secret: Who does not know it is turned away.
    """

    def __init__(self, host: str) -> None:
        self._socket = socket.create_server((host, 0))
        self.address = f"{host}:{self._socket.getsockname()[1]}"
        self.secret = secrets.token_hex(16)

    def admit(
        self, ranks: set[int], timeout_s: float, problem: Callable[[], str | None] = lambda: None
    ) -> list[Endpoint]:
        """Wait for both connections of each rank.

        Args:
            ranks: Who is expected.
            timeout_s: Most seconds to wait.
            problem: Says why a rank will never come, None if all may; asked every second.

        Raises:
            WorkerError: Not all came in time; the message names those who did not.
        """
        deadline_s, found = time.monotonic() + timeout_s, dict[tuple[int, bool], socket.socket]()
        while len(found) < 2 * len(ranks):
            self._socket.settimeout(min(1.0, max(0.001, deadline_s - time.monotonic())))
            try:
                sock, _ = self._socket.accept()
            except TimeoutError:
                if (told := problem()) is not None:
                    raise WorkerError(told) from None
                if time.monotonic() < deadline_s:
                    continue
                missing = sorted(rank for rank in ranks if (rank, False) not in found or (rank, True) not in found)
                raise WorkerError(
                    f"ranks {', '.join(map(str, missing))}: expected them to reach {self.address} within "
                    f"{timeout_s:g} s, got nothing of them. Look at what started them."
                ) from None
            name = self._name_of(sock)
            if name is None or name.rank not in ranks or (name.rank, name.is_health) in found:
                sock.close()
            else:
                found[name.rank, name.is_health] = sock
        return [Endpoint(rank, found[rank, False], found[rank, True]) for rank in sorted(ranks)]

    def close(self) -> None:
        """Let nobody in any more."""
        self._socket.close()

    def _name_of(self, sock: socket.socket) -> _Name | None:
        """Return who connects, None if it does not know the secret."""
        sock.settimeout(_KNOCK_TIMEOUT_S)
        try:
            length = int.from_bytes(sock.recv(4, socket.MSG_WAITALL), "big")
            name = msgspec.msgpack.decode(sock.recv(min(length, 256), socket.MSG_WAITALL), type=_Name)
        except (OSError, msgspec.DecodeError):
            return None
        sock.settimeout(None)
        return name if hmac.compare_digest(name.secret.encode(), self.secret.encode()) else None


def knock(address: str, secret: str, rank: int) -> tuple[Channel, Channel]:
    """Connect to a driver's `Door`; return the channels for commands and for health.

    Args:
        address: Its "host:port".
        secret: Its secret.
        rank: Who this is.

    Raises:
        ChannelError: It cannot be reached.
    """
    host, _, port = address.rpartition(":")
    channels = []
    for is_health in (False, True):
        try:
            sock = socket.create_connection((host, int(port)), _KNOCK_TIMEOUT_S)
            sock.settimeout(None)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(pack_frame(msgspec.msgpack.encode(_Name(secret, rank, is_health))))
        except OSError as error:
            raise ChannelError(f"driver at {address}: expected it to let rank {rank} in, got: {error}.") from None
        channels.append(Channel(sock))
    return channels[0], channels[1]
