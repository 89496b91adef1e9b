"""Paged attention in compiled kernels, beside the tiles of `ops.cpu.attention` and a plain read of as many bytes.

python -m benchmarks.cpu.bench_attention
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import torch
from torch import Tensor

from quire.ops.cpu import attention as tiled
from quire.ops.native.attention import attention

HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE = 16, 8, 64, 16
SCALE = HEAD_DIM**-0.5
# Name, (queries, length) of each sequence, dtype of the cache, and how many first tokens are in the same blocks.
STEPS: list[tuple[str, list[tuple[int, int]], torch.dtype, int]] = [
    *((f"decode 64 x {length}", [(1, length)] * 64, torch.bfloat16, 0) for length in (512, 2048, 4096)),
    ("decode 64 x 2048 int8", [(1, 2048)] * 64, torch.int8, 0),
    ("decode 64 x 2048 float8", [(1, 2048)] * 64, torch.float8_e4m3fn, 0),
    ("decode 32 x 576", [(1, 576)] * 32, torch.bfloat16, 0),
    ("decode 32 x (512 + 64)", [(1, 576)] * 32, torch.bfloat16, 512),
    ("decode 1 x 2048", [(1, 2048)], torch.bfloat16, 0),
    ("decode 1 x 100", [(1, 100)], torch.bfloat16, 0),
    ("prefill 1024", [(1024, 1024)], torch.bfloat16, 0),
    ("chunk 512 of 4096", [(512, 4096)], torch.bfloat16, 0),
    ("chunk 512, 32 decodes at 1024", [(512, 512)] + [(1, 1024)] * 32, torch.bfloat16, 0),
]


def arguments(
    batch: list[tuple[int, int]], kv_dtype: torch.dtype, common: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return query, kv_cache, block_table, seq_lens and query_start_loc, the blocks of a sequence anywhere.

    The first `common` tokens of all are in the same ones.
    """
    used = [-(-length // BLOCK_SIZE) for _, length in batch]
    ids = torch.randperm(sum(used), dtype=torch.int32)
    table = torch.zeros(len(batch), max(used), dtype=torch.int32)
    for i, (start, count) in enumerate(zip(itertools.accumulate([0, *used]), used, strict=False)):
        table[i, :count] = ids[start : start + count]
    table[:, : common // BLOCK_SIZE] = table[0, : common // BLOCK_SIZE]
    cache = torch.randint(-99, 99, (2, sum(used), KV_HEADS, BLOCK_SIZE, HEAD_DIM), dtype=torch.int8)
    starts = torch.tensor([0, *itertools.accumulate(queries for queries, _ in batch)], dtype=torch.int32)
    query = torch.randn(int(starts[-1]), HEADS, HEAD_DIM).bfloat16()
    cache = cache if kv_dtype == torch.int8 else (cache / 50).to(kv_dtype)
    return query, cache, table, torch.tensor([length for _, length in batch], dtype=torch.int32), starts


def best_seconds(run: Callable[[], object], at_least_s: float = 0.4) -> float:
    """Return the shortest of several calls: what others on the machine take is not the kernel's."""
    run()
    found: list[float] = []
    stop = time.perf_counter() + at_least_s
    while len(found) < 3 or time.perf_counter() < stop:
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)


def seconds(step: tuple[Tensor, Tensor, Tensor, Tensor, Tensor], scales: Tensor | None) -> tuple[float, float]:
    """Return what one layer of a step takes in the compiled kernel and in tiles."""
    native = best_seconds(lambda: attention(*step, scale=SCALE, kv_scales=scales))
    cut = tiled.tiles(*step, scale=SCALE, window=None, kv_scales=scales)
    return native, best_seconds(
        lambda: tiled.attention(*step, scale=SCALE, window=None, kv_scales=scales, prepared=cut)
    )  # fmt: skip


def main() -> None:
    """Print milliseconds, the rate at which keys and values are read, the share of a plain read's, and the speed-up."""
    plain = torch.zeros(1 << 25, dtype=torch.int64)
    roof = plain.nbytes / best_seconds(plain.sum)
    print(f"plain read: {roof / 1e9:.1f} GB/s with {torch.get_num_threads()} threads")
    for name, batch, kv_dtype, common in STEPS:
        step = arguments(batch, kv_dtype, common)
        scales = torch.full((2, KV_HEADS), 0.02) if kv_dtype != torch.bfloat16 else None
        native_s, tiled_s = seconds(step, scales)
        num_bytes = 2 * KV_HEADS * HEAD_DIM * kv_dtype.itemsize * sum(length for _, length in batch)
        rate = num_bytes / native_s
        print(f"{name:30} {native_s * 1e3:9.3f} ms {rate / 1e9:6.2f} GB/s ({rate / roof:4.0%}); "
              f"tiled {tiled_s * 1e3:9.3f} ms, {tiled_s / native_s:5.1f} x", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
