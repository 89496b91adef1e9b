"""Weights of eight and four bits packed in words of 16, for the kernel of `quantized_linear`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quire.ops.quantize import unpack_int4
from quire.ops.spec import TensorLike, sizes_of

HALF = 64
"""Channels of half a block of eight bits: a block is what a program reads at once, 128 bytes of each row."""

_QUARTERS = (32, 16)  # channels, a multiple of what tensor cores multiply at once


@dataclass(frozen=True, slots=True)
class PackedBytes:
    """A weight of eight bits in blocks of two halves, 128 channels; zeros beyond the last.

    Attributes:
        weight: [out_features, num_blocks * 64], int16: word i of a block has channel i of its first half in the low
            byte, and of its second in the high one.
        is_float8: Whether they are float8_e4m3fn, not int8.
    """

    weight: Tensor
    is_float8: bool


def pack_w8a16(weight: Tensor) -> PackedBytes:
    """Reorder a weight of eight bits; the argument is that of `ops.linear.linear_w8a16`."""
    values = torch.nn.functional.pad(weight.view(torch.uint8), (0, -weight.shape[1] % (2 * HALF)))
    words = values.reshape(len(weight), -1, 2, HALF).transpose(2, 3).contiguous().view(torch.int16)
    return PackedBytes(words.view(len(weight), -1), weight.dtype == torch.float8_e4m3fn)


def packed_w8a16_bytes(weight: TensorLike) -> int:
    """Return the bytes of what `pack_w8a16` makes."""
    out_features, in_features = sizes_of(weight)
    return out_features * -(-in_features // (2 * HALF)) * 2 * HALF


@dataclass(frozen=True, slots=True)
class PackedInt4:
    """A weight of four bits in blocks of four quarters, 128 channels where groups allow it.

    Attributes:
        weight: [out_features, num_blocks * quarter], int16: word i of a block has channel i of each of its quarters,
            the first in the lowest bits. So two words are two neighbours of each quarter, as tensor cores want them.
        groups: [num_groups, out_features], int32 (int64 of float32 scales): the bits of a scale in the low half, the
            zero point in the high one; one read brings both.
        quarter: Channels of a quarter.
    """

    weight: Tensor
    groups: Tensor
    quarter: int


def pack_w4a16(weight: Tensor, scales: Tensor, zero_points: Tensor) -> PackedInt4:
    """Reorder a weight of four bits; the arguments are those of `ops.linear.linear_w4a16`."""
    quarter = _quarter(2 * weight.shape[1] // scales.shape[1])
    values = unpack_int4(weight)
    values = torch.nn.functional.pad(values, (0, -values.shape[1] % (4 * quarter)))
    words = torch.zeros(len(weight), values.shape[1] // (4 * quarter), quarter, dtype=torch.int16, device=weight.device)
    for place, part in enumerate(values.view(len(weight), -1, 4, quarter).unbind(2)):
        words |= part.to(torch.int16) << 4 * place
    word, bits = (torch.int64, torch.int32) if scales.dtype == torch.float32 else (torch.int32, torch.int16)
    width = 8 * bits.itemsize
    groups = scales.contiguous().view(bits).to(word) & (1 << width) - 1 | zero_points.to(word) << width
    return PackedInt4(words.view(len(weight), -1), groups.t().contiguous(), quarter)


def _quarter(group_size: int) -> int:
    """Return how many channels a quarter has; if groups are no multiple of it, scales are read for each channel."""
    return next((quarter for quarter in _QUARTERS if group_size % quarter == 0), _QUARTERS[-1])


def packed_w4a16_bytes(weight: TensorLike, scales: TensorLike, zero_points: TensorLike) -> int:
    """Return the bytes of what `pack_w4a16` makes."""
    (out_features, num_bytes), (_, num_groups) = sizes_of(weight), sizes_of(scales)
    block_bytes = 2 * _quarter(2 * num_bytes // num_groups)
    return out_features * (-(-num_bytes // block_bytes) * block_bytes + num_groups * 2 * scales.dtype.itemsize)
