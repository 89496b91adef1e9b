"""The vendor's tactics against the references: int8 on any device, float8 where there are tensor cores for it."""

import pytest
import torch

from quire.ops.cuda import vendor
from quire.ops.linear import linear_w8a8
from quire.ops.quantize import quantize_rows, quantize_weight
from quire.ops.spec import TensorSpec
from tests.support.tolerance import assert_close

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def layer(kept, num_rows, out_features=48, in_features=64):
    generator = torch.Generator().manual_seed(num_rows)
    x, weight, bias = (torch.randn(n, in_features, generator=generator) for n in (num_rows, out_features, 1))
    (q, q_scales), (w, scales) = quantize_rows(x.to(DEVICE), kept), quantize_weight(weight.to(DEVICE), kept)
    return q, q_scales, w, scales, bias[0, :out_features].to(DEVICE, torch.bfloat16)


@pytest.mark.parametrize("num_rows", [0, 1, 16, 17, 70])
def test_int8_has_the_bits_of_the_reference(num_rows):
    q, q_scales, w, scales, bias = layer("int8", num_rows)
    assert vendor.is_int8(q, w) and not vendor.is_float8(q, w)
    expected = linear_w8a8(q, q_scales, w, scales, bias) if num_rows else torch.empty_like(q[:, :48]).bfloat16()
    assert torch.equal(vendor.int_mm(q, q_scales, w, scales, bias), expected)
    together = vendor.int_mm(q.unsqueeze(0), q_scales.unsqueeze(0), w, scales, bias)
    assert torch.equal(together, expected.unsqueeze(0))


@pytest.mark.gpu
@pytest.mark.parametrize("num_rows", [0, 1, 16, 70])
def test_float8(num_rows):
    q, q_scales, w, scales, bias = layer("float8_e4m3fn", num_rows)
    assert vendor.is_float8(q, w)
    for added in (None, bias):
        got, expected = (f(q, q_scales, w, scales, added) for f in (vendor.scaled_mm, linear_w8a8))
        assert_close(got, expected)


def test_what_the_libraries_take():
    rows = TensorSpec(("num_tokens", 40), torch.int8)
    assert vendor.is_int8(rows, TensorSpec((8, 40), torch.int8))
    assert not vendor.is_int8(rows, TensorSpec((7, 40), torch.int8))
    rows = TensorSpec(("num_tokens", 40), torch.float8_e4m3fn)
    assert not vendor.is_float8(rows, TensorSpec((16, 40), torch.float8_e4m3fn))
    assert not vendor.is_float8(rows, TensorSpec((16, 32), torch.float8_e4m3fn), dtype="float32")
