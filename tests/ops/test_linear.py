"""linear: the packed tactic against the reference, and every row's bits whatever is computed beside it."""

import pytest
import torch

from quire.core.errors import ShapeError
from quire.ops.cpu import linear as cpu
from quire.ops.linear import embedding, linear
from tests.support.tolerance import assert_close

DTYPES = (torch.float32, torch.bfloat16)
SHAPES = [(1, 1), (7, 3), (37, 53), (64, 64), (256, 96), (100, 1000), (4864, 96), (1024, 64)]


def _case(dtype, in_features, out_features, rows, has_bias=True):
    generator = torch.Generator().manual_seed(in_features * 1000 + out_features)
    weight = (torch.randn(out_features, in_features, generator=generator) / in_features**0.5).to(dtype)
    bias = torch.randn(out_features, generator=generator).to(dtype) if has_bias else None
    return torch.randn(rows, in_features, generator=generator).to(dtype), weight, bias


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("in_features, out_features", SHAPES)
@pytest.mark.parametrize("has_bias", [False, True])
def test_tactic_equals_reference_and_rows_keep_their_bits(dtype, in_features, out_features, has_bias):
    x, weight, bias = _case(dtype, in_features, out_features, 65, has_bias)
    packed = cpu.pack(weight)
    together = cpu.run(x, packed, bias)
    assert_close(together, linear(x, weight, bias))
    for start, count in [(0, 1), (64, 1), (3, 2), (5, 3), (1, 7), (2, 16), (9, 17), (20, 33), (1, 64)]:
        alone = cpu.run(x[start : start + count], packed, bias)
        assert torch.equal(alone, together[start : start + count]), (start, count)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_more_rows_than_the_largest_count(dtype):
    x, weight, bias = _case(dtype, 33, 20, 1030)
    packed = cpu.pack(weight)
    together = cpu.run(x, packed, bias)
    assert_close(together, linear(x, weight, bias))
    assert torch.equal(together[1020:], cpu.run(x[1020:], packed, bias))


def test_two_threads_keep_bits_too():
    threads = torch.get_num_threads()
    x, weight, bias = _case(torch.bfloat16, 256, 512, 40)
    packed = cpu.pack(weight)
    try:
        torch.set_num_threads(2)
        together = cpu.run(x, packed, bias)
        assert all(torch.equal(cpu.run(x[i : i + 1], packed, bias), together[i : i + 1]) for i in range(0, 40, 7))
    finally:
        torch.set_num_threads(threads)


def test_row_count_that_fails_its_proof_is_not_used(monkeypatch):
    """A kernel that sums in another order at one row count must never be called with it outside the proof."""
    x, weight, _ = _case(torch.float32, 19, 23, 40)
    packed = cpu.pack(weight)
    honest, used = cpu._gemm, []

    def gemm(rows, weight, bias):
        used.append(rows.shape[0])
        return honest(rows, weight, bias) + (1e-3 if rows.shape[0] == 48 else 0)

    expected = cpu.run(x, packed)
    packed.proofs.known.clear()
    monkeypatch.setattr(cpu, "_gemm", gemm)
    assert torch.equal(cpu.run(x, packed), expected)
    used.clear()
    assert torch.equal(cpu.run(x, packed), expected)
    assert 48 not in used
    packed.proofs.known.clear()


def test_empty_and_leading_dimensions():
    x, weight, bias = _case(torch.float32, 8, 5, 6)
    packed = cpu.pack(weight)
    assert cpu.run(x[:0], packed, bias).shape == (0, 5)
    assert cpu.run(x.view(2, 3, 8), packed, bias).shape == (2, 3, 5)
    assert_close(cpu.run(x.t().contiguous().t(), packed, bias), linear(x, weight, bias))


def test_half_precision_runs_without_packing():
    x, weight, bias = _case(torch.float16, 32, 16, 5)
    assert_close(cpu.run(x, cpu.pack(weight), bias), linear(x, weight, bias))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_without_onednn_rows_keep_their_bits_too(monkeypatch, dtype):
    """A processor or a build of torch without oneDNN for this dtype: slower, but the same promise."""
    monkeypatch.setattr(cpu, "_is_supported", lambda dtype: False)
    monkeypatch.setattr(cpu, "_PROOFS", {})
    x, weight, bias = _case(dtype, 37, 53, 65)
    packed = cpu.pack(weight)
    assert not packed.is_packed
    together = cpu.run(x, packed, bias)
    assert_close(together, linear(x, weight, bias))
    for start, count in [(0, 1), (3, 2), (5, 3), (1, 7), (9, 17), (20, 33)]:
        assert torch.equal(cpu.run(x[start : start + count], packed, bias), together[start : start + count])


def test_errors_name_the_argument():
    with pytest.raises(
        ShapeError, match=r"linear: Invalid shape of weight: expected \[out_features=4, in_features=5\]"
    ):
        linear(torch.zeros(3, 5), torch.zeros(4, 6))
    with pytest.raises(ShapeError, match="expected one dtype for all"):
        linear(torch.zeros(3, 5), torch.zeros(4, 5).bfloat16())
    with pytest.raises(ShapeError, match="Invalid dtype of ids"):
        embedding(torch.zeros(3), torch.zeros(4, 5))
