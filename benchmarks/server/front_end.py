"""The front end's ceiling: requests and streamed tokens per second of one server process, its engine being instant.

    python -m benchmarks.server.front_end [--seconds 4] [--no-save]

The server is the real one, down to the socket of its engine process, which computes nothing; the load comes from this
process, in a closed loop over a fixed number of connections. Each figure is given by the wall clock, and by processor
time of the server process alone: where the three processes share few cores, the second is what one core would do.
An instant engine is far ahead of its readers, who then get many tokens in an event; so the last case has one that takes
10 ms for a step, and enough streams that an event for each token is more than the server can do. Short runs under a
profiler name what costs the most.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import os
import pstats
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from benchmarks.record import record
from benchmarks.server.stand_in_engine import STEP_VARIABLE
from quire.cli.load.http_client import HttpClient
from quire.core import log
from quire.core.server_config import ServerConfig
from quire.server.app import build_app
from quire.server.engine.async_engine import AsyncEngine
from quire.server.engine.child import EngineChild
from quire.server.http.auth import Keys
from quire.server.http.gate import Gate
from quire.server.http.lifecycle import Drain
from quire.server.http.limits import Limits
from quire.server.http.listening import bind, url
from quire.server.http.serving import serve

PROMPT = "Once upon a time there was a girl who lived in a small house beside the sea, and every day she"
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Case:
    """What is asked, over how many connections."""

    name: str
    path: str
    body: dict[str, object] | None
    num_connections: int
    num_tokens: int


_ASK = {"temperature": 0, "ignore_eos": True}
_TEXT = {"prompt": PROMPT, **_ASK}
_TALK = {"messages": [{"role": "user", "content": PROMPT}], **_ASK}
_STREAM = {"max_tokens": 256, "stream": True, **_TEXT}
CASES = (
    Case("http", "/health/live", None, 32, 0),
    Case("completions_1_token", "/v1/completions", {"max_tokens": 1, **_TEXT}, 32, 1),
    Case("chat_16_tokens", "/v1/chat/completions", {"max_tokens": 16, **_TALK}, 32, 16),
    Case("stream_256_tokens", "/v1/completions", _STREAM, 32, 256),
)
PACED = Case("stream_256_tokens_paced", "/v1/completions", _STREAM, 256, 256)
STEP_S = 0.01


class StandInChild(EngineChild):
    """The process that computes nothing."""

    module = "benchmarks.server.stand_in_engine"


class FrontEnd(AsyncEngine):
    """The real engine client, with that process behind it."""

    child_class = StandInChild


def serve_stand_in(profile: Path | None) -> None:
    """Serve until SIGTERM; write a profile if asked to."""
    log.configure()
    config = ServerConfig(port=0, max_num_waiting=1 << 16, max_waiting_tokens=1 << 30)
    engine, keys, bound = FrontEnd("quire-tiny", server=config), Keys(()), bind(config)

    def make_app(drain: Drain) -> Gate:
        return build_app(engine, config, keys, drain, engine.metrics_text)

    def run() -> None:
        serve(engine, config, make_app, bound, Limits(), lambda *_: None, lambda: print(url(config, bound), flush=True))

    if profile is None:
        run()
        return
    profiler = cProfile.Profile(time.process_time)  # not the wall clock: waiting costs nothing
    profiler.runcall(run)
    profiler.dump_stats(profile)


@contextmanager
def running(step_s: float = 0.0, profile: Path | None = None) -> Iterator[tuple[str, int]]:
    """Run that server as a process of its own, with steps of at least `step_s`; yields URL and process id."""
    command = [sys.executable, "-m", "benchmarks.server.front_end", "--serve"]
    command += ["--profile", str(profile)] if profile else []
    env = {**os.environ, STEP_VARIABLE: str(step_s)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env)
    assert process.stdout is not None, "the server's output is a pipe"
    try:
        yield process.stdout.readline().strip(), process.pid
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


async def drive(base_url: str, case: Case, seconds: float) -> tuple[int, int]:
    """Ask in a closed loop; returns how many requests were answered, and how many events came."""
    client = HttpClient(base_url)
    body = b"" if case.body is None else msgspec.json.encode(case.body)
    data = client.compose("POST" if body else "GET", case.path, body)
    until_s, num_done, num_events = time.perf_counter() + seconds, 0, 0

    def take(_event: bytes) -> None:
        nonlocal num_events
        num_events += 1

    async def ask() -> None:
        nonlocal num_done
        while time.perf_counter() < until_s:
            status, answer = await client.send(data, take)
            assert status == 200, (status, answer[:300])
            num_done += 1

    await asyncio.gather(*(ask() for _ in range(case.num_connections)))
    client.close()
    return num_done, num_events


def measure(base_url: str, pid: int, case: Case, seconds: float, note: Callable[..., None]) -> None:
    """Measure one case and print it."""
    asyncio.run(drive(base_url, case, min(1.0, seconds / 2)))
    before_s, start_s, own_s = cpu_seconds(pid), time.perf_counter(), time.process_time()
    num_done, num_events = asyncio.run(drive(base_url, case, seconds))
    wall_s, cpu_s = time.perf_counter() - start_s, cpu_seconds(pid) - before_s
    own_s = time.process_time() - own_s
    counts = {"requests": num_done, "tokens": num_done * case.num_tokens, "events": num_events}
    for what, count in counts.items():
        if count and (what != "tokens" or case.num_tokens > 1):
            note(f"front_end.{case.name}.{what}", f"{what}/s", [count / wall_s])
            note(f"front_end.{case.name}.{what}_per_cpu_s", f"{what}/cpu s", [count / cpu_s])
    print(f"    server {cpu_s / wall_s:.0%} of a core, client {own_s / wall_s:.0%}")


def explain(path: Path, top: int = 14) -> None:
    """Print where a profiled server spent its time: by function, and by part of the program."""
    stats = pstats.Stats(str(path))
    entries = stats.stats  # type: ignore[attr-defined]
    total_s = sum(entry[2] for entry in entries.values())
    parts: dict[str, float] = {}
    for (file, _, function), (_, _, own_s, _, _) in entries.items():
        found = re.search(r"(quire/\w+/(?:\w+/)?\w+|(?<=site-packages/)\w+|(?<=python3\.\d\d/)(?!site)\w+)", file)
        name = found[1] if found else function
        parts[name] = parts.get(name, 0.0) + own_s
    for name, own_s in sorted(parts.items(), key=lambda item: -item[1])[:top]:
        print(f"    {own_s / total_s:6.1%}  {name}")
    print("  functions, with what they call:")
    ours = [(cumulative_s, file, function) for (file, _, function), (_, _, _, cumulative_s, _) in entries.items()
            if "quire/server" in file or "quire/engine" in file]  # fmt: skip
    for cumulative_s, file, function in sorted(ours, reverse=True)[: 2 * top]:
        print(f"    {cumulative_s / total_s:6.1%}  {Path(file).stem}.{function}")


def main() -> None:
    """Measure all cases, then profile some."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--no-save", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--profile", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve_stand_in(options.profile)
        return
    for step_s, cases in ((0.0, CASES), (STEP_S, (PACED,))):
        with running(step_s) as (base_url, pid):
            for case in cases:
                measure(base_url, pid, case, options.seconds, partial(record, save=not options.no_save))
    for step_s, case in ((0.0, CASES[1]), (STEP_S, PACED)):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "profile"
            with running(step_s, path) as (base_url, _):
                asyncio.run(drive(base_url, case, options.seconds))
            print(f"  {case.name}: share of the server's processor time under the profiler")
            explain(path)


if __name__ == "__main__":
    main()
