"""What the load generator can drive: requests and events per second against a server that answers with fixed bytes.

    python -m benchmarks.server.load_client [--seconds 4] [--no-save]

Everything that `quire bench serve` does for a request is done, reading each event's JSON and noting its time included.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import multiprocessing
import socket
import time

from benchmarks.record import record
from quire.cli.load.measure import measure
from quire.cli.load.settings import LoadConfig

MODELS = b'{"object":"list","data":[{"id":"fixed","object":"model","max_model_len":4096}]}'
EVENT = (
    b'data: {"id":"cmpl-0123456789abcdef","object":"text_completion","created":1760000000,"model":"fixed",'
    b'"choices":[{"index":0,"text":" word","logprobs":null,"finish_reason":null}]}\n\n'
)
USAGE = b'data: {"id":"cmpl-0","choices":[],"usage":{"prompt_tokens":32,"completion_tokens":%d}}\n\ndata: [DONE]\n\n'
NUM_CONNECTIONS = 64


class Fixed(asyncio.Protocol):
    """Answers a completion with its events in one piece, everything else with a list of models."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._buffer = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found or len(body) < int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]):
            return
        self._buffer = b""
        listed = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(MODELS), MODELS)
        self._transport.write(self._answer if b"/completions" in head else listed)


def serve(bound: socket.socket, num_tokens: int) -> None:
    """Serve until killed."""
    parts = [EVENT] * num_tokens + [USAGE % num_tokens]
    body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in [*parts, b""])
    answer = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n" + body

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(lambda: Fixed(answer), sock=bound)
        await server.serve_forever()

    asyncio.run(run())


def drive(num_tokens: int, num_requests: int) -> tuple[float, float]:
    """Return requests by wall-clock second, and by second of this process's processor time."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        process = multiprocessing.get_context("fork").Process(target=serve, args=(bound, num_tokens), daemon=True)
        process.start()
        base_url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        config = LoadConfig(rate=math.inf, num_requests=num_requests, max_concurrency=NUM_CONNECTIONS, input_len=32)
        measured = asyncio.run(measure(base_url, config))
        process.kill()
        process.join()
    assert all(r.error is None and r.num_output_tokens == num_tokens for r in measured.records), "an answer was lost"
    wall_s = max(r.end_s for r in measured.records)
    return num_requests / wall_s, num_requests / (wall_s * measured.cpu_share)


def main() -> None:
    """Record the rates of short and of long answers."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args()
    for num_tokens in (1, 128):
        began_s = time.perf_counter()
        drive(num_tokens, 200)
        num_requests = max(200, int(200 * options.seconds / (time.perf_counter() - began_s)))
        by_wall, by_cpu = drive(num_tokens, num_requests)
        name = f"load_client.{num_tokens}_events"
        record(f"{name}.requests", "requests/s", [by_wall], save=not options.no_save)
        record(f"{name}.requests_per_cpu_s", "requests/cpu s", [by_cpu], save=not options.no_save)
        record(f"{name}.events_per_cpu_s", "events/cpu s", [by_cpu * num_tokens], save=not options.no_save)


if __name__ == "__main__":
    main()
