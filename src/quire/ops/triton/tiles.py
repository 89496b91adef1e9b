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

# (rows, features, warps, most stages), the largest first. H100, bfloat16.
_STREAMED = (
    (128, 256, 8, 3),  # 8192 rows: 750 to 766 TFLOP/s, 98 % of cuBLAS and more; 2048 rows: 728
    (128, 128, 4, 4),  # 2048 rows: 640 to 690, and twice the tiles
    (128, 64, 4, 5),
    (64, 64, 4, 6),
)
_GATHERED = ((128, 128, 8, 3), (64, 64, 4, 4))
# Few rows (features, warps, most stages). A decode step of 8 layers of an 8B model takes 1.75 ms; with 6 stages 1.85,
# with 128 features and 4 stages for the widest layers 1.83, with 32 features 1.97 to 2.01 (H100, overlapping kernels).
_NARROW = (64, 4, 10)
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


def tile_for(x: torch.Tensor, weight: torch.Tensor, is_streamed: bool, channels: int | None = None) -> Tile:
    """Return the largest tile of which two of three multiprocessors get one; few rows are all in one tile.

    Args:
        x: [num_rows, in_features], any dtype of the ops.
        weight: [out_features, ...], of which an element may stand for several channels.
        is_streamed: Whether the kernel is the one that reads by TMA. It takes 128 bytes a row at once, as much as TMA
            brings into shared memory without bank conflicts; the other takes 256 if there are few rows.
        channels: How many the kernel wants to read at once; None leaves it to the above.
    """
    if x.dtype == torch.float32:
        return Tile(_FLOAT32[0], _FLOAT32[1], channels or _FLOAT32[2], *_FLOAT32[3:])
    num_rows, out_features = x.shape[0], weight.shape[0]
    is_few = num_rows <= FEW_ROWS
    if is_few:
        features, warps, most = _NARROW
        rows = 16 if num_rows <= 16 else FEW_ROWS
    else:
        tiles = _STREAMED if is_streamed else _GATHERED
        enough = num_programs(x) * 2 // 3
        fitting = (t for t in tiles if triton.cdiv(num_rows, t[0]) * triton.cdiv(out_features, t[1]) >= enough)
        rows, features, warps, most = next(fitting, tiles[-1])
    if channels is None:
        channels = (256 if is_few else 128) // x.dtype.itemsize
        channels = channels if x.shape[1] % 16 == 0 else channels // 4  # read one by one, which takes registers
    weight_bytes = weight.shape[1] * weight.dtype.itemsize / x.shape[1]  # a channel
    stage_bytes = channels * (rows * x.dtype.itemsize + features * weight_bytes)
    return Tile(rows, features, channels, warps, max(2, min(most, int(_shared_bytes(x) / stage_bytes))))


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
