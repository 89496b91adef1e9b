"""Compiled sampling beside torch's, a whole step each: milliseconds.

OMP_NUM_THREADS=2 python -m benchmarks.cpu.bench_sampling [--rows 1 64] [--vocab-size 32000] [--logits peaked wide flat]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.cpu.timing import microseconds, read_bandwidth
from benchmarks.sampling import SETTINGS, SPREADS, make_batch
from quire.sampling import compiled
from quire.sampling.sampler import sample


def main() -> None:
    """Parse the command line and print a line for each combination."""
    parser = argparse.ArgumentParser(description="Compiled sampling beside torch's.")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--logits", choices=SPREADS, nargs="+", default=["peaked"])
    parser.add_argument("--vocab-size", type=int, default=32000)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    args = parser.parse_args()
    print(f"reads {read_bandwidth() / 1e9:.1f} GB/s with {torch.get_num_threads()} threads")
    for shape in args.logits:
        for num_rows in args.rows:
            for name, params in SETTINGS.items():
                logits, rows = make_batch(num_rows, args.vocab_size, args.dtype, SPREADS[shape], params)
                own, other = both(partial(sample, logits, rows))
                print(f"{num_rows:4} x {args.vocab_size} {shape:>6}, {name:>38}: {own / 1e3:8.3f} ms, "
                      f"{other / own:5.2f} x as fast as torch ({other / 1e3:.3f} ms)")  # fmt: skip


def both(step: Callable[[], object]) -> list[float]:
    """Return the time of a step by kernels, and by torch alone."""
    is_compiled = compiled.is_compiled

    def by_torch() -> None:
        compiled.is_compiled = lambda device: False
        try:
            step()
        finally:
            compiled.is_compiled = is_compiled

    return microseconds([step, by_torch], 7)


if __name__ == "__main__":
    main()
