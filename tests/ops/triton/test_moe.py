"""moe in Triton against the reference, and every token's bits whatever is computed beside it."""

import pytest
import torch

from quire.ops.layout import topk
from quire.ops.linear import moe
from quire.ops.triton import moe as kernels
from tests.ops.triton.test_linear import DEVICE, DTYPES, summable
from tests.support.tolerance import assert_close


def experts(num_tokens, dtype, num_experts=5, top_k=2, hidden=24, inner=40):
    """Arguments of `moe`; expert 0 is chosen by none."""
    scores = torch.rand(num_tokens, num_experts, generator=torch.Generator().manual_seed(num_tokens))
    scores[:, 0] = -1
    weights, ids = topk(scores, top_k)
    stacked = [
        summable(num_experts * rows, width, dtype, seed).view(num_experts, rows, width) / 4
        for seed, (rows, width) in enumerate([(inner, hidden), (inner, hidden), (hidden, inner)])
    ]
    return [summable(num_tokens, hidden, dtype, seed=9), ids.to(DEVICE), weights.to(DEVICE), *stacked]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_tokens, sizes", [(0, {}), (1, {}), (3, {"top_k": 1}), (50, {"hidden": 64, "inner": 37}),
                                               (90, {"num_experts": 3})])  # fmt: skip
def test_against_reference(dtype, num_tokens, sizes):
    x, ids, *rest = experts(num_tokens, dtype, **sizes)
    expected = moe(x, ids, *rest)
    assert_close(kernels.moe(x, ids, *rest), expected)
    assert_close(kernels.moe(x.t().contiguous().t(), ids.int(), *rest), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tokens_keep_their_bits(dtype):
    x, ids, weights, *stacked = experts(61, dtype, num_experts=9, top_k=3, hidden=64, inner=72)
    together = kernels.moe(x, ids, weights, *stacked)
    for start, count in [(0, 1), (60, 1), (5, 2), (1, 33)]:
        part = slice(start, start + count)
        assert torch.equal(kernels.moe(x[part], ids[part], weights[part], *stacked), together[part])


def test_tiles_hold_every_place_once():
    ids = torch.tensor([[3, 1], [1, 0], [1, 3], [4, 1], [0, 1]], device=DEVICE)
    weights = torch.arange(10.0, device=DEVICE).view(5, 2)
    routes = kernels.route(ids, weights, num_experts=6, rows=2)
    held = [
        (expert, routes.tokens[place].item())
        for expert, first, end in zip(*(t.tolist() for t in routes[1:4]), strict=True)
        for place in range(first, min(first + 2, end))
    ]
    assert held == [(0, 1), (0, 4), (1, 0), (1, 1), (1, 2), (1, 3), (1, 4), (3, 0), (3, 2), (4, 3)]
    assert routes.weights.tolist() == [[1, 0], [3, 2], [4, 5], [7, 6], [8, 9]]
