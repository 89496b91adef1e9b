"""Ops that read what quantized checkpoints hold: bit by bit against plain integers."""

import pytest
import torch

from quire.core.errors import ShapeError
from quire.ops.layout import argsort, expand, full, index_select
from quire.ops.quantize import (
    dequantize_int4,
    dequantize_weight,
    pack_int4,
    quantize_weight_int4,
    unpack_int4,
    unpack_int32,
)


def word(values, bits):
    """Return a signed 32-bit word that holds unsigned values, the first in the lowest bits."""
    total = sum(value << (bits * place) for place, value in enumerate(values))
    return total - (1 << 32) if total >> 31 else total


NIBBLES = [[1, 2, 3, 4, 5, 6, 7, 8], [15, 0, 14, 1, 13, 2, 12, 3], [0, 0, 0, 0, 0, 0, 0, 15]]


def test_words_of_four_bits():
    packed = torch.tensor([[word(values, 4) for values in NIBBLES]], dtype=torch.int32)
    assert unpack_int32(packed).tolist() == [[value for values in NIBBLES for value in values]]
    assert unpack_int32(packed).dtype == torch.uint8
    down = unpack_int32(packed, dim=0)
    assert down.shape == (8, 3) and down.t().tolist() == NIBBLES and down.is_contiguous()


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (1, 1), (1, 5), (5, 1), (7, 3)])
@pytest.mark.parametrize("layout", ["rows", "columns", "every second"])
def test_packed_values_of_any_shape_and_strides(shape, layout):
    generator = torch.Generator().manual_seed(9)
    made = torch.randint(
        -(1 << 31), (1 << 31) - 1, (shape[0] * 2, shape[1] * 2), dtype=torch.int32, generator=generator
    )
    packed = made[::2, ::2] if layout == "every second" else made[: shape[0], : shape[1]].contiguous()
    if layout == "columns":
        packed = packed.t().contiguous().t()
    for dim in (0, 1):
        got = unpack_int32(packed, dim=dim)
        for place in range(8):
            part = got[place::8] if dim == 0 else got[:, place::8]
            assert torch.equal(part, (packed >> 4 * place & 15).to(torch.uint8))
    halves = unpack_int4(packed.to(torch.uint8))
    assert torch.equal(pack_int4(halves), packed.to(torch.uint8))


def test_words_of_eight_bits_signed_and_not():
    bytes_ = [0, 127, 128, 255, 7, 200, 1, 254]
    packed = torch.tensor([[word(bytes_[:4], 8), word(bytes_[4:], 8)]], dtype=torch.int32)
    assert unpack_int32(packed, bits=8).tolist() == [bytes_]
    signed = unpack_int32(packed, bits=8, is_signed=True)
    assert signed.dtype == torch.int8 and signed.tolist() == [[value - 128 for value in bytes_]]
    assert unpack_int32(torch.tensor([[word(NIBBLES[1], 4)]], dtype=torch.int32), is_signed=True).tolist() == [
        [value - 8 for value in NIBBLES[1]]
    ]


def test_interleaved_words_hold_even_channels_first():
    stored = [[10, 12, 14, 0, 11, 13, 15, 1], [0, 2, 4, 6, 1, 3, 5, 7]]
    packed = torch.tensor([[word(values, 4) for values in stored]], dtype=torch.int32)
    got = unpack_int32(packed, is_interleaved=True)
    assert got.tolist() == [[10, 11, 12, 13, 14, 15, 0, 1, 0, 1, 2, 3, 4, 5, 6, 7]]
    assert pack_int4(got).tolist() == [[10 | 11 << 4, 12 | 13 << 4, 14 | 15 << 4, 16, 16, 50, 84, 118]]


@pytest.mark.parametrize(
    "options", [{"bits": 3}, {"dim": 2}, {"dim": -1}, {"bits": 8, "is_interleaved": True}], ids=str
)
def test_packings_that_do_not_exist(options):
    with pytest.raises(ShapeError, match="Invalid packing"):
        unpack_int32(torch.zeros(2, 3, dtype=torch.int32), **options)


def test_unpack_takes_words_only():
    with pytest.raises(ShapeError, match="packed"):
        unpack_int32(torch.zeros(2, 3, dtype=torch.int64))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("block", [(1, 4), (3, 5), (7, 10), (100, 100)])
def test_dequantize_multiplies_each_block_by_its_scale(dtype, block):
    generator = torch.Generator().manual_seed(3)
    weight = (torch.randn(7, 10, generator=generator) * 20).to(dtype)
    grid = (-(-7 // block[0]), -(-10 // block[1]))
    scales = torch.rand(grid, generator=generator) + 0.5
    expected = [
        [float(weight[i, j].float() * scales[i // block[0], j // block[1]]) for j in range(10)] for i in range(7)
    ]
    kept = weight.clone()
    assert torch.equal(dequantize_weight(weight, scales, block), torch.tensor(expected))
    assert torch.equal(weight.float(), kept.float()), "the weight is left as it is"
    assert torch.equal(dequantize_weight(weight, scales, block, dtype="bfloat16"), torch.tensor(expected).bfloat16())


def test_dequantize_with_zero_points_is_what_four_bits_stand_for():
    weight = torch.randn(6, 32, generator=torch.Generator().manual_seed(1))
    packed, scales, zero_points = quantize_weight_int4(weight, 8)
    values = torch.stack((packed & 15, packed >> 4), -1).view(6, 32)
    got = dequantize_weight(values, scales, (1, 8), zero_points)
    assert torch.equal(got, dequantize_int4(packed, scales, zero_points))


@pytest.mark.parametrize(
    ("grid", "block", "named"), [((2, 2), (3, 5), "scales"), ((3, 2), (0, 5), "block"), ((3, 2), (3,), "block")]
)
def test_dequantize_checks_its_grid(grid, block, named):
    with pytest.raises(ShapeError, match=f"Invalid (shape of )?{named}"):
        dequantize_weight(torch.zeros(7, 10, dtype=torch.int8), torch.ones(grid), block)


def test_argsort_of_a_permutation_is_its_inverse():
    order = torch.randperm(17, generator=torch.Generator().manual_seed(5)).int()
    inverse = argsort(order)
    assert inverse.dtype == torch.int32
    x = torch.randn(3, 17)
    assert torch.equal(index_select(index_select(x, order, dim=-1), inverse, dim=1), x)
    assert argsort(torch.tensor([1, 0, 1, 0])).tolist() == [1, 3, 0, 2], "equal keys stay in order"


def test_index_select_along_the_last_dimension():
    x = torch.arange(24).view(2, 3, 4)
    index = torch.tensor([3, 0, 3], dtype=torch.int32)
    assert torch.equal(index_select(x, index, dim=-1), x[..., [3, 0, 3]])
    with pytest.raises(ShapeError, match="dim"):
        index_select(x, index, dim=3)


def test_expand_and_full():
    x = torch.tensor([[1.0], [2.0]])
    assert expand(x, (2, 3)).tolist() == [[1, 1, 1], [2, 2, 2]] and expand(x, (2, 3)).is_contiguous()
    for shape in ((3, 3), (2,), (2, 1, 1)):
        with pytest.raises(ShapeError, match="Invalid shape"):
            expand(x, shape)
    made = full((2, 3), 8, "uint8")
    assert made.dtype == torch.uint8 and made.tolist() == [[8, 8, 8], [8, 8, 8]]
