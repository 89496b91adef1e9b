"""Ranks as processes over gloo: the same bits on all ranks, whatever the number of rows and whichever way they go."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.distributed.tensors.communicator import WHOLE_BYTES
from quire.distributed.tensors.ordered_sum import ordered_sum
from quire.sharding.cost import Exchange
from tests.distributed.ranks import run_ranks

pytestmark = pytest.mark.multi
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LARGE = (300, 97)  # more than WHOLE_BYTES in every dtype, by no number of ranks divisible


def tensor_of(rank, shape, dtype, seed=0):
    """What a rank has: magnitudes so far apart that another order of adding shows."""
    generator = torch.Generator().manual_seed(1000 * seed + rank)
    return (torch.randn(shape, generator=generator) * 10 ** torch.randint(-3, 3, shape, generator=generator)).to(dtype)


def exchange(communicator):
    """Sums and pieces of tensors of several sizes, each also row by row; what was sent."""
    found = {}
    for dtype in DTYPES:
        x = tensor_of(communicator.mapping.tp_rank, LARGE, dtype)
        found[f"sum {dtype}"] = communicator.all_reduce(x)
        found[f"rows {dtype}"] = torch.cat([communicator.all_reduce(x[i : i + 1]) for i in range(7)])
        found[f"gathered {dtype}"] = communicator.all_gather(x[:5])
        found[f"empty {dtype}"] = communicator.all_reduce(x[:0])
    flat = communicator.all_reduce(tensor_of(communicator.mapping.tp_rank, (3, 4, 5), torch.float32).transpose(0, 2))
    found["strided"] = flat
    return found


@pytest.mark.parametrize("size", [2, 3, 4])
def test_sums_and_pieces(size, tmp_path):
    ranks = run_ranks(exchange, tmp_path, tp_size=size)
    for dtype in DTYPES:
        parts = [tensor_of(rank, LARGE, dtype) for rank in range(size)]
        assert parts[0].nbytes > WHOLE_BYTES["cpu"] / 2 and parts[0][:1].nbytes < WHOLE_BYTES["cpu"]
        expected = ordered_sum(parts)
        for found in ranks:
            assert torch.equal(found[f"sum {dtype}"], expected)
            assert torch.equal(found[f"rows {dtype}"], expected[:7])
            assert torch.equal(found[f"gathered {dtype}"], torch.cat([part[:5] for part in parts], -1))
            assert found[f"empty {dtype}"].shape == (0, 97)
    strided = ordered_sum([tensor_of(rank, (3, 4, 5), torch.float32).transpose(0, 2) for rank in range(size)])
    assert all(torch.equal(found["strided"], strided) for found in ranks)


def shapes_of_hypothesis(communicator):
    """Sums over shapes that hypothesis thinks of, the same for all ranks."""
    found = {}

    @settings(max_examples=25, deadline=None, derandomize=True, database=None)
    @given(st.lists(st.integers(0, 12), min_size=1, max_size=3), st.sampled_from(DTYPES), st.integers(1, 900))
    def check(shape, dtype, wide):
        shape = (*shape, wide)
        parts = [tensor_of(rank, shape, dtype, seed=wide) for rank in range(communicator.mapping.tp_size)]
        mine = parts[communicator.mapping.tp_rank]
        assert torch.equal(communicator.all_reduce(mine), ordered_sum(parts))
        assert torch.equal(communicator.all_gather(mine), torch.cat(parts, -1))

    check()
    return found


def test_any_shape(tmp_path):
    run_ranks(shapes_of_hypothesis, tmp_path, tp_size=3)


def stages(communicator):
    """A sum in each of two stages, sent from the first to the second, rows of two dtypes and none."""
    mapping = communicator.mapping
    found = {}
    for dtype in DTYPES:
        for rows in (5, 0):
            total = communicator.all_reduce(tensor_of(mapping.rank, (rows, 6), dtype))
            if mapping.is_first_pp_rank:
                communicator.send(total, mapping.next_pp_rank)
            else:
                got = communicator.recv(total.shape, dtype, mapping.prev_pp_rank, torch.device("cpu"))
                found[f"{rows} {dtype}"] = got
    return found


def test_stages(tmp_path):
    *first, third, fourth = run_ranks(stages, tmp_path, tp_size=2, pp_size=2)
    assert first == [{}, {}]
    for dtype in DTYPES:
        expected = ordered_sum([tensor_of(rank, (5, 6), dtype) for rank in range(2)])
        assert torch.equal(third[f"5 {dtype}"], expected) and torch.equal(fourth[f"5 {dtype}"], expected)
        assert third[f"0 {dtype}"].shape == (0, 6)


def counted(communicator):
    """What one large and one small sum, and one gathering, send."""
    x = torch.ones(LARGE)
    for each in (communicator.all_reduce(x), communicator.all_reduce(x[:1]), communicator.all_gather(x[:1])):
        assert each.numel()
    sent = communicator.traffic.sent_bytes
    return {name: torch.tensor(sent[name]) for name in ("all_reduce", "all_gather")}


def test_traffic_is_what_the_cost_model_counts(tmp_path):
    ranks = run_ranks(counted, tmp_path, tp_size=3)
    reduced, gathered = (Exchange(kind, (0, 1, 2), size, "num_tokens", 3)
                         for kind, size in (("all_reduce", 97 * 4), ("all_gather", 97 * 4)))  # fmt: skip
    expected = reduced.sent_bytes(300, WHOLE_BYTES["cpu"]) + reduced.sent_bytes(1, WHOLE_BYTES["cpu"])
    for found in ranks:
        assert found["all_reduce"].item() == expected and found["all_gather"].item() == gathered.sent_bytes(1)
    assert reduced.sent_bytes(300) == pytest.approx(reduced.least_bytes(300), rel=1e-3)
