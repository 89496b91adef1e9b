"""Kernels that work row by row, against the references, on every set of instructions; a row alone = among others."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.ops.attention import append_kv
from quire.ops.elementwise import add, gelu, mul, relu, silu
from quire.ops.fused import add_rms_norm, add_rms_norm_quant, rms_norm_quant, rope_append_kv, silu_mul, silu_mul_quant
from quire.ops.layout import index_select
from quire.ops.linear import embedding
from quire.ops.native import library, rows
from quire.ops.native.table import TACTICS
from quire.ops.norm import layer_norm, rms_norm
from quire.ops.quantize import quantize_rows
from quire.ops.registry import OPS
from quire.ops.rope import rope, rope_table
from tests.support.tolerance import assert_close

pytestmark = pytest.mark.skipif(library.library() is None, reason="no compiled kernels")
ISAS = library.library().isas() if library.library() else []
FLOATS = [torch.float32, torch.bfloat16, torch.float16]
WIDTHS = [1, 7, 16, 31, 64, 127, 131, 896]


@pytest.fixture(params=ISAS, autouse=True)
def isa(request, monkeypatch):
    """Run every test on each set of instructions."""
    monkeypatch.setattr(rows, "call", partial(library.call, isa=request.param))
    return request.param


def randn(*shape, dtype=torch.float32, seed=0, scale=1.0):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def in_steps(x):
    """Return 8-bit values as integers that neighbours differ in by 1."""
    codes = x.view(torch.int8).int()
    return codes if x.dtype == torch.int8 else torch.where(codes < 0, -(codes & 0x7F), codes)


def exact_layer_norm(x, weight, bias, eps):
    """Return the reference in float64, rounded: in float32 it subtracts two large products where the width is 1."""
    wide = layer_norm.reference(x.double(), weight.double(), None if bias is None else bias.double(), eps)
    return wide.to(x.dtype)


def assert_rows(got, expected):
    """Compare results of one or several parts; rows of 8 bits may be one step off where a float was on the edge."""
    if not isinstance(got, tuple):
        got, expected = (got,), (expected,)
    for one, other in zip(got, expected, strict=True):
        if one.dtype in (torch.int8, torch.float8_e4m3fn):
            assert one.shape == other.shape and one.dtype == other.dtype
            assert not one.numel() or (in_steps(one) - in_steps(other)).abs().max() <= 1
        else:
            assert_close(one, other)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("leading", [(0,), (1,), (5,), (3, 2)])
def test_norms(dtype, width, leading):
    x, residual = randn(*leading, width, dtype=dtype, scale=3), randn(*leading, width, dtype=dtype, seed=1)
    weight, bias = randn(width, dtype=dtype, seed=2), randn(width, dtype=dtype, seed=3)
    assert_rows(rows.rms_norm(x, weight, 1e-6), rms_norm(x, weight, 1e-6))
    assert_rows(rows.add_rms_norm(x, residual, weight, 1e-6), add_rms_norm(x, residual, weight, 1e-6))
    assert_rows(rows.layer_norm(x, weight, bias, 1e-5), exact_layer_norm(x, weight, bias, 1e-5))
    assert_rows(rows.layer_norm(x, weight, None, 1e-5), exact_layer_norm(x, weight, None, 1e-5))
    if x.numel():
        for to in ("int8", "float8_e4m3fn"):
            assert_rows(rows.rms_norm_quant(x, weight, 1e-6, to), rms_norm_quant(x, weight, 1e-6, to))
            expected = add_rms_norm_quant(x, residual, weight, 1e-6, to)
            assert_rows(rows.add_rms_norm_quant(x, residual, weight, 1e-6, to), expected)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("leading", [(0,), (1,), (6,), (2, 3)])
def test_activations_and_arithmetic(dtype, width, leading):
    x = randn(*leading, 2 * width, dtype=dtype, scale=4)
    assert_rows(rows.silu_mul(x), silu_mul(x))
    assert_rows(rows.silu(x), silu(x))
    assert_rows(rows.relu(x), relu(x))
    for form in ("none", "tanh"):
        assert_rows(rows.gelu(x, form), gelu(x, form))
    if x.numel():
        for to in ("int8", "float8_e4m3fn"):
            assert_rows(rows.silu_mul_quant(x, to), silu_mul_quant(x, to))
    for y in (randn(*leading, 2 * width, dtype=dtype, seed=1), randn(2 * width, dtype=dtype, seed=2)):
        assert torch.equal(rows.add(x, y), add(x, y)) and torch.equal(rows.mul(y, x), mul(y, x))
    assert torch.equal(rows.add_number(x, 1.25), add(x, 1.25)) and torch.equal(rows.mul_number(x, 1.3), mul(x, 1.3))


@pytest.mark.parametrize(
    ("left", "right"),
    [((3, 4, 5), (4, 5)), ((3, 1, 5), (1, 4, 5)), ((2, 3, 4, 5), (3, 1, 5)), ((5,), (2, 5)), ((1, 5), (0, 5))],
)
def test_arithmetic_broadcasts(left, right):
    x, y = randn(*left), randn(*right, seed=1)
    assert torch.equal(rows.add(x, y), x + y) and torch.equal(rows.mul(y, x), y * x)
    assert torch.equal(rows.add(strided(x, 3), strided(y, 2)), x + y)


def test_arithmetic_of_integers():
    for dtype in (torch.int32, torch.int64):
        x = torch.arange(21, dtype=dtype)
        assert torch.equal(rows.add_number(x, 2), x + 2) and torch.equal(rows.mul(x, x), x * x)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("to", ["int8", "float8_e4m3fn"])
def test_quantized_rows_are_the_reference_bit_for_bit(dtype, to):
    for width in WIDTHS:
        x = randn(9, width, dtype=dtype, scale=5)
        x[3] = 0
        x[4] *= 1e-6
        x[5, -1] = 3e4
        (got, scales), (expected, expected_scales) = rows.quantize_rows(x, to), quantize_rows(x, to)
        assert torch.equal(scales, expected_scales) and torch.equal(got.float(), expected.float())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_has_a_scale_that_is_not(bad):
    x = randn(3, 40)
    x[1, 17] = bad
    _, scales = rows.quantize_rows(x)
    assert scales.isfinite().flatten().tolist() == [True, False, True]


def test_every_float8_and_every_midpoint_between_two():
    codes = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    x = torch.cat((codes, (codes[1:] + codes[:-1]) / 2, torch.tensor([448.0])))
    x = torch.cat((x, -x, x.nextafter(torch.tensor(torch.inf)).clamp(max=448), x.nextafter(torch.tensor(-torch.inf))))
    x = x[None].clamp(-448, 448)
    assert torch.equal(rows.quantize_rows(x, "float8_e4m3fn")[0].float(), x.to(torch.float8_e4m3fn).float())


def test_activations_of_extreme_values():
    x = torch.tensor([[0.0, -0.0, 1e4, -1e4, 1e38, -1e38, 88.0, -88.0, 1e-30, -1e-30, 700.0, -700.0]])
    for ours, reference in ((rows.silu, silu), (rows.gelu, gelu), (partial(rows.gelu, approximate="tanh"), gelu)):
        assert torch.allclose(ours(x), reference(x), rtol=1e-6, atol=1e-33), ours
    assert (
        rows.silu(torch.full((1, 3), torch.nan)).isnan().all()
        and rows.relu(torch.full((1, 3), torch.nan)).isnan().all()
    )


def strided(x, gap):
    """Return the same values in rows that lie further apart."""
    wide = torch.zeros(*x.shape[:-1], x.shape[-1] + gap, dtype=x.dtype)
    wide[..., : x.shape[-1]] = x
    return wide[..., : x.shape[-1]]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(64, 64), (128, 128), (80, 80), (10, 10), (64, 32), (48, 6)])
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_rope(dtype, head_dim, rotary_dim, index):
    table = rope_table(50, rotary_dim)
    for tokens, heads in ((0, 3), (1, 1), (7, 5)):
        qkv = randn(tokens, heads + 4, head_dim, dtype=dtype)
        positions = (torch.arange(tokens) * 7 % 50).to(index)
        x = qkv[:, :heads]
        assert torch.equal(rows.rope(x, positions, table), rope(x, positions, table))


CACHES = [(dtype, dtype) for dtype in FLOATS] + [
    (dtype, to) for dtype in FLOATS for to in (torch.int8, torch.float8_e4m3fn)
]


@pytest.mark.parametrize(("dtype", "cache_dtype"), CACHES)
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_kv_writes(dtype, cache_dtype, index):
    tokens, heads, kv_heads, head_dim, block_size = 11, 6, 2, 40, 4
    qkv = randn(tokens, heads + 2 * kv_heads, head_dim, dtype=dtype)
    query, key, value = qkv.split((heads, kv_heads, kv_heads), 1)
    slots = torch.randperm(20, generator=torch.Generator().manual_seed(1))[:tokens].to(index)
    slots[[2, 5]] = -1
    scales = None if dtype == cache_dtype else torch.tensor([[0.02, 0.01], [0.013, 0.03]])
    table, positions = rope_table(64, head_dim), torch.arange(tokens).to(index) * 3
    caches = [torch.zeros(2, 5, kv_heads, block_size, head_dim).to(cache_dtype) for _ in range(4)]
    rows.append_kv(key, value, caches[0], slots, scales)
    append_kv(key, value, caches[1], slots, scales)
    rotated = rows.rope_append_kv(query, key, value, positions, table, caches[2], slots, scales)
    assert torch.equal(rotated, rope_append_kv(query, key, value, positions, table, caches[3], slots, scales))
    assert torch.equal(caches[0].float(), caches[1].float()) and torch.equal(caches[2].float(), caches[3].float())
    assert caches[2].float().abs().sum() > 0


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int8, torch.int64])
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_gathers(dtype, index):
    table = (randn(13, 37) * 50).to(dtype)
    for ids in ([], [12], [3, 3, 0, 12, 7]):
        ids = torch.tensor(ids).to(index)
        assert torch.equal(rows.index_select(table, ids), index_select(table, ids))
        assert torch.equal(rows.index_select(strided(table, 5), ids), index_select(table, ids))
        if dtype in FLOATS:
            assert torch.equal(rows.embedding(ids, table), embedding(ids, table))
    cube = randn(5, 3, 4)
    assert torch.equal(rows.index_select(cube, torch.tensor([4, 1])), cube[[4, 1]])


@pytest.mark.parametrize("tactic", TACTICS, ids=lambda tactic: f"{tactic.op}.{tactic.name}")
def test_tactics_name_kernels_and_arguments_that_there_are(isa, tactic):
    assert tactic.kernel.name in library.kernel_names(isa)
    named = {operand.partition(".")[0] for operand in tactic.kernel.operands}
    assert named <= set(OPS[tactic.op].signature.parameters)


def of_rows(x, residual, weight):
    """Return everything that has a row for each of x's."""
    return (
        rows.rms_norm(x, weight, 1e-6), *rows.add_rms_norm(x, residual, weight, 1e-6),
        *rows.rms_norm_quant(x, weight, 1e-6), *rows.add_rms_norm_quant(x, residual, weight, 1e-6),
        rows.layer_norm(x, weight, weight, 1e-6), *rows.quantize_rows(x), rows.silu(x), rows.gelu(x),
        rows.gelu(x, "tanh"), rows.relu(x), rows.add(x, residual), rows.mul(x, residual),
        *((rows.silu_mul(x), *rows.silu_mul_quant(x)) if x.shape[-1] % 2 == 0 else ()),
    )  # fmt: skip


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", FLOATS[:2])
def test_a_row_alone_is_the_row_among_others(isa, monkeypatch, threads, dtype):
    """Of any number of rows on any number of threads; the terms of every second row cancel."""
    width = 150
    x, residual = randn(300, width, dtype=dtype, scale=30), randn(300, width, dtype=dtype, seed=1)
    x[::2, 1::2] = -x[::2, ::2]
    weight = randn(width, dtype=dtype, seed=2)
    monkeypatch.setattr(rows, "call", partial(library.call, isa=isa, num_threads=1))
    alone = of_rows(x, residual, weight)
    monkeypatch.setattr(rows, "call", partial(library.call, isa=isa, num_threads=threads))
    for count in (*range(1, 71), 300):
        first = 300 - count
        together = of_rows(strided(x[first:], 3), strided(residual[first:], 1), weight)
        assert all(torch.equal(one, other[first:]) for one, other in zip(together, alone, strict=True)), count


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 9), st.integers(1, 200), st.sampled_from(FLOATS), st.integers(0, 7), st.integers(1, 4),
    st.floats(1e-3, 30.0),
)  # fmt: skip
def test_fuzzed_shapes_and_strides(count, width, dtype, gap, threads, scale):
    original = rows.call
    rows.call = partial(library.call, isa=ISAS[count % len(ISAS)], num_threads=threads)
    try:
        x, residual = (
            strided(randn(count, 2 * width, dtype=dtype, scale=scale), gap),
            randn(count, 2 * width, dtype=dtype),
        )
        weight = randn(2 * width, dtype=dtype, seed=3)
        assert_rows(rows.add_rms_norm(x, residual, weight, 1e-6), add_rms_norm(x, residual, weight, 1e-6))
        assert_rows(rows.silu_mul(x), silu_mul(x))
        assert_rows(rows.layer_norm(x, weight, None, 1e-6), exact_layer_norm(x, weight, None, 1e-6))
        if count:
            assert_rows(rows.quantize_rows(x), quantize_rows(x))
    finally:
        rows.call = original
