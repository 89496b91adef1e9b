"""What deciding a step costs: `schedule` plus `update` with every seat decoding, in milliseconds.

The model is not there: results are made outside the measured time. Target: p50 of at most 1 ms for 256 rows on one
slow core. Run with `scripts/bench scheduler [num_rows ...]`.
"""

from __future__ import annotations

import sys
import time

from benchmarks.record import record
from quire.core.config import SchedulerConfig
from quire.core.request import ModelOutput, Request, RowOutput, SchedulerOutput
from quire.core.sampling_params import SamplingParams
from quire.scheduler.scheduler import Scheduler

PROMPT_TOKENS = 100
WARM_STEPS = 50
STEPS = 600


def full_scheduler(num_rows: int) -> Scheduler:
    """Return a scheduler whose `num_rows` seats are all taken by rows with a computed prompt."""
    length = PROMPT_TOKENS + WARM_STEPS + STEPS + 16
    config = SchedulerConfig(
        max_model_len=length,
        max_num_seqs=num_rows,
        max_num_batched_tokens=num_rows * PROMPT_TOKENS,
        block_size=16,
        num_blocks=num_rows * (length // 16 + 1) + 1,
    )
    scheduler = Scheduler(config)
    for row in range(num_rows):
        prompt = tuple((row * 7919 + position * 31) % 32000 for position in range(PROMPT_TOKENS))
        params = SamplingParams(max_tokens=length, seed=row)
        scheduler.add(Request(f"request-{row}", prompt, params, eos_token_ids=frozenset({32001})))
    while scheduler.num_waiting:
        scheduled = scheduler.schedule()
        scheduler.update(scheduled, answer(scheduled, 0))
    return scheduler


def answer(scheduled: SchedulerOutput, step: int) -> ModelOutput:
    """Return one token for each sampled row."""
    tokens = (step * 17 % 32000,)
    return ModelOutput(tuple(RowOutput(row.row_id, tokens if row.is_sampled else ()) for row in scheduled.rows))


def measure(num_rows: int) -> list[float]:
    """Return the milliseconds that each warm step spent in the scheduler."""
    scheduler = full_scheduler(num_rows)
    times = []
    for step in range(WARM_STEPS + STEPS):
        start = time.perf_counter()
        scheduled = scheduler.schedule()
        pause = time.perf_counter()
        output = answer(scheduled, step)
        resume = time.perf_counter()
        updates = scheduler.update(scheduled, output)
        times.append((pause - start + time.perf_counter() - resume) * 1e3)
        assert len(updates) == num_rows
    scheduler.check_integrity()
    return times[WARM_STEPS:]


def main() -> None:
    """Record the time of a step for each number of rows."""
    for num_rows in [int(word) for word in sys.argv[1:]] or [1, 16, 64, 256, 1024]:
        record(f"scheduler_step.{num_rows}_rows", "ms", measure(num_rows))


if __name__ == "__main__":
    main()
