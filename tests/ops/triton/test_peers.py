"""Sums over ranks through memory that all reach: processes that map the same files, kernels interpreted."""

import os
import subprocess
import sys

import pytest
import torch

from quire.ops.fused import add_rms_norm
from tests.ops.triton.peer_rank import DTYPES, SHAPES, gathered, part, whole
from tests.support.tolerance import assert_close


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_ranks_get_sums_in_order_of_ranks_and_each_others_pieces(world, tmp_path):
    command = [sys.executable, "-m", "tests.ops.triton.peer_rank"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    ranks = [
        subprocess.Popen([*command, str(rank), str(world), str(tmp_path)], env=environment) for rank in range(world)
    ]
    try:
        assert [rank.wait(timeout=120) for rank in ranks] == [0] * world
    finally:
        for rank in ranks:
            rank.kill()
    saved = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(world)]
    cases = [(shape, dtype) for shape in SHAPES for dtype in DTYPES]
    for step, (shape, dtype) in enumerate(cases):
        total = part(0, step, shape, dtype).float()
        for rank in range(1, world):
            total += part(rank, step, shape, dtype).float()
        residual, weight = whole(step, shape, dtype)
        normed, added = add_rms_norm(total.to(dtype), residual, weight, 1e-5)
        for found, _ in saved:
            assert torch.equal(found[step][0], total.to(dtype))
            assert torch.equal(found[step][1], gathered(world, step, shape, dtype))
            assert torch.equal(found[step][3], added)
            assert_close(found[step][2], normed)
            assert torch.equal(found[step][2], saved[0][0][step][2])
    assert all(turns[0] == 3 * len(cases) for _, turns in saved)
