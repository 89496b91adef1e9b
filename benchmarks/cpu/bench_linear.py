"""Linear layers by the compiled kernels, with cold weights, beside the machine's roofs and oneDNN in the same run.

OMP_NUM_THREADS=2 python -m benchmarks.cpu.bench_linear --kinds bfloat16 int8 int4 --rows 1 16 512

Each sample of a kernel is followed by one of each roof and one of oneDNN's bf16 product; shares and ratios are medians
of those of neighbours, so that a machine whose speed drifts does not spoil them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from benchmarks.cpu.roofs import Roofs
from quire.ops.cpu import linear as onednn
from quire.ops.native.linear import PANEL, PackedLinear, packed_bytes, run
from quire.ops.spec import TensorSpec

SHAPES = ((1024, 2048), (1024, 8192), (4096, 1024), (1024, 1024), (1024, 32000), (512, 2048), (4096, 14336))
ROWS = (1, 2, 8, 16, 32, 64, 128, 512, 1024)
GROUP_SIZE = 128
POOL_BYTES = 320_000_000  # three times the last cache of the machine this was written on
SECONDS = 0.25  # for each case
KINDS = ("bfloat16", "int8", "int4", "float32")


def packed_weights(kind: str, in_features: int, out_features: int, pool: Tensor) -> list[PackedLinear]:
    """Return layers whose weights are pieces of a pool of bytes: any bytes are a packed weight."""
    dtype = {"int4": torch.uint8}.get(kind) or getattr(torch, kind)
    columns = in_features // 2 if kind == "int4" else in_features
    size = packed_bytes(TensorSpec((out_features, columns), dtype))
    groups, panels = in_features // GROUP_SIZE, -(-out_features // PANEL)
    count = max(1, len(pool) // size)
    layers = []
    for i in range(count):
        weight = pool[i * size : (i + 1) * size].view(dtype)
        scales = zero_points = None
        if kind == "int8":
            scales = torch.full((out_features,), 1e-2)
        if kind == "int4":
            scales = torch.full((panels, groups, PANEL), 1e-2, dtype=torch.bfloat16)
            zero_points = torch.full((panels, groups, PANEL), 8, dtype=torch.uint8)
        layers.append(PackedLinear(weight, scales, zero_points, out_features))
    return layers


def seconds(body: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    body()
    return time.perf_counter() - start


def bench(kind: str, shape: tuple[int, int], rows: tuple[int, ...], pool: Tensor, roofs: Roofs) -> None:
    """Print a line for each row count."""
    in_features, out_features = shape
    layers = packed_weights(kind, in_features, out_features, pool)
    plain = [torch.randn(out_features, in_features).bfloat16() * 0.02]
    others = [onednn.pack(plain[0]) for _ in range(max(1, POOL_BYTES // 2 // plain[0].nbytes))]
    first = layers[0]
    size = sum(t.nbytes for t in (first.weight, first.scales, first.zero_points) if t is not None)
    for count in rows:
        x = torch.randn(count, in_features).to(torch.float32 if kind == "float32" else torch.bfloat16)
        wide = x.bfloat16()
        operations = 2.0 * count * in_features * out_features
        took, read, peak, ratio = [], [], [], []
        end, i = time.perf_counter() + SECONDS, 0
        while i < 7 or (i < 300 and time.perf_counter() < end):
            layer, other = layers[i % len(layers)], others[i % len(others)]
            took.append(seconds(lambda x=x, layer=layer: run(x, layer)))  # type: ignore[misc]
            read.append(roofs.read(layers[(i + len(layers) // 2) % len(layers)].weight) / took[-1])
            peak.append(roofs.multiply(operations) / took[-1] if roofs.has_tiles else 0.0)
            ratio.append(seconds(lambda wide=wide, other=other: onednn.run(wide, other)) / took[-1])  # type: ignore[misc]
            i += 1
        mid = median(took)
        name = f"{kind:9}{in_features:6}x{out_features:<6} rows {count:5}  {mid * 1e6:9.1f} us"
        memory = f"{size / mid / 1e9:6.1f} GB/s ({100 * median(read):3.0f} % of reading)"
        rate = f"{operations / mid / 1e12:5.2f} TFLOP/s ({100 * median(peak):3.0f} % of registers)"
        print(f"{name}  {memory}  {rate}  oneDNN bf16 takes {median(ratio):5.2f} x", flush=True)


def main() -> None:
    """Parse arguments, and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", default=["bfloat16"], choices=KINDS)
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS)
    parser.add_argument("--shapes", nargs="+", default=[f"{k}x{n}" for k, n in SHAPES])
    arguments = parser.parse_args()
    roofs = Roofs()
    # Bytes of which two are a small bf16 number, whichever they are.
    pool = torch.randint(0x3C, 0x3D, (POOL_BYTES,), dtype=torch.uint8)
    for kind in arguments.kinds:
        for text in arguments.shapes:
            in_features, out_features = map(int, text.split("x"))
            bench(kind, (in_features, out_features), tuple(arguments.rows), pool, roofs)


if __name__ == "__main__":
    main()
