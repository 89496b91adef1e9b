"""Rows by index: exact copies, whatever the dtype."""

import pytest
import torch

from quire.ops.registry import OPS
from quire.ops.tactics import tactics_for
from quire.ops.triton import gather

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("num_rows, width", [(1, 1), (7, 64), (5, 1029), (0, 16)])
def test_embedding_copies_rows(dtype, index_dtype, num_rows, width):
    weight = torch.randn(11, width, device=DEVICE).to(dtype)
    ids = torch.randint(0, 11, (num_rows,), dtype=index_dtype, device=DEVICE)
    assert torch.equal(gather.embedding(ids, weight), OPS["embedding"].reference(ids, weight))


def test_ids_of_any_shape():
    weight, ids = torch.randn(5, 8, device=DEVICE), torch.tensor([[4, 0, 1], [2, 2, 3]], device=DEVICE)
    assert torch.equal(gather.embedding(ids, weight), weight[ids])


def test_index_select_takes_rows_of_views():
    x, index = torch.randn(9, 6, 10, device=DEVICE)[:, 2:], torch.tensor([8, 0, 8], device=DEVICE)
    assert torch.equal(gather.index_select(x, index), x[index])
    wide = torch.randn(9, 40, device=DEVICE)[:, :24]
    assert torch.equal(gather.index_select(wide, index), wide[index])


def test_only_the_first_dimension_has_the_tactic():
    (tactic, *_) = tactics_for("index_select", "cuda")
    assert tactic.is_valid(dim=0) and not tactic.is_valid(dim=1)
