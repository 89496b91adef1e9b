"""Time of one sampling step on this machine.

    scripts/bench sampling [--rows 1 64 256] [--logits peaked wide flat] [--vocab-size 32000]

The price of top_p depends on how many tokens it keeps, so logits come in three shapes: as in the middle of a sentence
("peaked"), at its start ("wide"), and from a model at a loss ("flat").
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.record import record
from quire.core.sampling_params import SamplingParams
from quire.sampling.row import SamplingRow
from quire.sampling.sampler import sample

SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "greedy, logprobs=5": {"temperature": 0.0, "logprobs": 5},
    "temperature": {"temperature": 0.8},
    "top_p=0.95, temperature=0.8": {"temperature": 0.8, "top_p": 0.95},
    "top_k=50": {"top_k": 50},
    "top_k=20, top_p=0.8, temperature=0.7": {"temperature": 0.7, "top_k": 20, "top_p": 0.8},
    "min_p=0.05": {"min_p": 0.05},
    "greedy, repetition_penalty=1.05": {"temperature": 0.0, "repetition_penalty": 1.05},
    "three penalties": {"repetition_penalty": 1.05, "frequency_penalty": 0.5, "presence_penalty": 0.5},
}
# Standard deviation of the logits. With top_p=0.95 and temperature=0.8, of 32,000 tokens 3-70, 75-500 and 6,000 stay.
SPREADS = {"peaked": 5.0, "wide": 3.5, "flat": 2.0}
NUM_PROMPT_TOKENS, NUM_OUTPUT_TOKENS = 512, 256


def main() -> None:
    """Parse the command line, run every combination, record the times."""
    parser = argparse.ArgumentParser(description="Time of one sampling step.")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--logits", choices=SPREADS, nargs="+", default=["peaked"])
    parser.add_argument("--vocab-size", type=int, default=32000)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    for shape in args.logits:
        for num_rows in args.rows:
            for name, params in SETTINGS.items():
                logits, rows = make_batch(num_rows, args.vocab_size, args.dtype, SPREADS[shape], params)
                times = milliseconds(partial(sample, logits, rows), args.repeats)
                record(f"sampling_step.{num_rows}x{args.vocab_size}.{shape}.{name}", "ms", times)


def make_batch(
    num_rows: int, vocab_size: int, dtype: str, spread: float, params: dict[str, Any]
) -> tuple[torch.Tensor, list[SamplingRow]]:
    """Return seeded logits and rows with a history."""
    generator = torch.Generator().manual_seed(num_rows)
    logits = (torch.randn(num_rows, vocab_size, generator=generator) * spread).to(getattr(torch, dtype))
    history = torch.randint(vocab_size, (num_rows, NUM_PROMPT_TOKENS + NUM_OUTPUT_TOKENS), generator=generator).tolist()
    rows = [
        SamplingRow(SamplingParams(seed=seed, **params), ids[:NUM_PROMPT_TOKENS], ids[NUM_PROMPT_TOKENS:])
        for seed, ids in enumerate(history)
    ]
    return logits, rows


def milliseconds(step: Callable[[], object], repeats: int) -> list[float]:
    """Return the times of `repeats` runs after one to warm up."""
    step()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        times.append((time.perf_counter() - start) * 1e3)
    return times


if __name__ == "__main__":
    main()
