"""Weights of eight and four bits packed in words of 16, and how kernels take bytes out of words."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.ops.quantize import unpack_int4
from quire.ops.spec import TensorLike, sizes_of
from quire.ops.triton.launch import INTERPRETED
from quire.ops.triton.linear import widen

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


# Int8, the low bytes of two words: `(word & 127) | BASE` is 128 + the lower seven bits in bfloat16, 1024 + them in
# float16. Less `(word & 128) | BASE`, which has the bit of -128 as +128, it is exact.
_INT8_ASM = """
{
    .reg .b32 low, sign, one;
    mov.b32 one, UNIT;
    lop3.b32 low, $2, 0x007F007F, BASE, 0xEA;
    lop3.b32 sign, $2, 0x00800080, MINUS, 0xEA;
    fma.rn.TYPE $0, low, one, sign;
    shr.b32 $1, $2, 8;
}
"""
_INT8_BFLOAT16 = tl.constexpr(
    _INT8_ASM.replace("TYPE", "bf16x2").replace("UNIT", "0x3F803F80")
    .replace("BASE", "0x43004300").replace("MINUS", "0xC300C300")
)  # fmt: skip
_INT8_FLOAT16 = tl.constexpr(
    _INT8_ASM.replace("TYPE", "f16x2").replace("UNIT", "0x3C003C00")
    .replace("BASE", "0x64006400").replace("MINUS", "0xE400E400")
)  # fmt: skip

# Float8: the bits of an exponent, biased by 7, become those of one biased by 127 or 15; times 2**120 or 2**8 that is
# the same number, also where it has no leading one. See `linear.widen` for the two that are no number.
_FLOAT8_ASM = """
{
    .reg .b32 bits, sign, unit, none;
    mov.b32 unit, UNIT;
    mov.b32 none, 0x80008000;
    and.b32 bits, $2, 0x007F007F;
    shl.b32 bits, bits, PLACES;
    shl.b32 sign, $2, 8;
    lop3.b32 bits, sign, none, bits, 0xEA;
    fma.rn.TYPE $0, bits, unit, none;
    shr.b32 $1, $2, 8;
}
"""
_FLOAT8_BFLOAT16 = tl.constexpr(
    _FLOAT8_ASM.replace("TYPE", "bf16x2").replace("UNIT", "0x7B807B80").replace("PLACES", "4")
)
_FLOAT8_FLOAT16 = tl.constexpr(
    _FLOAT8_ASM.replace("TYPE", "f16x2").replace("UNIT", "0x5C005C00").replace("PLACES", "7")
)
_IS_PLAIN = tl.constexpr(INTERPRETED)


@triton.jit
def unpack_byte(words, dtype: tl.constexpr, IS_FLOAT8: tl.constexpr):
    """Return the low byte of each word, int8 or float8_e4m3fn, in `dtype`, and words moved on."""
    if _IS_PLAIN or dtype == tl.float32:
        values = widen((words & 255).to(tl.uint8), dtype) if IS_FLOAT8 else words.to(tl.int8).to(tl.float32).to(dtype)
        words = words >> 8
    else:
        IS_BFLOAT16: tl.constexpr = dtype == tl.bfloat16
        float8: tl.constexpr = _FLOAT8_BFLOAT16 if IS_BFLOAT16 else _FLOAT8_FLOAT16
        int8: tl.constexpr = _INT8_BFLOAT16 if IS_BFLOAT16 else _INT8_FLOAT16
        values, words = tl.inline_asm_elementwise(
            float8 if IS_FLOAT8 else int8, "=r,=r,r", [words], dtype=(tl.int16, tl.int16), is_pure=True, pack=2
        )
        values = values.to(dtype, bitcast=True)
    return values, words
