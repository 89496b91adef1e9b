"""Fused ops are exactly their parts, and their tactics have the references' bits, a row's wherever it lies."""

import pytest
import torch

from quire.core.errors import ShapeError
from quire.ops import attention, elementwise, fused, norm, quantize, rope
from quire.ops.cpu import fused as cpu
from quire.ops.cpu import quantize as cpu_quantize
from quire.ops.cpu.elementwise import silu
from quire.ops.spec import TensorSpec
from quire.ops.tactics import tactics_for

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
EIGHT_BITS = ("int8", "float8_e4m3fn")


def rows(num_rows, width, dtype, seed=0, scale=3.0):
    return (torch.randn(num_rows, width, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def same(got, expected):
    """Whether tensors, or tuples of them, are equal bit for bit."""
    pairs = zip(got, expected, strict=True) if isinstance(got, tuple) else [(got, expected)]
    return all(a.dtype == b.dtype and torch.equal(a.float(), b.float()) for a, b in pairs)


CASES = {
    "silu_mul": (cpu.silu_mul, fused.silu_mul, 2, {}),
    "rms_norm": (cpu.rms_norm, norm.rms_norm, 1, {"eps": 1e-5}),
    "add_rms_norm": (cpu.add_rms_norm, fused.add_rms_norm, 1, {"eps": 1e-5}),
    **{
        f"{name}-{dtype}": (tactic, reference, factor, {**more, "dtype": dtype})
        for dtype in EIGHT_BITS
        for name, tactic, reference, factor, more in (
            ("quantize_rows", cpu_quantize.quantize_rows, quantize.quantize_rows, 1, {}),
            ("silu_mul_quant", cpu.silu_mul_quant, fused.silu_mul_quant, 2, {}),
            ("rms_norm_quant", cpu.rms_norm_quant, fused.rms_norm_quant, 1, {"eps": 1e-5}),
            ("add_rms_norm_quant", cpu.add_rms_norm_quant, fused.add_rms_norm_quant, 1, {"eps": 1e-5}),
        )
    },
}


@pytest.mark.parametrize("width", (1, 7, 37, 64, 1000))
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_tactics_have_the_bits_of_the_references(name, dtype, width):
    tactic, reference, factor, options = CASES[name]
    x = rows(33, factor * width, dtype)
    given = {"x": x, **options}
    if "norm" in name:
        given["weight"] = rows(1, width, dtype, seed=1)[0]
    if name.startswith("add"):
        given["residual"] = rows(33, width, dtype, seed=2)
    kept = {key: value.clone() for key, value in given.items() if isinstance(value, torch.Tensor)}
    together = tactic(**given)
    assert all(torch.equal(given[key], value) for key, value in kept.items()), "an argument was written to"
    if "silu" in name:  # `sigmoid` of torch rounds differently in its vectorised body and its tail
        assert same(tactic(**given), by_parts(name, given))
    else:
        assert same(together, reference(**given))
    for start, count in [(0, 1), (32, 1), (5, 7), (3, 0)]:
        some = {k: v[start : start + count] if k in ("x", "residual") else v for k, v in given.items()}
        alone, cut = tactic(**some), [t[start : start + count] for t in _tuple(together)]
        assert same(_tuple(alone), tuple(cut))


def by_parts(name, given):
    """Return what silu, the product and the rounding give one after the other."""
    gate, up = given["x"].chunk(2, -1)
    product = elementwise.mul(silu(gate.contiguous()), up)
    return quantize.quantize_rows(product, given["dtype"]) if "dtype" in given else product


def _tuple(found):
    return found if isinstance(found, tuple) else (found,)


def test_a_row_that_is_not_finite_stays_alone():
    x = rows(3, 16, torch.float32)
    clean, scales = cpu_quantize.quantize_rows(x)
    x[1, 3] = float("nan")
    got, got_scales = cpu_quantize.quantize_rows(x)
    assert torch.equal(got[[0, 2]], clean[[0, 2]]) and torch.equal(got_scales[[0, 2]], scales[[0, 2]])
    assert not torch.isfinite(got_scales[1]).any()


def test_rows_of_zeros_round_to_zeros():
    values, scales = cpu_quantize.quantize_rows(torch.zeros(2, 8))
    assert not values.any() and (scales > 0).all()


@pytest.mark.parametrize("cache_dtype", [None, "int8", "float8_e4m3fn"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("head_dim, rotary_dim", [(8, 8), (37, 12), (64, 64)])
def test_rope_append_kv(dtype, head_dim, rotary_dim, cache_dtype):
    generator = torch.Generator().manual_seed(0)
    heads = torch.randn(9, 8, head_dim, generator=generator).to(dtype)
    query, key, value = heads[:, :4], heads[:, 4:6], heads[:, 6:]
    positions = torch.tensor([4, 5, 0, 1, 2, 9, 3, 3, 7], dtype=torch.int32)
    slots = torch.tensor([0, 9, -1, 3, 11, 2, 7, 5, -1], dtype=torch.int32)
    table = rope.rope_table(10, rotary_dim, theta=100.0)
    kind = dtype if cache_dtype is None else getattr(torch, cache_dtype)
    scales = None if cache_dtype is None else torch.rand(2, 2, generator=generator) * 0.02 + 0.01
    wanted = torch.zeros(2, 3, 2, 4, head_dim).to(kind)
    rotated = rope.rope(query, positions, table)
    attention.append_kv(rope.rope(key, positions, table), value, wanted, slots, scales)
    arguments = (query, key, value, positions, table)
    once = torch.zeros_like(wanted)
    assert torch.equal(fused.rope_append_kv(*arguments, once, slots, scales), rotated)
    assert torch.equal(once.float(), wanted.float()), "the definition is its parts"
    for tactic in tactics_for("rope_append_kv", "cpu"):
        got = torch.zeros_like(wanted)
        prepared = {"prepared": tactic.prepare(*arguments, got, slots, scales)} if tactic.prepare else {}
        assert torch.equal(tactic.run(*arguments, got, slots, scales, **prepared), rotated), tactic.name
        assert torch.equal(got.float(), wanted.float()), tactic.name


def test_shapes_that_do_not_fit_are_refused():
    x = TensorSpec(("num_tokens", 7), torch.float32)
    with pytest.raises(ShapeError, match="silu_mul: Invalid shape of x: expected an even last size, got 7"):
        fused.silu_mul.check(x)
    weight = TensorSpec((7,), torch.float32)
    with pytest.raises(ShapeError, match="residual"):
        fused.add_rms_norm.check(x, TensorSpec(("num_tokens", 6), torch.float32), weight, 1e-5)
    with pytest.raises(ShapeError, match="Invalid dtype: expected one of int8, float8_e4m3fn, got 'int4'"):
        fused.rms_norm_quant.check(x, weight, 1e-5, "int4")
