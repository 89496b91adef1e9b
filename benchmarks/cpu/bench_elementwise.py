"""Kernels that work row by row beside the CPU tactics of torch: microseconds, and bytes read and written per second.

OMP_NUM_THREADS=2 python -m benchmarks.cpu.bench_elementwise [--rows 1 64 1024] [--dtype bfloat16]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial

import torch

from benchmarks.cpu.timing import microseconds, read_bandwidth
from quire.ops.cpu import attention, elementwise, fused, quantize, rope
from quire.ops.native import rows as native
from quire.ops.norm import layer_norm
from quire.ops.rope import rope_table

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM = 896, 4864, 14, 2, 64  # of a decoder of 0.5 B parameters
Pair = tuple[Callable[[], object], Callable[[], object], int]


def main() -> None:
    """Parse the command line and print a line for each kernel and number of rows."""
    parser = argparse.ArgumentParser(description="Row kernels beside torch's tactics.")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 64, 1024])
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16")
    args = parser.parse_args()
    print(f"reads {read_bandwidth() / 1e9:.1f} GB/s with {torch.get_num_threads()} threads")
    for rows in args.rows:
        for name, (ours, theirs, size) in kernels(rows, getattr(torch, args.dtype)).items():
            own, other = microseconds([ours, theirs])
            print(f"{name:>20} {rows:5} rows: {own:8.1f} us, {size / own / 1e3:6.2f} GB/s, {other / own:6.2f} x as "
                  f"fast as torch ({other:.1f} us)")  # fmt: skip


def kernels(rows: int, dtype: torch.dtype) -> Mapping[str, Pair]:
    """Return by name the call of the kernel, that of torch's tactic, and the bytes that go in and out."""
    x, residual = torch.randn(2, rows, HIDDEN).to(dtype)
    weight, wide = torch.randn(HIDDEN).to(dtype), torch.randn(rows, 2 * INTERMEDIATE).to(dtype)
    row, out = x.numel() * dtype.itemsize, wide.numel() * dtype.itemsize
    pairs: dict[str, Pair] = {
        "rms_norm": (partial(native.rms_norm, x, weight, 1e-6), partial(fused.rms_norm, x, weight, 1e-6), 2 * row),
        "layer_norm": (partial(native.layer_norm, x, weight, weight, 1e-6),
                       partial(layer_norm.reference, x, weight, weight, 1e-6), 2 * row),
        "quantize_rows": (partial(native.quantize_rows, x), partial(quantize.quantize_rows, x), row + x.numel()),
        "silu_mul": (partial(native.silu_mul, wide), partial(fused.silu_mul, wide), out * 3 // 2),
        "silu_mul_quant": (partial(native.silu_mul_quant, wide), partial(fused.silu_mul_quant, wide),
                           out + wide.numel() // 2),
        "gelu": (partial(native.gelu, x), partial(elementwise.gelu, x), 2 * row),
        "add": (partial(native.add, x, residual), partial(torch.add, x, residual), 3 * row),
    }  # fmt: skip
    for name, ours, theirs in (
        ("add_rms_norm", native.add_rms_norm, fused.add_rms_norm),
        ("add_rms_norm_quant", native.add_rms_norm_quant, fused.add_rms_norm_quant),
    ):
        arguments = (x, residual, weight, 1e-6)
        pairs[name] = partial(ours, *arguments), partial(theirs, *arguments), 4 * row
    return pairs | {"rope_append_kv": rope_pair(rows, dtype), "gather_rows": gather_pair(rows, dtype)}


def rope_pair(rows: int, dtype: torch.dtype) -> Pair:
    """Return rotation and KV writes of slices of one matrix; torch's angles and slots are ready."""
    heads = [HEADS, KV_HEADS, KV_HEADS]
    qkv = torch.randn(rows, sum(heads), HEAD_DIM).to(dtype)
    query, key, value = torch.split(qkv, list(heads), 1)
    cache = torch.zeros(2, rows // 16 + 1, KV_HEADS, 16, HEAD_DIM, dtype=dtype)
    step = torch.arange(rows, dtype=torch.int32), rope_table(4096, HEAD_DIM), cache, torch.arange(rows)
    prepared = rope.angles(query, step[0], step[1]), attention.slots(key, value, cache, step[3])
    ours = partial(native.rope_append_kv, query, key, value, *step)
    theirs = partial(fused.rope_append_kv, query, key, value, *step, prepared=prepared)
    return ours, theirs, 2 * qkv.numel() * dtype.itemsize


def gather_pair(rows: int, dtype: torch.dtype) -> Pair:
    """Return the embedding of random ids in a vocabulary of 151,936."""
    table, ids = torch.zeros(151936, HIDDEN, dtype=dtype), torch.randint(151936, (rows,))
    theirs = partial(torch.nn.functional.embedding, ids, table)
    return partial(native.embedding, ids, table), theirs, 2 * rows * HIDDEN * dtype.itemsize


if __name__ == "__main__":
    main()
