"""Quantized linear layers in Triton against the references, exactly where sums are exact."""

import pytest
import torch

from quire.ops import linear as ops
from quire.ops.cuda.table import TACTICS
from quire.ops.quantize import dequantize_int4, quantize_rows, quantize_weight, quantize_weight_int4
from quire.ops.spec import TensorSpec
from quire.ops.tactics import tactics_for
from quire.ops.triton import linear
from quire.ops.triton import quantized_linear as kernels
from quire.ops.triton.packing import pack_w4a16, pack_w8a16
from tests.ops.triton.test_linear import DEVICE, DTYPES, rows, summable
from tests.support.tolerance import assert_close

SHAPES = [(1, 1, 1), (3, 5, 6), (70, 40, 64), (67, 130, 144)]
PARTS = [(0, 1), (79, 1), (3, 16), (5, 17), (10, 64), (8, 65)]
EIGHT_BITS = ("int8", "float8_e4m3fn")
ROUNDS_ALIKE = DTYPES if DEVICE == "cuda" else (torch.float32, torch.float16)
"""dtypes that the kernels round to as torch does; the interpreter cuts bfloat16 off."""


def name_of(dtype):
    return str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("num_rows, out_features, in_features", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kept", EIGHT_BITS)
def test_eight_bits(kept, dtype, num_rows, out_features, in_features, has_bias):
    x, weight = rows(num_rows, in_features, dtype), rows(out_features, in_features, dtype, seed=1)
    bias = rows(1, out_features, dtype, seed=2)[0] if has_bias else None
    (q, q_scales), (w, scales) = quantize_rows(x, kept), quantize_weight(weight, kept)
    assert_close(kernels.linear_w8a16(x, pack_w8a16(w), scales, bias), ops.linear_w8a16(x, w, scales, bias))
    got = kernels.linear_w8a8(q, q_scales, w, scales, bias, name_of(dtype))
    expected = ops.linear_w8a8(q, q_scales, w, scales, bias, name_of(dtype))
    if kept == "int8" or DEVICE == "cpu":
        assert_close(got, expected)
    else:  # tensor cores add float8 in about 14 bits
        assert_close(got.bfloat16(), expected.bfloat16())
    if kept == "int8" and dtype in ROUNDS_ALIKE:
        assert torch.equal(got, expected), "exact sums, scaled in the same order"


@pytest.mark.parametrize("in_features", [72, 80])
@pytest.mark.parametrize("kept", EIGHT_BITS)
def test_rows_of_eight_bits_keep_their_bits(kept, in_features):
    x, weight = summable(80, in_features, torch.bfloat16), summable(48, in_features, torch.bfloat16, seed=1)
    w, scales = weight.mul(4).to(getattr(torch, kept)), rows(1, 48, torch.float32, seed=2)[0]
    q, q_scales = x.mul(4).to(w.dtype), rows(80, 1, torch.float32, seed=3)
    packed = pack_w8a16(w)
    calls = (
        lambda part: kernels.linear_w8a16(x[part], packed, scales),
        lambda part: kernels.linear_w8a8(q[part], q_scales[part], w, scales),
    )
    for call in calls:
        together = call(slice(None))
        assert all(torch.equal(call(slice(s, s + n)), together[s : s + n]) for s, n in PARTS)


@pytest.mark.gpu
@pytest.mark.parametrize("out_features, in_features", [(4096, 4096), (1024, 14336), (28672, 4096)])
def test_rows_keep_their_bits_in_layers_of_real_size(out_features, in_features):
    x, weight = rows(1024, in_features, torch.bfloat16), rows(out_features, in_features, torch.bfloat16, seed=1)
    four = quantize_weight_int4(weight)
    packed = pack_w4a16(*four)
    calls = {"w4a16": lambda part: kernels.linear_w4a16(x[part], packed, None, None)}
    for kept in EIGHT_BITS:
        (q, q_scales), (w, scales) = quantize_rows(x, kept), quantize_weight(weight, kept)
        bytes_ = pack_w8a16(w)
        calls[f"w8a16 {kept}"] = lambda part, w=bytes_, s=scales: kernels.linear_w8a16(x[part], w, s)
        calls[f"w8a8 {kept}"] = lambda part, q=q, q_scales=q_scales, w=w, s=scales: kernels.linear_w8a8(
            q[part], q_scales[part], w, s
        )
    for name, call in calls.items():
        together = call(slice(None))
        for count in (1, 2, 16, 17, 33, 64, 65, 100, 128, 200, 256, 512, 777, 1000):
            assert torch.equal(call(slice(7, 7 + count)), together[7 : 7 + count]), (name, count)
    expanded = linear.linear(x, dequantize_int4(*four).to(x.dtype))
    assert torch.equal(calls["w4a16"](slice(None)), expanded), "as if it were expanded"


@pytest.mark.gpu
@pytest.mark.parametrize("out_features, in_features", [(4096, 4096), (1024, 14336)])
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("kept", EIGHT_BITS)
def test_eight_bits_are_as_if_expanded(kept, dtype, out_features, in_features):
    x = rows(1024, in_features, dtype)
    w, _ = quantize_weight(rows(out_features, in_features, dtype, seed=1), kept)
    packed, ones = pack_w8a16(w), torch.ones(out_features, device=DEVICE)
    expanded = linear.linear(x, w.to(dtype))
    for count in (1, 5, 16, 17, 33, 64, 65, 128, 200, 512, 1024):
        assert torch.equal(kernels.linear_w8a16(x[:count], packed, ones), expanded[:count]), count


@pytest.mark.parametrize("num_rows", [33, 70])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kept", EIGHT_BITS)
def test_every_value_of_eight_bits_is_exact(kept, dtype, num_rows):
    codes = torch.arange(256, dtype=torch.uint8, device=DEVICE).view(16, 16).repeat(1, 9).view(getattr(torch, kept))
    codes = torch.where(codes.float().isnan(), torch.zeros_like(codes.float()), codes.float()).to(codes.dtype)
    packed, ones = pack_w8a16(codes), torch.ones(16, device=DEVICE)
    assert torch.equal(kernels.expand(packed, 144, dtype), codes.to(dtype))
    x = torch.eye(144, dtype=dtype, device=DEVICE)[-num_rows:]
    assert torch.equal(kernels.linear_w8a16(x, packed, ones), codes.to(dtype).t()[-num_rows:])


def test_float8_without_tensor_cores_for_it(monkeypatch):
    """Ampere has none: there the kernels read the bits and make float16 of them."""
    codes = torch.arange(256, dtype=torch.uint8, device=DEVICE).view(torch.float8_e4m3fn)[None].repeat(3, 1)
    codes = torch.where(codes.float().isnan(), torch.zeros_like(codes.float()), codes.float()).to(codes.dtype)
    weight, scales = torch.eye(256, device=DEVICE).to(codes.dtype), torch.ones(256, device=DEVICE)
    monkeypatch.setattr(linear, "capability", lambda x: (8, 0))
    got = kernels.linear_w8a8(codes, torch.ones(3, 1, device=DEVICE), weight, scales, None, "float16")
    assert torch.equal(got, codes.half())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "num_rows, out_features, in_features, group",
    [(3, 5, 6, 2), (70, 40, 64, 32), (2, 7, 256, 128), (67, 9, 192, 64), (3, 8, 80, 40)],
)
def test_four_bits(dtype, num_rows, out_features, in_features, group):
    x, bias = rows(num_rows, in_features, dtype), rows(1, out_features, dtype, seed=2)[0]
    parts = quantize_weight_int4(rows(out_features, in_features, dtype, seed=1), group)
    got = kernels.linear_w4a16(x, pack_w4a16(*parts), None, None, bias)
    assert_close(got, ops.linear_w4a16(x, *parts, bias))
    assert_close(got, linear.linear(x, dequantize_int4(*parts).to(dtype), bias))


@pytest.mark.parametrize("group", [16, 64])
def test_rows_of_four_bits_keep_their_bits(group):
    x, weight = summable(80, 192, torch.float16), summable(24, 192, torch.float16, seed=1)
    low, scales, zero_points = quantize_weight_int4(weight, group)
    packed = pack_w4a16(low, torch.full_like(scales, 0.25), zero_points)
    together = kernels.linear_w4a16(x, packed, None, None)
    for start, count in PARTS:
        alone = kernels.linear_w4a16(x[start : start + count], packed, None, None)
        assert torch.equal(alone, together[start : start + count])


@pytest.mark.parametrize("shape", [(0,), (2, 0), (2, 3)], ids=str)
def test_empty_and_leading_dimensions(shape):
    x, weight = torch.zeros(*shape, 64, device=DEVICE), rows(8, 64, torch.float32)
    (q, q_scales), (w, scales) = quantize_rows(x), quantize_weight(weight)
    packed = pack_w4a16(*quantize_weight_int4(weight, 32))
    assert kernels.linear_w8a8(q, q_scales, w, scales).shape == (*shape, 8)
    assert kernels.linear_w8a16(x, pack_w8a16(w), scales).shape == (*shape, 8)
    assert kernels.linear_w4a16(x, packed, None, None).shape == (*shape, 8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("in_features", [6, 128, 192])
def test_packed_bytes_say_what_is_held(dtype, in_features):
    tactic = next(tactic for tactic in TACTICS if tactic.op == "linear_w4a16")
    parts = dict(zip(tactic.pack_args, quantize_weight_int4(rows(5, in_features, dtype), 2), strict=True))
    packed = tactic.pack(**parts)
    assert tactic.packed_bytes(**parts) == packed.weight.nbytes + packed.groups.nbytes
    tactic = next(tactic for tactic in TACTICS if tactic.op == "linear_w8a16")
    weight, _ = quantize_weight(rows(5, in_features, dtype))
    assert tactic.packed_bytes(weight=weight) == tactic.pack(weight).weight.nbytes


def test_workspace_has_the_expanded_weight():
    tactic = next(tactic for tactic in TACTICS if tactic.op == "linear_w8a16")
    weight, scales = TensorSpec((48, 32), torch.int8), TensorSpec((48,), torch.float32)

    def held(num_rows, dtype):
        return tactic.workspace_bytes(x=TensorSpec((num_rows, 32), dtype), weight=weight, scales=scales, bias=None)

    assert held(64, torch.bfloat16) == 64 * 48 * 2
    assert held(65, torch.bfloat16) == 65 * 48 * 2 + 48 * 32 * 2
    assert held(1, torch.float32) == 48 * 4 + 48 * 32 * 4


@pytest.mark.parametrize("op", ["linear", "moe", "linear_w8a8", "linear_w8a16", "linear_w4a16"])
def test_the_default_keeps_bits(op):
    (kept,) = [tactic for tactic in tactics_for(op, "cuda") if tactic.keeps_bits]
    assert kept.name == "triton"
