"""The int8 product: the reference's bits, whatever the rows, threads and set of instructions."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.ops.linear import linear_w8a8
from quire.ops.native import library, w8a8

pytestmark = pytest.mark.skipif(library.library() is None, reason="no compiled kernels")
ISAS = library.library().isas() if library.library() else []


@pytest.fixture(params=ISAS, autouse=True)
def isa(request, monkeypatch):
    """Run every test on each set of instructions."""
    monkeypatch.setattr(w8a8, "call", partial(library.call, isa=request.param))
    return request.param


def bytes_of(*shape, seed=0, low=-127, high=127):
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.int8)


def layer(rows, out_features, in_features, dtype=torch.bfloat16, has_bias=True):
    """Return random arguments of the op."""
    generator = torch.Generator().manual_seed(1)
    x, weight = bytes_of(rows, in_features), bytes_of(out_features, in_features, seed=2, low=-128)
    x_scales, scales = torch.rand(rows, 1, generator=generator), torch.rand(out_features, generator=generator) - 0.3
    bias = torch.randn(out_features, generator=generator).mul_(1e4).to(dtype) if has_bias else None
    return x, x_scales, weight, scales, bias


def ours(x, x_scales, weight, scales, bias, dtype):
    packed = w8a8.pack(weight, scales)
    return w8a8.run(x, x_scales, packed, None, bias, str(dtype).removeprefix("torch."))


def exact(x, x_scales, weight, scales, bias, dtype):
    """Return the reference without torch's own int8 product."""
    out = x.double().mm(weight.double().t()).float() * scales * x_scales
    return (out if bias is None else out + bias.float()).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
@pytest.mark.parametrize("in_features", [1, 3, 64, 67, 128, 200])
@pytest.mark.parametrize("out_features", [1, 16, 31, 32, 33, 100])
def test_shapes(dtype, in_features, out_features):
    for rows in (0, 1, 2, 5, 17, 33):
        for has_bias in (True, False):
            arguments = layer(rows, out_features, in_features, dtype, has_bias)
            assert torch.equal(ours(*arguments, dtype), exact(*arguments, dtype)), (rows, has_bias)


def test_the_reference_op_agrees():
    x, x_scales, weight, scales, bias = layer(24, 40, 72)
    expected = linear_w8a8(x, x_scales, weight, scales, bias)
    assert torch.equal(ours(x, x_scales, weight, scales, bias, torch.bfloat16), expected)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("in_features", [130, 256])
def test_a_row_alone_is_the_row_among_others(isa, monkeypatch, threads, in_features):
    monkeypatch.setattr(w8a8, "call", partial(library.call, isa=isa, num_threads=threads))
    x, x_scales, weight, scales, bias = layer(130, 100, in_features)
    expected = exact(x, x_scales, weight, scales, bias, torch.bfloat16)
    packed = w8a8.pack(weight, scales)
    for rows in (*range(1, 71), 128, 130):
        first = 130 - rows
        assert torch.equal(w8a8.run(x[first:], x_scales[first:], packed, None, bias), expected[first:]), rows


def test_the_largest_sums_and_more_rows_than_are_prepared_at_once():
    x, weight = torch.full((70, 40000), -127, dtype=torch.int8), torch.full((40, 40000), -128, dtype=torch.int8)
    x[1::2] = 127
    scales, x_scales = torch.ones(40), torch.ones(70, 1)
    out = ours(x, x_scales, weight, scales, None, torch.float32)
    assert torch.equal(out, torch.tensor([[127 * 128 * 40000.0], [-127 * 128 * 40000.0]]).repeat(35, 40))


def test_results_that_no_cache_holds():
    """4 MiB and more are written past the caches."""
    arguments = layer(1100, 2048, 64)
    assert torch.equal(ours(*arguments, torch.bfloat16), exact(*arguments, torch.bfloat16))


def test_strided_rows_and_weights():
    x, x_scales, weight, scales, bias = layer(37, 50, 300)
    x, weight = x[:, 20:211], weight[:, 7:198]
    expected = exact(x, x_scales, weight, scales, bias, torch.float32)
    assert torch.equal(ours(x, x_scales, weight, scales, bias.float(), torch.float32), expected)
    cube = x.unflatten(0, (37, 1))
    packed = w8a8.pack(weight, scales)
    assert torch.equal(w8a8.run(cube, x_scales.unsqueeze(-1), packed, None, bias.float(), "float32")[:, 0], expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 75), st.integers(1, 130), st.integers(1, 300), st.integers(1, 4), st.sampled_from(ISAS))
def test_fuzzed_shapes(rows, out_features, in_features, threads, isa):
    original = w8a8.call
    w8a8.call = partial(library.call, isa=isa, num_threads=threads)
    try:
        arguments = layer(rows, out_features, in_features)
        assert torch.equal(ours(*arguments, torch.bfloat16), exact(*arguments, torch.bfloat16))
    finally:
        w8a8.call = original


def test_packed_bytes():
    for shape in ((1, 1), (33, 65), (64, 128)):
        weight, scales = bytes_of(*shape), torch.ones(shape[0])
        packed = w8a8.pack(weight, scales)
        held = sum(t.numel() * t.itemsize for t in (packed.panels, packed.scales, packed.corrections))
        assert w8a8.packed_bytes(weight, scales) == held
