"""linear in Triton: both kernels against the reference, and every row's bits whatever is computed beside it."""

import pytest
import torch

from quire.ops.linear import linear
from quire.ops.triton import linear as kernels
from quire.ops.triton.tiles import tile_for
from tests.support.tolerance import assert_close

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = [(1, 1, 1), (3, 5, 7), (17, 64, 128), (70, 40, 48), (67, 53, 37), (65, 264, 72), (1, 130, 200)]


def rows(count, width, dtype, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def summable(count, width, dtype, seed=0):
    """Return values for a comparison of bits; interpreted, sums have the order of numpy, so all of them are exact."""
    if DEVICE == "cuda":
        return rows(count, width, dtype, seed)
    return torch.randint(-8, 9, (count, width), generator=torch.Generator().manual_seed(seed)).div(4).to(dtype)


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("num_rows, out_features, in_features", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_against_reference(dtype, num_rows, out_features, in_features, has_bias):
    x, weight = rows(num_rows, in_features, dtype), rows(out_features, in_features, dtype, seed=1)
    bias = rows(1, out_features, dtype, seed=2)[0] if has_bias else None
    assert_close(kernels.linear(x, weight, bias), linear(x, weight, bias))


@pytest.mark.parametrize("in_features", [136, 131])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_keep_their_bits(dtype, in_features):
    x, weight, bias = (summable(n, in_features, dtype, seed=n) for n in (150, 72, 1))
    bias = bias[0, :72].contiguous()
    together = kernels.linear(x, weight, bias)
    for start, count in [(0, 1), (149, 1), (3, 16), (5, 17), (20, 64), (40, 65), (1, 149)]:
        alone = kernels.linear(x[start : start + count], weight, bias)
        assert torch.equal(alone, together[start : start + count]), (start, count)


@pytest.mark.gpu
@pytest.mark.parametrize("out_features, in_features", [(4096, 4096), (6144, 4096), (4096, 14336), (1024, 4096)])
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_rows_keep_their_bits_in_layers_of_real_size(dtype, out_features, in_features):
    x, weight = rows(2048, in_features, dtype), rows(out_features, in_features, dtype, seed=1)
    together = kernels.linear(x, weight)
    unaligned = torch.empty(out_features, in_features + 1, dtype=dtype, device=DEVICE)[:, 1:].copy_(weight)
    assert torch.equal(kernels.linear(x, unaligned), together), "the other kernel"
    for count in (1, 2, 16, 17, 64, 65, 100, 128, 200, 256, 512, 1000):
        assert torch.equal(kernels.linear(x[7 : 7 + count], weight), together[7 : 7 + count]), count


@pytest.mark.parametrize("num_rows", [9, 70])
def test_views(num_rows):
    """Rows that lie apart, columns that do, leading dimensions, and a weight that is a part of another."""
    wide = rows(num_rows, 96, torch.bfloat16)
    weight = rows(48, 96, torch.bfloat16, seed=1)
    for x in (wide[:, 32:], wide[:, 1:65], wide[:, ::2][:, :32].repeat(1, 2), wide.t().contiguous().t()[:, :64]):
        expected = linear(x, weight[8:, :64])
        assert_close(kernels.linear(x, weight[8:, :64]), expected)
        assert_close(kernels.linear(x, weight.t().contiguous().t()[8:, :64]), expected)
        assert_close(kernels.linear(x.unflatten(0, (1, -1)), weight[8:, :64]), expected.unsqueeze(0))


def test_empty():
    weight = rows(5, 8, torch.float32)
    assert kernels.linear(rows(0, 8, torch.float32), weight).shape == (0, 5)
    assert kernels.linear(torch.empty(2, 0, 8, device=DEVICE), weight).shape == (2, 0, 5)


def test_tiles_fill_their_last_wave(monkeypatch):
    monkeypatch.setattr("quire.ops.triton.tiles.num_programs", lambda x: 132)

    def tile(num_rows, out_features, is_streamed=True, **packed):
        x, weight = (torch.empty(n, 4096, dtype=torch.bfloat16, device="meta") for n in (num_rows, out_features))
        made = tile_for(x, weight, is_streamed, **packed)
        return made.rows, made.features

    assert tile(8192, 4096) == (128, 256)
    assert tile(512, 4096) == (128, 128)
    assert tile(256, 4096) == (64, 128)
    assert tile(128, 4096) == (64, 64)
    assert tile(128, 28672) == tile(256, 28672) == tile(1024, 28672) == (128, 256)
    assert tile(512, 28672) == (128, 128), "seven waves instead of four of twice the size"
    assert tile(128, 6144) == (64, 128) and tile(1024, 6144) == (128, 128)
    assert tile(100, 4096) == (64, 64)
    assert tile(100, 4096, is_streamed=False) == (64, 64)
    assert tile(16, 4096) == (16, 64)
    assert tile(17, 28672) == (64, 64)
    assert tile(1, 4096, False, bits=8) == tile(1, 28672, False, bits=8) == tile(1, 4096, False, bits=4) == (16, 32)
    assert tile(64, 28672, False, bits=4) == (64, 64)
