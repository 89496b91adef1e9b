"""The CPU tactics that cost the most, alone, beside the machine's roof: linear layers and paged attention.

scripts/bench ops
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import torch

from benchmarks.record import record
from quire.ops.cpu import attention, linear
from quire.runner.device import measure_roof

# (in_features, out_features) of a 0.5B Llama: q, k and v, gate and up, down.
SHAPES = [(1024, 1024), (1024, 512), (1024, 4096), (4096, 1024)]
ROWS = (1, 16, 64, 512)
COLD_BYTES = 400_000_000  # enough different weights that none is still in a cache when it comes round again
HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE = 16, 8, 64, 16
# (sequences, queries each, context each)
BATCHES = [(1, 1, 1024), (64, 1, 256), (1, 1024, 1024)]


def seconds(run: Callable[[int], object], times: int, repeats: int = 5) -> list[float]:
    """Return the mean seconds of a call in each of several repeats of `times` calls."""
    run(0)
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        for i in range(times):
            run(i)
        found.append((time.perf_counter() - start) / times)
    return found


def bench_linear() -> None:
    """Record weight bandwidth and matmul rate of every shape and row count, with cold weights, in bf16."""
    for in_features, out_features in SHAPES:
        num_bytes = 2 * in_features * out_features
        count = max(2, COLD_BYTES // num_bytes)
        packed = [linear.pack(torch.randn(out_features, in_features).bfloat16()) for _ in range(count)]
        for rows in ROWS:
            x = torch.randn(rows, in_features).bfloat16()
            times = seconds(lambda i, x=x, packed=packed: linear.run(x, packed[i % len(packed)]), 40)  # type: ignore[misc]
            name = f"linear.{rows}x{in_features}x{out_features}.bf16"
            record(f"{name}.weights", "GB/s", [num_bytes / t / 1e9 for t in times])
            record(name, "GFLOP/s", [rows * num_bytes / t / 1e9 for t in times])


def bench_attention() -> None:
    """Record the time of one layer's attention, and the rate at which it reads the cache, in bf16."""
    for num_seqs, queries, context in BATCHES:
        blocks = -(-context // BLOCK_SIZE)
        table = torch.randperm(num_seqs * blocks, dtype=torch.int32).view(num_seqs, blocks) + 1
        cache = torch.randn(2, num_seqs * blocks + 1, KV_HEADS, BLOCK_SIZE, HEAD_DIM).bfloat16()
        query = torch.randn(num_seqs * queries, HEADS, HEAD_DIM).bfloat16()
        lens = torch.full((num_seqs,), context, dtype=torch.int32)
        starts = torch.tensor(list(itertools.accumulate([0] + [queries] * num_seqs)), dtype=torch.int32)
        args = (query, cache, table, lens, starts, HEAD_DIM**-0.5, None, None)
        cut = attention.tiles(*args)
        times = seconds(lambda i, args=args, cut=cut: attention.attention(*args, prepared=cut), 10)  # type: ignore[misc]
        name = f"attention.{num_seqs}x{queries}_of_{context}.bf16"
        record(name, "ms", [t * 1e3 for t in times])
        record(f"{name}.cache", "GB/s", [cache.nbytes / t / 1e9 for t in times])


def main() -> None:
    """Record all, and the roof they stand beside."""
    roof = measure_roof("bfloat16")
    record("roof.read", "GB/s", [roof.read_bytes_per_s / 1e9])
    record("roof.matmul.bf16", "GFLOP/s", [roof.flops / 1e9])
    bench_linear()
    bench_attention()


if __name__ == "__main__":
    main()
