"""The int8 product beside oneDNN's: a few rows in GB/s of weights read from memory, many in TOP/s.

OMP_NUM_THREADS=2 python -m benchmarks.cpu.bench_w8a8 [--rows 1 4 32 512 1024] [--layers 896x4864 ...]
"""

from __future__ import annotations

import argparse
from functools import partial

import torch

from benchmarks.cpu.timing import microseconds, read_bandwidth
from quire.ops.cpu import quantized_linear
from quire.ops.native import w8a8

# out_features x in_features: of a decoder of 0.5 B parameters, and of a larger one.
LAYERS = ("1152x896", "896x896", "9728x896", "896x4864", "4096x4096")
COLD_BYTES = 200 << 20  # weights used in turn, so that the third cache (105 MiB) holds none when its turn comes
COLD_ROWS = 64  # up to here weights are what a layer waits for


def main() -> None:
    """Parse the command line and print a line for each layer and number of rows."""
    parser = argparse.ArgumentParser(description="The int8 product beside oneDNN's.")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16, 64, 512, 1024])
    parser.add_argument("--layers", nargs="+", default=LAYERS)
    args = parser.parse_args()
    roof = read_bandwidth()
    print(f"reads {roof / 1e9:.1f} GB/s with {torch.get_num_threads()} threads")
    for name in args.layers:
        out_features, in_features = map(int, name.split("x"))
        for rows in args.rows:
            print(f"{name:>10} x {rows:5} rows: {compare(rows, out_features, in_features, roof)}")


def compare(rows: int, out_features: int, in_features: int, roof: float) -> str:
    """Return one comparison as text."""
    copies = max(1, COLD_BYTES // (out_features * in_features)) if rows <= COLD_ROWS else 1
    weight = torch.randint(-127, 128, (out_features, in_features), dtype=torch.int8)
    scales, x_scales = torch.rand(out_features) * 1e-3, torch.rand(rows, 1)
    x = torch.randint(-127, 128, (rows, in_features), dtype=torch.int8)
    ours = [w8a8.pack(weight, scales) for _ in range(copies)]
    theirs = [quantized_linear.pack_int8(weight, scales) for _ in range(copies)]

    def run(tactic, packed):  # type: ignore[no-untyped-def]
        for each in packed:
            tactic(x, x_scales, each, None)

    own, other = microseconds([partial(run, w8a8.run, ours), partial(run, quantized_linear.linear_w8a8, theirs)], 5)
    own, other = own / copies, other / copies
    speed = out_features * in_features / own * 1e6
    text = f"{own:8.1f} us, {speed / 1e9:5.1f} GB/s ({speed / roof:4.0%}), {2 * rows * speed / 1e12:5.2f} TOP/s"
    return f"{text}, {other / own:5.2f} x as fast as oneDNN ({other:.1f} us)"


if __name__ == "__main__":
    main()
