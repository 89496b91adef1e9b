"""`quire serve` as a process of its own, as users run it, on a free port."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

ROOT = Path(__file__).parents[2]
START_S = 60


@dataclass
class ServerProcess:
    """A running server: its process, port and log."""

    process: subprocess.Popen
    port: int
    log: Path
    key: str | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self, timeout_s: float = 20.0) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout_s)

    def send(self, data: bytes, timeout_s: float = 20.0) -> bytes:
        """Send bytes on a new connection; return what comes until the server closes it."""
        with closing(self.connect(timeout_s)) as sock:
            with suppress(OSError):  # refused while it was still being sent; the answer is there all the same
                sock.sendall(data)
            return read_all(sock)

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Send a request of its own; return its status and its answer's body."""
        return status_and_body(self.send(request(method, path, body, {**self.auth(), **(headers or {})})))

    def post(self, path: str, body: object) -> tuple[int, dict]:
        """Post JSON; return the status and the answer."""
        status, answer = self.ask("POST", path, msgspec.json.encode(body))
        return status, msgspec.json.decode(answer)

    def auth(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"} if self.key else {}

    def metric(self, name: str) -> float:
        """The value of a metric without labels but model and engine, summed over engines."""
        text = self.ask("GET", "/metrics")[1].decode()
        return sum(map(float, re.findall(rf"^quire:{name}{{[^}}]*}} (\S+)$", text, re.M)))

    def until_idle(self, timeout_s: float = 5.0) -> float:
        """Wait until no request runs and all blocks are free; return the seconds that took."""
        start = time.monotonic()
        while any(
            self.metric(name) for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        ):
            assert time.monotonic() - start < timeout_s, "blocks are still held"
            time.sleep(0.02)
        return time.monotonic() - start


@contextmanager
def serving(
    *options: str, limits: dict[str, float] | None = None, key: str | None = None, module: str = ""
) -> Iterator[ServerProcess]:
    """Run a server on quire-tiny until the block ends; it must end with exit code 0 unless the block has ended it."""
    command = [sys.executable, "-m", "quire", "serve"]
    if limits is not None:
        command = [sys.executable, "-m", "tests.support.serve_with_limits", msgspec.json.encode(limits).decode()]
    if module:
        command = [sys.executable, "-m", module]
    standby = () if "--standby" in options else ("--no-standby",)  # another process: only for who asks for it
    command += ["quire-tiny", "--port", "0", "--max-model-len", "512", "--max-num-seqs", "64", *standby, *options]
    if key is not None:
        command += ["--api-key", key]
    paths = f"{ROOT / 'src'}{os.pathsep}{ROOT}"
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as errors:
            env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
            process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            yield ServerProcess(process, _port(process, log), log, key)
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                assert process.wait(20) == 0, log.read_text()[-3000:]
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def _port(process: subprocess.Popen, log: Path) -> int:
    """Wait for the line that says where it serves."""
    for line in process.stdout:
        if found := re.match(r"serving +http://[^:]+:(\d+)/v1", line):
            return int(found[1])
    raise AssertionError(f"the server ended: {log.read_text()[-3000:]}")


def request(method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> bytes:
    """Return a request of HTTP/1.1 after which the connection is closed."""
    lines = {"host": "test", "connection": "close", "content-length": str(len(body)), **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value is not None)
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body


def read_all(sock: socket.socket) -> bytes:
    """Read until the other end closes."""
    parts = []
    with suppress(ConnectionResetError):
        while part := sock.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def read_until(sock: socket.socket, mark: bytes) -> bytes:
    """Read until a mark has come."""
    got = b""
    while mark not in got:
        part = sock.recv(1 << 16)
        assert part, got[-500:]
        got += part
    return got


def status_and_body(answer: bytes) -> tuple[int, bytes]:
    """Take an answer apart; chunks are joined."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 "), answer[:200]
    if b"transfer-encoding: chunked" in head.lower():
        parts = []
        while body:
            size, _, body = body.partition(b"\r\n")
            parts.append(body[: int(size, 16)])
            body = body[int(size, 16) + 2 :]
        body = b"".join(parts)
    return int(head[9:12]), body


def events(body: bytes) -> list:
    """Return the JSON of a stream's events; the mark of its end as text."""
    data = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: ")]
    return [msgspec.json.decode(item) if item != b"[DONE]" else "[DONE]" for item in data]
