"""What a server does with more than it can: goodput, refusals and memory at 0.5, 1, 2 and 5 times its capacity.

    python -m benchmarks.server.overload [--seconds 10] [--no-save]

The server is `quire serve quire-tiny` as users run it; capacity is what it answers in a closed loop with as many
requests at a time as it has seats. Loads are open, with Poisson arrivals, from a process of their own, so that three
processes share the machine's cores. A request is good if it was answered whole within `SLO_E2E_MS`.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.record import record
from quire.cli.load.measure import measure
from quire.cli.load.settings import LoadConfig
from quire.cli.load.summary import summarize

FACTORS = (0.5, 1.0, 2.0, 5.0)
NUM_SEATS = 16
INPUT_LEN, OUTPUT_LEN = 64, 32
SLO_E2E_MS = 5000.0
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one load came to.

    Attributes:
        factor: Of capacity.
        goodput: Good requests per second.
        share_rejected: Of all requests.
        rejection_p99_ms: From sending a request to its 429; None if none was refused.
        failed: Requests that neither went well nor were refused, by kind.
        rss_bytes: Of the server and its engine process after the load.
        e2e_p99_ms: Of requests that went well.
        client_share: Of a core that the generator took.
    """

    factor: float
    goodput: float
    share_rejected: float
    rejection_p99_ms: float | None
    failed: dict[str, int]
    rss_bytes: int
    e2e_p99_ms: float
    client_share: float


@contextmanager
def running() -> Iterator[tuple[str, int]]:
    """Run the server; yields its URL and process id."""
    command = [sys.executable, "-m", "quire", "serve", "quire-tiny", "--port", "0", "--max-num-seqs", str(NUM_SEATS)]
    process = subprocess.Popen([*command, "--no-standby"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None, "the server's output is a pipe"
    try:
        yield next(found[1] for line in process.stdout if (found := re.match(r"serving +(\S+)/v1", line))), process.pid
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def rss_bytes(pid: int) -> int:
    """Return the resident bytes of a process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    pages = (Path(f"/proc/{one}/statm").read_text(encoding="ascii").split()[1] for one in [str(pid), *children])
    return sum(map(int, pages)) * _PAGE_BYTES


def load(base_url: str, **settings: Any) -> dict[str, Any]:
    """Put a load on the server; returns its summary."""
    config = LoadConfig(input_len=INPUT_LEN, output_len=OUTPUT_LEN, slo_e2e_ms=SLO_E2E_MS, timeout_s=60, **settings)
    return summarize(asyncio.run(measure(base_url, config)), config, base_url)


def capacity(base_url: str, num_requests: int) -> float:
    """Return how many requests a second are answered when all seats are taken all the time."""
    found = load(base_url, rate=math.inf, num_requests=num_requests, max_concurrency=NUM_SEATS)
    assert found["num_ok"] == num_requests, f"expected answers only, got {found['errors']}"
    return float(found["requests_per_s"])


def overload(base_url: str, pid: int, rate: float, factor: float, seconds: float) -> Outcome:
    """Put `factor` times the rate on the server."""
    found = load(base_url, rate=rate * factor, duration_s=seconds, seed=round(10 * factor))
    rejection = found["rejection_ms"]
    return Outcome(
        factor,
        found["good_requests_per_s"],
        found["num_rejected"] / found["num_requests"],
        None if rejection is None else rejection["p99"],
        found["errors"],
        rss_bytes(pid),
        found["e2e_ms"]["p99"],
        found["client"]["cpu_share"],
    )


def main() -> None:
    """Measure all loads, and record them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args()
    save = not options.no_save
    with running() as (base_url, pid):
        capacity(base_url, 4 * NUM_SEATS)
        rate = capacity(base_url, 16 * NUM_SEATS)
        record("overload.capacity", "requests/s", [rate], save=save)
        for factor in FACTORS:
            found = overload(base_url, pid, rate, factor, options.seconds)
            name = f"overload.{factor:g}x"
            record(f"{name}.goodput", "requests/s", [found.goodput], save=save)
            record(f"{name}.memory", "MiB", [found.rss_bytes / 2**20], save=save)
            if found.rejection_p99_ms is not None:
                record(f"{name}.rejection_p99", "ms", [found.rejection_p99_ms], save=save)
            print(f"    {found}")


if __name__ == "__main__":
    main()
