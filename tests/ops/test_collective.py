"""Ops of sharded networks: shapes, errors, and sums over ranks that are the whole."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.core.errors import ConfigError, ShapeError
from quire.distributed.tensors.threads import run_threads, thread_communicators
from quire.ops.collective.exchange import all_gather, all_reduce, piece_start, recv, send
from quire.ops.collective.share import all_reduce_add_rms_norm, sharded_embedding
from quire.ops.fused import add_rms_norm
from quire.ops.linear import embedding
from quire.ops.spec import TensorSpec


def spec(*shape, dtype=torch.float32):
    return TensorSpec(shape, dtype)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 4), st.integers(1, 20), st.integers(0, 5))
def test_pieces_and_tables_that_overlap(num_ranks, size, num_rows):
    """Sizes that do not divide: every row of a table is answered for once, and pieces meet without a gap."""
    if size < num_ranks:
        return
    each = -(-size // num_ranks)
    table, ids = torch.randn(size, 3), torch.randint(size, (num_rows,))
    logits = torch.randn(num_rows, size)

    def work(communicator):
        rank = communicator.mapping.tp_rank
        start = piece_start(size, each, rank)
        skip = min(rank * each - start, each)
        rows = sharded_embedding(ids, table[start : start + each], start, skip)
        return all_reduce(rows), all_gather(logits[:, start : start + each], size)

    for rows, gathered in run_threads(thread_communicators(num_ranks), work):
        assert torch.equal(rows, embedding(ids, table)) and torch.equal(gathered, logits)
        assert gathered.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fused_op_is_its_parts(dtype):
    parts = [torch.randn(5, 8).to(dtype) for _ in range(3)]
    residual, weight = torch.randn(5, 8).to(dtype), torch.rand(8).to(dtype)

    def work(communicator):
        x = parts[communicator.mapping.tp_rank]
        fused = all_reduce_add_rms_norm(x, residual, weight, 1e-5)
        return fused, add_rms_norm(all_reduce(x), residual, weight, 1e-5)

    for fused, apart in run_threads(thread_communicators(3), work):
        assert all(torch.equal(a, b) for a, b in zip(fused, apart, strict=True))


def test_what_they_infer():
    assert all_reduce.check(spec("num_tokens", 8)) == spec("num_tokens", 8)
    assert all_gather.check(spec("num_tokens", 8), 15) == spec("num_tokens", 15)
    assert send.check(spec("num_tokens", 8), 1) is None
    like = spec("num_tokens", dtype=torch.int32)
    assert recv.check(like, 8, "bfloat16", 0) == spec("num_tokens", 8, dtype=torch.bfloat16)
    assert sharded_embedding.check(like, spec(6, 8), 5, 1) == spec("num_tokens", 8)


def test_errors():
    with pytest.raises(ShapeError, match=r"all_gather: Invalid width: expected at least the 8 channels .*, got 7"):
        all_gather.check(spec("n", 8), 7)
    with pytest.raises(ShapeError, match=r"all_reduce: Invalid dtype of x: expected float32 .*, got int32"):
        all_reduce.check(spec("n", 8, dtype=torch.int32))
    for start, skip in ((-1, 0), (0, 7)):
        with pytest.raises(ShapeError, match=r"sharded_embedding: Invalid start, skip"):
            sharded_embedding.check(spec("n", dtype=torch.int32), spec(6, 8), start, skip)
    with pytest.raises(ShapeError, match=r"recv: Invalid width, rank"):
        recv.check(spec("n", dtype=torch.int32), 0, "float32", 0)
    with pytest.raises(ConfigError, match=r"communicator: expected the ranks that share this network"):
        all_reduce(torch.ones(2, 2))
