"""Row-wise kernels against the references; a row's bits are the same alone, in any batch and in any view."""

import numpy as np
import pytest
import torch

from quire.ops import elementwise, fused, norm, quantize
from quire.ops.triton import elementwise as triton_elementwise
from quire.ops.triton import norm as triton_norm
from tests.support.tolerance import assert_close

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
EIGHT_BITS = ("int8", "float8_e4m3fn")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def rows(*sizes, dtype, seed=0, scale=3.0):
    return (torch.randn(*sizes, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype).to(DEVICE)


FUNCTIONS = {
    "rms_norm": (triton_norm.rms_norm, norm.rms_norm, {"weight", "eps"}),
    "add_rms_norm": (triton_norm.add_rms_norm, fused.add_rms_norm, {"residual", "weight", "eps"}),
    "layer_norm": (triton_norm.layer_norm, norm.layer_norm, {"weight", "bias", "eps"}),
    "silu": (triton_elementwise.silu, elementwise.silu, set()),
    "gelu": (triton_elementwise.gelu, elementwise.gelu, set()),
    "gelu_tanh": (triton_elementwise.gelu, elementwise.gelu, {"approximate"}),
    "silu_mul": (triton_elementwise.silu_mul, fused.silu_mul, set()),
    "rms_norm_quant": (triton_norm.rms_norm_quant, fused.rms_norm_quant, {"weight", "eps", "dtype"}),
    "add_rms_norm_quant": (
        triton_norm.add_rms_norm_quant,
        fused.add_rms_norm_quant,
        {"residual", "weight", "eps", "dtype"},
    ),
    "silu_mul_quant": (triton_elementwise.silu_mul_quant, fused.silu_mul_quant, {"dtype"}),
    "quantize_rows": (triton_elementwise.quantize_rows, quantize.quantize_rows, {"dtype"}),
}


def arguments(x, names, dtype="int8"):
    width = x.shape[-1]
    every = {
        "residual": lambda: rows(*x.shape, dtype=x.dtype, seed=1),
        "weight": lambda: rows(width, dtype=x.dtype, seed=2, scale=1.0),
        "bias": lambda: rows(width, dtype=x.dtype, seed=3, scale=1.0),
        "eps": lambda: 1e-5,
        "approximate": lambda: "tanh",
        "dtype": lambda: dtype,
    }
    return {name: every[name]() for name in names}


def agree(got, expected, dtype):
    """Floats within the table; eight bits: scales within the table, values off by a step at most, few of them."""
    if not isinstance(got, tuple):
        got, expected = (got,), (expected,)
    for one, other in zip(got, expected, strict=True):
        if one.dtype in (torch.int8, torch.float8_e4m3fn):
            assert one.shape == other.shape and one.dtype == other.dtype
            step = torch.ones_like(other.float()) if one.dtype == torch.int8 else other.float().abs() / 8 + 2**-9
            away = (one.float() - other.float()).abs()
            assert (away <= step).all()
            if one.numel() > 100:
                assert (away > 0).float().mean() < 0.02
        else:
            assert_close(one, other)


def bits(tensors):
    tensors = tensors if isinstance(tensors, tuple) else (tensors,)
    return [t.contiguous().view(torch.uint8).cpu() for t in tensors]


@pytest.mark.parametrize("sizes", [(1, 64), (3, 7), (5, 1), (2, 3, 256), (2, 1000), (0, 64)], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_kernels_agree_with_the_references(name, dtype, sizes):
    kernel, reference, names = FUNCTIONS[name]
    if sizes[0] == 0 and "quant" in name:
        pytest.skip("the reference takes no maximum of nothing")
    factor = 2 if name.startswith("silu_mul") else 1
    x = rows(*sizes[:-1], sizes[-1] * factor, dtype=dtype)
    for eight_bits in EIGHT_BITS if "dtype" in names else EIGHT_BITS[:1]:
        given = arguments(x, names, eight_bits)
        agree(kernel(x, **given), reference.reference(x, **given), dtype)


@pytest.mark.parametrize("name", ["rms_norm", "add_rms_norm_quant", "layer_norm", "silu_mul_quant"])
def test_rows_wider_than_registers(name):
    kernel, reference, names = FUNCTIONS[name]
    x = rows(2, 40000, dtype=torch.bfloat16)
    given = arguments(x, names)
    agree(kernel(x, **given), reference.reference(x, **given), x.dtype)


def test_without_bias():
    x, weight = rows(3, 48, dtype=torch.float32), rows(48, dtype=torch.float32, seed=1)
    assert_close(triton_norm.layer_norm(x, weight, None, 1e-5), norm.layer_norm.reference(x, weight, None, 1e-5))


@pytest.mark.parametrize("width", (64, 100, 17))
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_row_keeps_its_bits(name, width):
    kernel, _, names = FUNCTIONS[name]
    x = rows(9, 2 * width, dtype=torch.bfloat16)
    given = arguments(x, names)
    together = bits(kernel(x, **given))
    for i in (0, 3, 8):
        own = {k: v[i : i + 1] if k == "residual" else v for k, v in given.items()}
        alone = bits(kernel(x[i : i + 1], **own))
        assert all(map(torch.equal, [each[i : i + 1] for each in together], alone))


@pytest.mark.parametrize("width", (64, 40))
@pytest.mark.parametrize("name", FUNCTIONS)
def test_views_have_the_bits_of_copies(name, width):
    kernel, _, names = FUNCTIONS[name]
    parent = rows(4, 3, 2 * width + 64, dtype=torch.bfloat16)
    for view in (parent[:, :2, 16 : 16 + 2 * width], parent[:, 1, : 2 * width], parent[1:2, :, 3 : 3 + 2 * width]):
        given = arguments(view, names)
        got, expected = bits(kernel(view, **given)), bits(kernel(view.clone().contiguous(), **given))
        assert all(map(torch.equal, got, expected))


def test_halves_are_rounded_to_even():
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, 126.5, -126.5]], device=DEVICE)
    got, scales = triton_elementwise.quantize_rows(x)
    assert got.tolist() == [[127, 0, 2, 2, 0, -2, 126, -126]] and scales.tolist() == [[1.0]]


@pytest.mark.parametrize("dtype", EIGHT_BITS)
def test_rows_of_zeros_and_rows_that_are_not_finite(dtype):
    x = torch.zeros(4, 32, device=DEVICE)
    x[1, 5], x[2, 6], x[3] = float("nan"), float("inf"), 1.0
    with np.errstate(invalid="ignore"):
        got, scales = triton_elementwise.quantize_rows(x, dtype)
    assert scales.isfinite().flatten().tolist() == [True, False, False, True]
    assert scales[0] > 0 and not got[0].float().any()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kept", EIGHT_BITS)
def test_quotients_are_those_of_a_division(kept, dtype):
    x = rows(2048, 4096, dtype=torch.float32) * torch.logspace(-4, 4, 2048, device=DEVICE)[:, None]
    x = x.clamp(-6e4, 6e4).to(dtype)  # float16 ends at 65504, and rows that are not finite may be any int8
    x[:, ::7] *= 1e-3
    x[3], x[4, 5:], x[5, ::2] = 0.0, 0.0, -0.0
    # On a CPU: torch divides by a number that is no tensor by multiplying on a GPU.
    got, expected = triton_elementwise.quantize_rows(x, kept), quantize.quantize_rows.reference(x.cpu(), kept)
    assert all(torch.equal(one, other) for one, other in zip(bits(got), bits(expected), strict=True))
