"""Quantized linear layers: the references against exact arithmetic, the CPU tactics against the references."""

import pytest
import torch

from quire.ops.cpu import table
from quire.ops.linear import linear_w4a16, linear_w8a8, linear_w8a16
from quire.ops.native.library import library
from quire.ops.quantize import dequantize_int4, quantize_rows, quantize_weight, quantize_weight_int4
from quire.ops.tactics import tactics_for
from tests.support.tolerance import assert_close

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = [(1, 1), (7, 3), (37, 65), (128, 96), (1024, 64)]


def rows(count, width, dtype, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)).to(dtype)


def packed(op, dtype, arguments, names):
    """Return the default tactic of an op as a call of its other arguments."""
    given = {**arguments, "dtype": str(dtype).removeprefix("torch.")} if op == "linear_w8a8" else arguments
    tactic = next(t for t in tactics_for(op, "cpu") if t.is_valid(**given))
    assert tactic.name != "reference"
    if tactic.pack is None:
        return lambda *rest, **more: tactic.run(*rest, *(arguments[name] for name in names), **more)
    made = tactic.pack(*(arguments[name] for name in tactic.pack_args))
    return lambda *rest, **more: tactic.run(*rest, made, *[None] * (len(names) - 1), **more)


@pytest.fixture(params=["compiled", "torch"], autouse=True)
def kernels(request, monkeypatch):
    """Which tactics there are: compiled kernels first, or torch's alone, as where nothing was compiled."""
    if request.param == "torch":
        monkeypatch.setattr(table, "TACTICS", tuple(one for one in table.TACTICS if one.kernel is None))
    elif library() is None:
        pytest.skip("no compiled kernels")
    return request.param


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("in_features, out_features", SHAPES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_int8_products_are_exact(dtype, in_features, out_features, has_bias):
    x, weight = rows(65, in_features, dtype), rows(out_features, in_features, dtype, seed=1)
    bias = rows(1, out_features, dtype, seed=2)[0] if has_bias else None
    (q, q_scales), (w, scales) = quantize_rows(x), quantize_weight(weight)
    name = str(dtype).removeprefix("torch.")
    exact = (q.double() @ w.double().t()) * scales.double() * q_scales.double() + (bias.double() if has_bias else 0)
    reference = linear_w8a8(q, q_scales, w, scales, bias, name)
    assert_close(reference, exact.to(dtype))
    run = packed("linear_w8a8", dtype, {"x": q, "weight": w, "scales": scales}, ("weight", "scales"))
    together = run(q, q_scales, bias=bias, dtype=name)
    assert torch.equal(together, reference), "exact sums, scaled in the same order"
    for start, count in [(0, 1), (64, 1), (5, 7), (1, 33), (3, 0)]:
        part = slice(start, start + count)
        assert torch.equal(run(q[part], q_scales[part], bias=bias, dtype=name), together[part])


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("in_features, out_features", [(38, 65), (512, 96)])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("scheme", ["w8a16", "w8a16-float8", "w4a16", "fp8"])
def test_expanded_weights(scheme, dtype, in_features, out_features, has_bias):
    x, weight = rows(40, in_features, dtype), rows(out_features, in_features, dtype, seed=1)
    bias = rows(1, out_features, dtype, seed=2)[0] if has_bias else None
    name = str(dtype).removeprefix("torch.")
    if scheme == "w4a16":
        parts = quantize_weight_int4(weight, 2)
        arguments = dict(zip(("weight", "scales", "zero_points"), parts, strict=True))
        call = packed("linear_w4a16", dtype, {"x": x, **arguments}, arguments)
        run = lambda part: call(x[part], bias=bias)  # noqa: E731
        reference = linear_w4a16(x, *parts, bias)
        assert_close(reference, (x.double() @ dequantize_int4(*parts).double().t() + _wide(bias)).to(dtype))
    elif scheme == "fp8":
        (q, q_scales), (w, scales) = (f(t, "float8_e4m3fn") for f, t in ((quantize_rows, x), (quantize_weight, weight)))
        call = packed("linear_w8a8", dtype, {"x": q, "weight": w, "scales": scales}, ("weight", "scales"))
        run = lambda part: call(q[part], q_scales[part], bias=bias, dtype=name)  # noqa: E731
        reference = linear_w8a8(q, q_scales, w, scales, bias, name)
    else:
        w, scales = quantize_weight(weight, "float8_e4m3fn" if "float8" in scheme else "int8")
        call = packed("linear_w8a16", dtype, {"x": x, "weight": w, "scales": scales}, ("weight", "scales"))
        run = lambda part: call(x[part], bias=bias)  # noqa: E731
        reference = linear_w8a16(x, w, scales, bias)
        assert_close(reference, (x.double() @ (w.double() * scales.double()[:, None]).t() + _wide(bias)).to(dtype))
    together = run(slice(None))
    assert_close(together, reference)
    for start, count in [(0, 1), (39, 1), (5, 7), (1, 33), (3, 0)]:
        part = slice(start, start + count)
        assert torch.equal(run(part), together[part])


def _wide(bias):
    return 0 if bias is None else bias.double()


@pytest.mark.parametrize(
    "op, dtype, bytes_each", [("linear_w8a16", torch.bfloat16, 2), ("linear_w8a16", torch.float32, 4)]
)
def test_packed_bytes_say_what_is_held(op, dtype, bytes_each, kernels):
    bytes_each = 1 if kernels == "compiled" else bytes_each
    w, scales = quantize_weight(rows(192, 128, dtype))
    x = rows(1, 128, dtype)
    tactic = next(t for t in tactics_for(op, "cpu") if t.is_valid(x=x, weight=w, scales=scales))
    assert tactic.packed_bytes(weight=w, scales=scales) == 192 * 128 * bytes_each + 192 * 4


@pytest.mark.parametrize("has_vnni", (False, True))
@pytest.mark.parametrize("width", (1, 1024, 1025, 2500))
def test_sums_of_int8_are_exact_with_and_without_instructions_for_them(width, has_vnni, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: has_vnni)
    lowest = torch.full((3, width), -128, dtype=torch.int8)
    varied = torch.randint(-128, 128, (3, width), dtype=torch.int8, generator=torch.Generator().manual_seed(width))
    for x, weight in ((lowest, lowest), (varied, lowest), (varied, varied)):
        one = torch.ones(3)
        got = linear_w8a8.reference(x, one[:, None], weight, one, None, "float32")
        assert torch.equal(got, (x.long() @ weight.long().t()).float())
