"""`Starter`: the process that Ray starts on a host of a cluster. It starts workers there, and tells how they fare."""

from __future__ import annotations

import fcntl
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from quire.core import env

_NUM_LINES = 20
_LAST_LINES_S = 1.0  # for what a worker has written to be read, once it has ended
_SIOCGIFADDR = 0x8915  # linux/sockios.h


@dataclass(frozen=True, slots=True)
class Host:
    """Where a starter runs.

    Attributes:
        node: Ray's name of it; two may be on one machine.
        address: Its address in the cluster.
    """

    node: str
    address: str


@dataclass(slots=True)
class _Child:
    process: subprocess.Popen[bytes]
    lines: deque[str]
    reader: threading.Thread


class Starter:
    """Owns the workers that it has started. Ray makes it, and calls one method at a time.

    Args:
        host: Where it runs; None asks Ray.
    """

    def __init__(self, host: Host | None = None) -> None:
        self._host = host or this_host()
        self._children: dict[int, _Child] = {}
        self._published: list[Path] = []

    def host(self) -> Host:
        """Return where this is."""
        return self._host

    def start(self, rank: int, arguments: Sequence[str], secret: str, variables: Mapping[str, str]) -> None:
        """Start a worker: `python -m ARGUMENTS`.

        Args:
            rank: Which it is.
            arguments: A module, and what it is given.
            secret: A line for its standard input, where no other user reads it.
            variables: Of its environment, beside those of this process.
        """
        interface = interface_of(self._host.address)
        sockets = {} if interface is None else {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
        command = [sys.executable, "-P", "-m", *arguments]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env.child_environment({**sockets, **variables}),
        )
        assert process.stdin is not None, "it is a pipe"
        with process.stdin as pipe, suppress(BrokenPipeError):  # it has ended; its exit code is told when asked for
            pipe.write(secret.encode() + b"\n")
        lines: deque[str] = deque(maxlen=_NUM_LINES)
        reader = threading.Thread(target=_read_log, args=(rank, process, lines), daemon=True)
        reader.start()
        self._children[rank] = _Child(process, lines, reader)

    def last_words(self, rank: int) -> tuple[int | None, list[str]]:
        """Return a worker's exit code, None if it lives, and the last lines that it wrote."""
        child = self._children[rank]
        code = child.process.poll()
        if code is not None:
            child.reader.join(_LAST_LINES_S)
        return code, list(child.lines)

    def has(self, directory: str) -> bool:
        """Return whether a directory is there."""
        return Path(directory).exists()

    def publish(self, directory: str, files: Mapping[str, bytes]) -> None:
        """Make a directory, which `end` removes.

        Args:
            directory: Absolute path.
            files: What is in it, by path below it.
        """
        root = Path(directory)
        self._published.append(root)
        for name, content in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)

    def end(self, timeout_s: float) -> None:
        """Wait for all workers to end, and kill those that do not in time."""
        until_s = time.monotonic() + timeout_s
        for child in self._children.values():
            with suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, until_s - time.monotonic()))
            child.process.kill()
            child.process.wait()
            child.reader.join(_LAST_LINES_S)
        for path in self._published:
            shutil.rmtree(path, ignore_errors=True)


def interface_of(address: str) -> str | None:
    """Return the network interface that has an IPv4 address; None if none has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has none
                found = fcntl.ioctl(sock.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                if socket.inet_ntoa(found[20:24]) == address:
                    return name
    return None


def this_host() -> Host:
    """Return where this process is, which Ray has started, or which has joined its cluster."""
    import ray

    node, nodes = ray.get_runtime_context().get_node_id(), cast(Any, ray.nodes)()
    return Host(node, next(str(each["NodeManagerAddress"]) for each in nodes if each["NodeID"] == node))


def _read_log(rank: int, process: subprocess.Popen[bytes], lines: deque[str]) -> None:
    """Keep the last lines, and pass all on to Ray's log, which shows them to the driver."""
    assert process.stderr is not None, "it is a pipe"
    with process.stderr as pipe:
        for line in pipe:
            text = line.decode(errors="replace").rstrip("\n")
            lines.append(text)
            print(f"[rank {rank}] {text}", file=sys.stderr, flush=True)
