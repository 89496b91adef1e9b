"""Several engines behind one door against one: throughput, and how much of conversations is found in prefix caches.

    python -m benchmarks.server.replicas [--replicas 1 2] [--no-save]

Each server has the whole machine, so N engines have an Nth of its cores each. Two loads: requests without a common
prefix, all at once, by the machinery of `quire bench serve`; and conversations, each in a closed loop, whose prompts
are all that was said before and some more words. What the router itself costs is measured without a server.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import msgspec

from benchmarks.record import record
from quire.cli.load.http_client import HttpClient
from quire.cli.load.measure import measure
from quire.cli.load.settings import LoadConfig
from quire.cli.load.summary import summarize
from quire.core.request import Request
from quire.core.sampling_params import SamplingParams
from quire.server.engine.router import Router, prefix_keys

LOAD = LoadConfig(rate=float("inf"), num_requests=64, input_len=64, output_len=64)
NUM_CONVERSATIONS, NUM_TURNS, WORDS_A_TURN, ANSWER_TOKENS = 12, 6, 40, 16
_WORDS = (
    "the",
    "sea",
    "was",
    "calm",
    "and",
    "a",
    "small",
    "boat",
    "went",
    "out",
    "to",
    "find",
    "what",
    "nobody",
    "had",
)
_BLOCK_SIZE = 16


@contextmanager
def serving(num_replicas: int) -> Iterator[str]:
    """Run a server; yields its URL."""
    command = [sys.executable, "-m", "quire", "serve", "quire-tiny", "--port", "0", "--no-standby"]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    process = subprocess.Popen([*command, "--replicas", str(num_replicas)], env=environment, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)  # fmt: skip
    assert process.stdout is not None, "it is a pipe"
    try:
        yield next(line.split()[1][: -len("/v1")] for line in process.stdout if line.startswith("serving"))
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


async def converse(base_url: str) -> tuple[float, float]:
    """Hold all conversations; returns turns per second, and the share of prompt tokens that were found in a cache."""
    client, words = HttpClient(base_url), random.Random(0)

    async def talk(number: int) -> None:
        said = f"{number}:"
        for _ in range(NUM_TURNS):
            said += " " + " ".join(words.choices(_WORDS, k=WORDS_A_TURN))
            asked = {"prompt": said, "max_tokens": ANSWER_TOKENS, "temperature": 0, "ignore_eos": True}
            status, answer = await client.send(client.compose("POST", "/v1/completions", msgspec.json.encode(asked)))
            assert status == 200, answer
            said += msgspec.json.decode(answer)["choices"][0]["text"]

    async def count(name: str) -> float:
        _, text = await client.send(client.compose("GET", "/metrics"))
        return sum(map(float, re.findall(rf"^quire:prefix_cache_{name}_total{{[^}}]*}} (\S+)$", text.decode(), re.M)))

    before = await count("hits"), await count("queries")
    began_s = time.perf_counter()
    await asyncio.gather(*map(talk, range(NUM_CONVERSATIONS)))
    seconds = time.perf_counter() - began_s
    hits, queries = (await count("hits") - before[0]), (await count("queries") - before[1])
    client.close()
    return NUM_CONVERSATIONS * NUM_TURNS / seconds, hits / queries


def measure_router(num_engines: int, num_tokens: int, note: Callable[..., None]) -> None:
    """Time what a request costs at the router: the keys of its prompt, and the choice."""
    router = Router(_BLOCK_SIZE)
    for engine in range(num_engines):
        router.open(engine, 1 << 16)
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(200):
        ids = tuple(range(number % 20, number % 20 + num_tokens))
        request = Request(str(number), ids, SamplingParams(max_tokens=64))
        began_s = time.perf_counter()
        keys = prefix_keys(ids, _BLOCK_SIZE, "")
        keyed_s = time.perf_counter()
        router.choose(request, keys, range(num_engines))
        times[0].append((keyed_s - began_s) * 1e6)
        times[1].append((time.perf_counter() - keyed_s) * 1e6)
        router.end(str(number))
    note(f"router.{num_engines}_engines.{num_tokens}_tokens.keys", "us", times[0])
    note(f"router.{num_engines}_engines.{num_tokens}_tokens.choose", "us", times[1])


def main() -> None:
    """Measure each number of replicas."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--replicas", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args()
    note = partial(record, save=not options.no_save)
    for num_tokens in (512, 8192):
        measure_router(8, num_tokens, note)
    for count in options.replicas:
        with serving(count) as base_url:
            asyncio.run(measure(base_url, LOAD))  # warms up
            result = summarize(asyncio.run(measure(base_url, LOAD)), LOAD, base_url)
            note(f"replicas.{count}.offline_64.output", "tokens/s", [result["output_tokens_per_s"]])
            note(f"replicas.{count}.offline_64.ttft_p99", "ms", [result["ttft_ms"]["p99"]])
            turns_per_s, hit_share = asyncio.run(converse(base_url))
            note(f"replicas.{count}.conversations.turns", "turns/s", [turns_per_s])
            note(f"replicas.{count}.conversations.prefix_hits", "%", [100 * hit_share])


if __name__ == "__main__":
    main()
