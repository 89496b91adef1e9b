"""What it costs to have a step done by other processes: from a driver to its workers and back, in milliseconds.

The workers compute nothing: they take a step in and answer with a token for each row, as the rank that reports does. So
a round trip is all that several ranks add to a step of one, but for what they exchange among themselves. Target: p50 of
at most 0.5 ms for 256 rows.

    scripts/bench parallel [--rows 256] [--ranks 2] [--json]
"""

from __future__ import annotations

import argparse
import json
import socket
import time

import msgspec

from benchmarks.record import percentile, record
from quire.core.request import ModelOutput, RowOutput, ScheduledRow, SchedulerOutput
from quire.distributed.channel import Channel, ChannelError
from quire.distributed.endpoint import spawn
from quire.distributed.lifeline import answer_pings, die_with_parent
from quire.distributed.workers import WorkerGroup
from quire.runner.parallel.distributed_runner import DistributedRunner
from quire.runner.parallel.layout import Layout
from quire.runner.parallel.messages import Command, Ready, Result, Step, Work, encode

WARM_STEPS, STEPS = 50, 500


def step_of(num_rows: int, number: int) -> SchedulerOutput:
    """Return a step in which each row computes a token; one in sixteen gets a block."""
    rows = tuple(
        ScheduledRow(row, 100 + number, 1, (number * 64 + row,) if (number + row) % 16 == 0 else (), True)
        for row in range(num_rows)
    )
    return SchedulerOutput(rows, num_scheduled_tokens=num_rows)


def measure(num_rows: int, num_ranks: int) -> dict[str, list[float]]:
    """Return, in milliseconds, how long sending a step takes, how long it takes until its result is there, and for how
    long the driver computes meanwhile: that holds on a busy machine, too."""
    group = WorkerGroup(lambda: [spawn("benchmarks.parallel", rank) for rank in range(num_ranks)])
    runner = DistributedRunner(group, Layout(num_ranks, 1, num_ranks), 0, [Ready(0, 0, False)] * num_ranks)
    times: dict[str, list[float]] = {"send": [], "round_trip": [], "driver_cpu": []}
    try:
        for number in range(WARM_STEPS + STEPS):
            step, cpu, start = step_of(num_rows, number), time.process_time(), time.perf_counter()
            pending = runner.execute(step)
            sent = time.perf_counter()
            assert len(pending.result().rows) == num_rows
            times["send"].append(1e3 * (sent - start))
            times["round_trip"].append(1e3 * (time.perf_counter() - start))
            times["driver_cpu"].append(1e3 * (time.process_time() - cpu))
    finally:
        runner.close()
    return {name: values[WARM_STEPS:] for name, values in times.items()}


def work(commands_fd: str, health_fd: str) -> int:
    """Be a worker that computes nothing; the first answers."""
    die_with_parent()
    answer_pings(Channel(socket.socket(fileno=int(health_fd))), lambda: encode(Work(0, 0.0, 0, 0)))
    decoder = msgspec.msgpack.Decoder(Command)
    with Channel(socket.socket(fileno=int(commands_fd))) as channel:
        try:
            while True:
                for payload in channel.receive(is_waiting=True):
                    command = decoder.decode(payload)
                    assert isinstance(command, Step)
                    rows = tuple(RowOutput(row.row_id, (row.num_computed_tokens,)) for row in command.step.rows)
                    channel.send(encode(Result(ModelOutput(rows))))
        except ChannelError:
            return 0


def main(*sockets: str) -> int:
    """Record the times for one number of rows and ranks; given two sockets, be one of the workers."""
    if sockets:
        return work(*sockets)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print JSON, and record nothing")
    options = parser.parse_args()
    found = measure(options.rows, options.ranks)
    if options.json:
        print(
            json.dumps(
                {name: [percentile(values, share) for share in (0.2, 0.5, 0.8)] for name, values in found.items()}
            )
        )
        return 0
    for name, values in found.items():
        record(f"parallel_step.{name}.{options.rows}_rows.{options.ranks}_ranks", "ms", values)
    return 0


if __name__ == "__main__":
    main()
