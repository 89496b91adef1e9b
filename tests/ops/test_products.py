"""Matmul, softmax and the mixture of experts: against torch, odd and empty shapes, and the bits of single rows."""

import pytest
import torch

from quire.core.errors import ShapeError
from quire.ops import elementwise, layout
from quire.ops.cpu import moe as cpu_moe
from quire.ops.linear import matmul, moe
from quire.ops.norm import softmax
from quire.ops.op import _KINDS
from quire.ops.registry import OPS
from quire.ops.spec import TensorSpec, spec_of
from tests.support.tolerance import assert_close

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(
    "left, right",
    [((1, 1), (1, 1)), ((3, 7), (7, 5)), ((2, 3, 7), (7, 5)), ((2, 1, 3, 7), (4, 7, 1)), ((0, 7), (7, 5)),
     ((3, 0), (0, 5)), ((5, 37, 64), (5, 64, 37))],
)  # fmt: skip
def test_matmul(left, right, dtype):
    x, y = normal(*left, dtype=dtype), normal(*right, dtype=dtype, seed=1)
    assert_close(matmul(x, y), (x.double() @ y.double()).to(dtype))
    assert matmul.check(x, y) == spec_of(matmul(x, y))


def test_matmul_of_symbolic_sizes():
    query, key = (TensorSpec(shape, torch.float32) for shape in ((4, "num_tokens", 8), (4, 8, "num_tokens")))
    assert matmul.check(query, key).shape == (4, "num_tokens", "num_tokens")
    with pytest.raises(ShapeError, match=r"matmul: Invalid shape of y: expected 8 rows for .* got \[4, 'num_tokens'"):
        matmul.check(query, query)
    with pytest.raises(ShapeError, match="expected it to broadcast"):
        matmul(torch.zeros(2, 3, 4), torch.zeros(3, 4, 5))
    with pytest.raises(ShapeError, match="Invalid dtype of x"):
        matmul(torch.zeros(3, 4, dtype=torch.int32), torch.zeros(4, 5, dtype=torch.int32))
    with pytest.raises(ShapeError, match=r"Invalid shape of y: expected \[\*batch, inner, columns\], got \[4\]"):
        matmul(torch.zeros(3, 4), torch.zeros(4))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(
    "shape, dim", [((1,), 0), ((33, 1), -1), ((33, 7), 1), ((33, 7), 0), ((0, 7), 1), ((3, 5, 9), 1)]
)
def test_softmax(shape, dim, dtype):
    x = normal(*shape, dtype=dtype) * 5
    assert_close(softmax(x, dim), x.double().softmax(dim).to(dtype))
    assert softmax.check(x, dim) == spec_of(x)
    with pytest.raises(ShapeError, match="softmax: Invalid dim"):
        softmax(x, len(shape))


@pytest.mark.parametrize("width", [1, 2, 3, 8, 61, 1000])
def test_a_row_of_softmax_keeps_its_bits(width):
    x = normal(70, width) * 4
    together = softmax(x)
    for start, count in [(0, 1), (69, 1), (3, 5), (17, 33)]:
        assert torch.equal(softmax(x[start : start + count]), together[start : start + count])


def experts(num_tokens, dtype, num_experts=5, top_k=2, hidden=24, inner=40):
    """Arguments of `moe` whose tokens choose different experts; expert 0 is chosen by none."""
    generator = torch.Generator().manual_seed(num_tokens)
    scores = torch.rand(num_tokens, num_experts, generator=generator)
    scores[:, 0] = -1
    weights, ids = layout.topk(scores, top_k)
    shapes = ((num_experts, inner, hidden), (num_experts, inner, hidden), (num_experts, hidden, inner))
    stacked = [normal(*shape, dtype=dtype, seed=i) / 5 for i, shape in enumerate(shapes)]
    return [normal(num_tokens, hidden, dtype=dtype, seed=9), ids, weights, *stacked]


def by_token(x, ids, weights, gate, up, down):
    """One token and one expert at a time, in float64."""
    out = torch.zeros(x.shape, dtype=torch.float64)
    for token in range(x.shape[0]):
        for expert, weight in zip(ids[token].tolist(), weights[token].tolist(), strict=True):
            row, g, u, d = (t.double() for t in (x[token], gate[expert], up[expert], down[expert]))
            out[token] += weight * (d @ (torch.nn.functional.silu(g @ row) * (u @ row)))
    return out.to(x.dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("num_tokens", [0, 1, 3, 50])
def test_moe(num_tokens, dtype):
    arguments = experts(num_tokens, dtype)
    assert_close(moe(*arguments), by_token(*arguments))
    assert moe.check(*arguments) == spec_of(arguments[0])
    x, ids, *rest = arguments
    assert torch.equal(moe(x, ids.int(), *rest), moe(*arguments))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_moe_tactic_keeps_the_bits_of_every_token(dtype):
    x, ids, weights, *stacked = experts(61, dtype, hidden=128, inner=192)
    packed = cpu_moe.pack(*stacked)
    kept = x.clone()
    together = cpu_moe.run(x, ids, weights, packed, None, None)
    assert torch.equal(x, kept), "the argument was written to"
    assert_close(together, moe(x, ids, weights, *stacked))
    for start, count in [(0, 1), (60, 1), (5, 2), (1, 33)]:
        rows = slice(start, start + count)
        assert torch.equal(cpu_moe.run(x[rows], ids[rows], weights[rows], packed, None, None), together[rows])


def test_moe_refuses_experts_that_do_not_fit():
    x, ids, weights, gate, up, down = experts(3, torch.float32)
    with pytest.raises(ShapeError, match=r"moe: Invalid shape of down: expected \[.*=5, .*=24, .*=40\]"):
        moe(x, ids, weights, gate, up, up)
    with pytest.raises(ShapeError, match=r"Invalid shape of expert_weights: expected \[num_tokens=3, top_k=2\]"):
        moe(x, ids, weights[:, :1], gate, up, down)
    with pytest.raises(ShapeError, match="Invalid dtype of expert_ids"):
        moe(x, weights, weights, gate, up, down)


def test_annotations_of_all_references_can_be_checked():
    words = {word for op in OPS.values() for kinds in op._kinds.values() for word in kinds}
    assert {"Tensor", "None", "Sequence[Tensor]", "float"} <= words <= set(_KINDS)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: matmul(torch.zeros(2, 2), 2.0), "matmul: Invalid y: expected a tensor, got float 2.0"),
        (lambda: elementwise.silu([1.0]), "silu: Invalid x: expected a tensor, got list"),
        (lambda: elementwise.silu(None), "silu: Invalid x: expected a tensor, got NoneType"),
        (lambda: elementwise.add(torch.zeros(2), "1"), "Invalid y: expected a tensor or a finite number, got str '1'"),
        (lambda: elementwise.add(torch.zeros(2), float("nan")), "expected a tensor or a finite number, got float nan"),
        (lambda: elementwise.add(torch.zeros(2), True), "expected a tensor or a finite number, got bool True"),
        (lambda: softmax(torch.zeros(2), 0.0), "softmax: Invalid dim: expected an integer, got float 0.0"),
        (lambda: layout.concat(torch.zeros(2), 0), "concat: Invalid tensors: expected a list of tensors, got Tensor"),
        (lambda: layout.concat([torch.zeros(2), 1], 0), "Invalid tensors: expected a list of tensors, got list"),
        (lambda: layout.view(torch.zeros(2), (1, "n")), "view: Invalid shape: expected a list of integers, got tuple"),
        (lambda: layout.cast(torch.zeros(2), torch.int8), "cast: Invalid dtype: expected a string, got dtype"),
        (lambda: layout.split(torch.zeros(2), None), "sizes: expected an integer or a list of integers, got NoneType"),
    ],
)
def test_arguments_of_another_kind_are_refused(call, message):
    with pytest.raises(ShapeError, match=message.replace("(", r"\(")):
        call()
