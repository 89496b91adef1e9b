"""Comparisons, where, split, gather, topk, argmax: values against torch, shapes 1, odd and empty, refusals."""

import operator

import pytest
import torch

from quire.core.errors import ShapeError
from quire.ops import elementwise, layout
from quire.ops.spec import TensorSpec, spec_of

SHAPES = [(1,), (7,), (0, 5), (1, 1), (3, 7), (5, 0), (2, 3, 13)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int32, torch.int64]
SPEC = TensorSpec(("num_tokens", 12), torch.float32)


def few_values(shape, dtype=torch.float32, seed=0):
    """A tensor with many equal elements, so that ties show."""
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def check(op, expected, *arguments):
    """Hold a result against torch, and what the op infers against the result."""
    got, inferred = op(*arguments), op.check(*arguments)
    got, expected, inferred = (v if isinstance(v, tuple) else (v,) for v in (got, expected, inferred))
    assert len(got) == len(expected) == len(inferred)
    for tensor, wanted, spec in zip(got, expected, inferred, strict=True):
        assert torch.equal(tensor, wanted) and spec_of(tensor) == spec


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["eq", "ne", "lt", "gt", "le", "ge"])
def test_comparisons(name, shape, dtype):
    op, torch_op = getattr(elementwise, name), getattr(operator, name)
    x, y = few_values(shape, dtype), few_values(shape[-1:], dtype, seed=1)
    check(op, torch_op(x, y), x, y)
    check(op, torch_op(x, 1), x, 1)
    check(op, torch_op(1, x), 1, x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_where(shape, dtype):
    x, y = few_values(shape, dtype), few_values(shape[-1:], dtype, seed=1)
    check(elementwise.where, torch.where(x > 0, x, y), x > 0, x, y)
    check(elementwise.where, torch.where(x > 0, x, -1), x > 0, x, -1)
    check(elementwise.where, torch.where(x > 0, 2, x), x > 0, 2, x)


def test_numbers_go_on_either_side_but_not_on_both():
    x = torch.tensor([1.0, 4.0])
    assert elementwise.sub(2.0, x).tolist() == [1.0, -2.0] and elementwise.div(2, x).tolist() == [2.0, 0.5]
    for op in (elementwise.add, elementwise.lt):
        with pytest.raises(ShapeError, match=f"{op.name}: Invalid x and y: expected at least one tensor, got 1 and 2"):
            op(1, 2)


def test_integers_stay_integers():
    ids = torch.tensor([1, 2], dtype=torch.int32)
    assert elementwise.add(ids, 2).dtype == torch.int32
    with pytest.raises(ShapeError, match=r"expected integers beside int32, got a float; cast the tensor"):
        elementwise.mul(ids, 0.5)
    with pytest.raises(ShapeError, match=r"div: Invalid dtypes: expected floats, got int32"):
        elementwise.div(ids, 2)
    with pytest.raises(ShapeError, match=r"where: Invalid dtype of condition: expected bool, got int32"):
        elementwise.where(ids, ids, 0)
    with pytest.raises(ShapeError, match="expected one dtype for all"):
        elementwise.eq(ids, ids.float())
    with pytest.raises(ShapeError, match="expected it to broadcast"):
        elementwise.where(torch.zeros(3, dtype=torch.bool), ids, 0)


@pytest.mark.parametrize(
    "shape, sizes, dim",
    [((6,), 2, 0), ((6,), 6, 0), ((6,), [1, 0, 5], 0), ((3, 7), [3, 4], -1), ((0, 4), 2, 1), ((4, 0), [4], 0),
     ((2, 5, 3), [1, 4], 1), ((2, 0), [0, 0], 1)],
)  # fmt: skip
def test_split(shape, sizes, dim):
    x = few_values(shape)
    check(layout.split, tuple(x.split(sizes, dim)), x, sizes, dim)
    assert torch.equal(torch.cat(layout.split(x, sizes, dim), dim), x)


@pytest.mark.parametrize("sizes", [5, 0, -3, [6, 5], [], [13, -1]])
def test_split_must_use_up_its_dimension(sizes):
    with pytest.raises(ShapeError, match="split: Invalid sizes: expected some that sum to 12"):
        layout.split.check(SPEC, sizes, 1)


def test_symbolic_sizes_pass_through_but_are_not_cut():
    first, second = layout.split.check(SPEC, [5, 7], 1)
    assert first.shape == ("num_tokens", 5) and second.shape == ("num_tokens", 7)
    assert [s.shape for s in layout.topk.check(SPEC, 3)] == [("num_tokens", 3)] * 2
    assert layout.argmax.check(SPEC, 0).shape == (12,)
    index = TensorSpec(("num_tokens", 2), torch.int32)
    assert layout.gather.check(SPEC, 1, index).shape == ("num_tokens", 2)
    with pytest.raises(ShapeError, match="expected one of a fixed size, got 0"):
        layout.split.check(SPEC, 1, 0)
    with pytest.raises(ShapeError, match="expected one of a fixed size, got 0"):
        layout.topk.check(SPEC, 1, 0)
    with pytest.raises(ShapeError, match=r"Invalid shape of index: expected \['any', 12\], got \['num_tokens', 2\]"):
        layout.gather.check(SPEC, 0, index)


@pytest.mark.parametrize("kind", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("shape, dim, size", [((5,), 0, 9), ((3, 7), 1, 2), ((3, 7), 0, 1), ((2, 3, 4), -2, 0)])
def test_gather(shape, dim, size, kind):
    x = torch.randn(shape)
    wanted = [size if axis == dim % len(shape) else n for axis, n in enumerate(shape)]
    index = torch.randint(shape[dim], wanted, generator=torch.Generator().manual_seed(0))
    check(layout.gather, x.gather(dim, index), x, dim, index.to(kind))


@pytest.mark.parametrize("shape, dim", [((1,), 0), ((7,), 0), ((3, 7), 1), ((3, 7), 0), ((0, 5), -1), ((2, 3, 4), 1)])
def test_topk_and_argmax(shape, dim):
    x = torch.randperm(torch.Size(shape).numel(), generator=torch.Generator().manual_seed(0)).float().view(shape)
    for k in range(1, shape[dim] + 1):
        check(layout.topk, tuple(x.topk(k, dim)), x, k, dim)
    check(layout.argmax, x.argmax(dim), x, dim)
    check(layout.argmax, x.argmax(dim, keepdim=True), x, dim, True)


def test_of_equal_elements_the_first_comes_first():
    x = torch.tensor([[1.0, 3.0, 3.0, 0.0, 3.0]])
    values, indices = layout.topk(x, 4)
    assert values.tolist() == [[3.0, 3.0, 3.0, 1.0]] and indices.tolist() == [[1, 2, 4, 0]]
    assert layout.argmax(x).tolist() == [1]
    many = few_values((50, 1000))
    assert torch.equal(layout.topk(many, 1)[1].view(-1), layout.argmax(many))


def test_choosing_refuses_what_is_not_there():
    for k in (0, 13):
        with pytest.raises(ShapeError, match=rf"topk: Invalid k: expected one in \[1, 12\], got {k}"):
            layout.topk.check(SPEC, k)
    with pytest.raises(ShapeError, match="argmax: Invalid dim"):
        layout.argmax.check(SPEC, 2)
    with pytest.raises(ShapeError, match="expected at least one element along dim 1"):
        layout.argmax(torch.zeros(3, 0))
    with pytest.raises(ShapeError, match="Invalid dtype of index"):
        layout.gather(torch.zeros(3), 0, torch.zeros(3))
