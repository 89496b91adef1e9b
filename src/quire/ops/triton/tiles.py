"""Which part of a matrix product one program computes: a choice for speed alone, since all parts give the same bits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl

from quire.ops.triton.launch import num_programs

FEW_ROWS = 64
"""Up to here a product waits for its weight, and each byte of it should be on its way as early as can be."""

# (rows, features, warps, most stages, time of a wave of such tiles beside one of 128 x 128), the largest first. H200,
# seven layers, eleven numbers of rows from 80 to 4,096, bfloat16 and float8: what these times choose takes 0.4 percent
# longer than the best tile. The largest of which there are enough for 95 percent of the multiprocessors took 12 percent
# longer, and 10. With a stage less, wide layers of 256 rows take 5 to 9 percent longer.
_STREAMED = (
    (128, 256, 8, 4, 1.85),  # H100, bfloat16, 8192 rows: 750 to 766 TFLOP/s, 98 % of cuBLAS and more
    (128, 128, 4, 5, 1.0),
    (64, 128, 4, 6, 0.75),
    (64, 64, 4, 6, 0.6),
)
_GATHERED = ((128, 128, 8, 3, 1.0), (64, 64, 4, 4, 0.5))

# Few rows, (features, warps, most stages) by the bits of a packed weight, 0 for others: of layers with 128 features for
# each multiprocessor, and of others. H100, a decode step of 8 layers of an 8B model in bfloat16, read by pointers: 1.75
# ms; with 6 stages 1.85, with 128 features and 4 stages for the widest layers 1.83, with 32 features 1.97 to 2.01.
# Packed weights of 4096 x 4096 and 4096 x 14336 at 16 rows, with 32 features and with 64: eight bits 11 and 33 us, 17
# and 53; four bits 13 and 41, 19 and 63. Of 28672 x 4096: eight bits 48 and 60, four bits 37 with 64. See
# `quantized_linear` too: eight bits must not have 64.
_FEW = {0: ((64, 4, 10), (64, 4, 10)), 8: ((32, 4, 6), (32, 4, 6)), 4: ((64, 4, 3), (32, 4, 6))}
_FLOAT32 = (16, 64, 32, 4, 2)  # no tensor cores: one shape, so that nothing can depend on it


@dataclass(frozen=True, slots=True)
class Tile:
    """The part of a product that one program holds.

    Attributes:
        rows: Rows of the result.
        features: Columns of the result.
        channels: Channels that it reads at once.
        num_warps: Of the program.
        num_stages: How many such reads are on their way.
    """

    rows: int
    features: int
    channels: int
    num_warps: int
    num_stages: int


def tile_for(
    x: torch.Tensor, weight: torch.Tensor, is_streamed: bool, channels: int | None = None, bits: int = 0
) -> Tile:
    """Return the tile that takes least time: whose waves, one tile for each multiprocessor, are few and short.

    Few rows, all in one tile: so many features that each multiprocessor has a tile, or half as many.

    Args:
        x: [num_rows, in_features], any dtype of the ops.
        weight: [out_features, ...].
        is_streamed: Whether the kernel reads by TMA. It takes 128 bytes a row at once, as much as TMA brings into
            shared memory without bank conflicts; of few rows 512, for which each wait counts (H200, decode steps in
            bfloat16: 6 percent less than 128 features 10 deep in an 8B model, 15 in a 1B one). Others take 128 and 256.
        channels: How many the kernel wants to read at once; None leaves it to the above.
        bits: Of a channel of the weight if it is packed, 8 | 4.
    """
    if x.dtype == torch.float32:
        return Tile(_FLOAT32[0], _FLOAT32[1], channels or _FLOAT32[2], *_FLOAT32[3:])
    num_rows, out_features = x.shape[0], weight.shape[0]
    is_few = num_rows <= FEW_ROWS
    if is_few:
        features, warps, most = _FEW[bits][0 if out_features >= 128 * num_programs(x) else 1]
        rows = 16 if num_rows <= 16 else FEW_ROWS
    else:
        tiles = _STREAMED if is_streamed else _GATHERED
        times = [tile[4] * _num_waves(x, out_features, tile[0], tile[1]) for tile in tiles]
        rows, features, warps, most, _ = tiles[times.index(min(times))]
    if channels is None:
        channels = (128 << is_few << (is_few and is_streamed)) // x.dtype.itemsize
        channels = channels if x.shape[1] % 16 == 0 else channels // 4  # read one by one, which takes registers
    weight_bytes = bits / 8 if bits else weight.dtype.itemsize
    stage_bytes = channels * (rows * x.dtype.itemsize + features * weight_bytes)
    return Tile(rows, features, channels, warps, max(2, min(most, int(_shared_bytes(x) / stage_bytes))))


def _num_waves(x: torch.Tensor, out_features: int, rows: int, features: int) -> int:
    return int(triton.cdiv(triton.cdiv(x.shape[0], rows) * triton.cdiv(out_features, features), num_programs(x)))


def _shared_bytes(x: torch.Tensor) -> int:
    """Return the shared memory of a program for what it reads: 227 KiB on Hopper, 163 on A100, 99 on smaller ones."""
    return _shared_bytes_of(x.device.index or 0) if x.is_cuda else 227 << 10


@cache
def _shared_bytes_of(index: int) -> int:
    return int(triton.runtime.driver.active.utils.get_device_properties(index)["max_shared_mem"])


@triton.jit
def tile_at(place, num_rows, out_features, ROWS: tl.constexpr, FEATURES: tl.constexpr):
    """Return the first row and the first feature of the tile at a place in the order of work.

    Eight tiles of rows take turns before the features move on, so that what neighbours read is still in the L2 cache.
    """
    row_tiles, feature_tiles = tl.cdiv(num_rows, ROWS), tl.cdiv(out_features, FEATURES)
    first = place // (8 * feature_tiles) * 8
    height = tl.minimum(row_tiles - first, 8)
    within = place % (8 * feature_tiles)
    return (first + within % height) * ROWS, within // height * FEATURES
