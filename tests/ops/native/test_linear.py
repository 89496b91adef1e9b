"""Products with packed weights: against their references, and bit for bit whatever is computed beside a row."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.ops.linear import linear, linear_w4a16, linear_w8a16
from quire.ops.native.library import call, library
from quire.ops.native.linear import (
    is_valid,
    pack,
    pack_8bit,
    pack_int4,
    packed_8bit_bytes,
    packed_bytes,
    packed_int4_bytes,
    run,
)
from quire.ops.quantize import quantize_weight, quantize_weight_int4
from quire.ops.spec import TensorSpec, num_bytes
from tests.support.tolerance import assert_close

pytestmark = pytest.mark.skipif(library() is None, reason="no compiled kernels")
ISAS = library().isas() if library() else []
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
KINDS = ("plain", "int8", "float8_e4m3fn", "int4")


def layer(kind, in_features, out_features, dtype, group_size=64):
    """Return a packed random weight, and its definition as a function of rows and a bias."""
    weight = torch.randn(out_features, in_features).to(dtype)
    if kind == "plain":
        return pack(weight), lambda x, bias=None: linear(x, weight, bias)
    if kind == "int4":
        parts = quantize_weight_int4(weight, group_size)
        return pack_int4(*parts), lambda x, bias=None: linear_w4a16(x, *parts, bias)
    parts = quantize_weight(weight, kind)
    return pack_8bit(*parts), lambda x, bias=None: linear_w8a16(x, *parts, bias)


def product(x, packed, bias=None, isa="", threads=1):
    out = torch.full((len(x), packed.out_features), torch.nan, dtype=x.dtype)
    operands = [out, x, packed.weight, packed.scales, packed.zero_points, bias]
    call("linear", operands, num_threads=threads, isa=isa)
    return out


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("rows", [0, 1, 7, 33, 130])
def test_against_the_reference(isa, kind, dtype, rows):
    torch.manual_seed(rows)
    for in_features, out_features in [(64, 1), (192, 37), (1152, 64)]:
        packed, reference = layer(kind, in_features, out_features, dtype)
        x, bias = torch.randn(rows, in_features).to(dtype), torch.randn(out_features).to(dtype)
        assert_close(product(x, packed, bias, isa), reference(x, bias))
        assert_close(product(x, packed, None, isa), reference(x))


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_shape_stride_and_thread_count(data):
    kind, dtype = data.draw(st.sampled_from(KINDS)), data.draw(st.sampled_from(FLOATS))
    group = data.draw(st.sampled_from([32, 64, 96, 128]))
    rows, out_features = data.draw(st.integers(0, 70)), data.draw(st.integers(1, 100))
    in_features = group * data.draw(st.integers(1, 4)) if kind == "int4" else data.draw(st.integers(1, 300))
    packed, reference = layer(kind, in_features, out_features, dtype, group)
    bias = torch.randn(out_features).to(dtype) if data.draw(st.booleans()) else None
    wide = torch.randn(rows, in_features + data.draw(st.integers(0, 9))).to(dtype)
    x = wide[:, wide.shape[1] - in_features :]
    out = torch.full((rows, out_features + 3), 7.0, dtype=dtype)
    operands = [out[:, :out_features], x, packed.weight, packed.scales, packed.zero_points, bias]
    call("linear", operands, num_threads=data.draw(st.integers(1, 5)), isa=data.draw(st.sampled_from(ISAS)))
    assert_close(out[:, :out_features].contiguous(), reference(x, bias))
    assert (out[:, out_features:] == 7.0).all()


def rows_that_cancel(count, packed, reference, in_features, dtype):
    """Return rows whose products are small differences of large sums, so that another order of summation shows."""
    large = torch.randn(count, in_features // 2) * 2.0 ** torch.randint(0, 12, (count, in_features // 2))
    rows = torch.cat((large, -large), 1) + torch.randn(count, in_features) * 1e-2
    return rows[:, torch.randperm(in_features)].to(dtype)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ["plain", "int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("in_features", [192, 1216])
def test_a_rows_bits_depend_on_nothing_else(isa, kind, dtype, in_features):
    torch.manual_seed(0)
    packed, reference = layer(kind, in_features, 70, dtype)
    for x in (
        torch.randn(600, in_features).to(dtype),
        rows_that_cancel(600, packed, reference, in_features, dtype),
    ):
        alone = torch.cat([product(x[i : i + 1], packed, isa=isa) for i in range(len(x))])
        for count in (*range(2, 71), 127, 129, 255, 511, 512, 513, 545, 600):
            threads = (1, 2, 3, 5)[count % 4]
            assert torch.equal(product(x[-count:], packed, isa=isa, threads=threads), alone[-count:]), count


@pytest.mark.parametrize("isa", ISAS)
def test_a_row_that_is_not_finite_spoils_no_other(isa):
    packed, _ = layer("int4", 128, 40, torch.bfloat16)
    x = torch.randn(40, 128).bfloat16()
    expected = product(x, packed, isa=isa)
    x[17, 3], x[18, 5] = torch.nan, torch.inf
    got = product(x, packed, isa=isa)
    others = [i for i in range(40) if i not in (17, 18)]
    assert torch.equal(got[others], expected[others])
    assert got[17].isnan().all() and not got[18].isfinite().any()


@pytest.mark.parametrize("kind", ["plain", "int4"])
def test_sets_of_instructions_read_the_same_packing(kind):
    packed, reference = layer(kind, 128, 64, torch.bfloat16)
    x = torch.randn(5, 128).bfloat16()
    for isa in ISAS:
        packed_there = torch.empty_like(packed.weight)
        if kind == "plain":
            weight = torch.randn(64, 128).bfloat16()
            call("pack_linear", [packed_there, weight], isa=isa)
            assert torch.equal(packed_there, pack(weight).weight)
        assert_close(product(x, packed, isa=isa), reference(x))


def test_rows_of_any_rank_and_strides():
    packed, reference = layer("plain", 48, 33, torch.bfloat16)
    x = torch.randn(48, 3, 4).bfloat16().permute(1, 2, 0)
    assert_close(run(x, packed), reference(x))


def test_all_int8_and_int4_values_are_exact():
    weight = torch.arange(-128, 128).to(torch.int8).view(1, 256)
    packed = pack_8bit(weight, torch.ones(1))
    eye = torch.eye(256)
    for isa in ISAS:
        for dtype in (torch.float32, torch.bfloat16):
            got = product(eye.to(dtype), packed, isa=isa)
            assert torch.equal(got.float().view(1, 256), weight.float())


def test_bytes_are_those_of_what_is_packed():
    def size(packed):
        return sum(num_bytes(t) for t in (packed.weight, packed.scales, packed.zero_points) if t is not None)

    for dtype in FLOATS:
        weight = torch.randn(37, 200).to(dtype)
        assert size(pack(weight)) == packed_bytes(weight)
    parts = quantize_weight(torch.randn(65, 77))
    assert size(pack_8bit(*parts)) == packed_8bit_bytes(*parts)
    parts = quantize_weight_int4(torch.randn(65, 192).bfloat16(), 64)
    assert size(pack_int4(*parts)) == packed_int4_bytes(*parts)


def test_groups_that_tiles_cannot_hold_are_left_to_others():
    def is_taken(group):
        scales = TensorSpec((8, 192 // group), torch.bfloat16)
        x, weight = TensorSpec((1, 192), torch.bfloat16), TensorSpec((8, 96), torch.uint8)
        return is_valid(x=x, weight=weight, scales=scales, zero_points=scales)

    assert is_taken(64) and is_taken(32) and not is_taken(48)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ["plain", "int8"])
def test_results_that_no_cache_holds_have_the_same_bits(isa, kind):
    """4 MiB and more are written past the caches if whole lines can be; else not."""
    packed, _ = layer(kind, 64, 2048, torch.bfloat16)
    x, bias = torch.randn(1100, 64).bfloat16(), torch.randn(2048).bfloat16()
    expected = torch.cat([product(rows, packed, bias, isa) for rows in x.split(100)])
    assert torch.equal(product(x, packed, bias, isa, threads=3), expected)
    wide = torch.zeros(1100, 2048 + 33, dtype=torch.bfloat16)
    operands = [wide[:, 1:2049], x, packed.weight, packed.scales, packed.zero_points, bias]
    call("linear", operands, num_threads=2, isa=isa)
    assert torch.equal(wide[:, 1:2049], expected)
    assert (wide[:, 0] == 0).all() and (wide[:, 2049:] == 0).all()
