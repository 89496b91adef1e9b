"""attention: the tiled tactic against the reference, and a query's bits whatever is computed beside it."""

import itertools

import pytest
import torch

from quire.core.errors import ShapeError
from quire.ops.attention import append_kv, attention
from quire.ops.cpu import attention as cpu
from quire.ops.tactics import tactics_for
from tests.support.tolerance import assert_close

DTYPES = (torch.float32, torch.bfloat16)
# (num_heads, num_kv_heads, head_dim, block_size): MHA, GQA, odd groups, odd sizes, blocks that do not divide 128
HEADS = [(4, 2, 64, 16), (8, 2, 24, 8), (3, 3, 37, 16), (14, 2, 64, 5), (2, 1, 8, 1), (1, 1, 16, 200)]
# (queries, length) of each sequence
BATCH = [(1, 1), (1, 300), (7, 7), (40, 171), (1, 128), (1, 129), (130, 260)]
WINDOWS = [None, 1, 5, 130]


def _case(dtype, heads, kv_heads, head_dim, block_size, batch, window):
    generator = torch.Generator().manual_seed(7)
    used = [-(-length // block_size) for _, length in batch]
    ids = torch.randperm(sum(used), generator=generator) + 1
    table = torch.zeros(len(batch), max(used), dtype=torch.int32)
    for i, (start, count) in enumerate(zip(itertools.accumulate([0, *used]), used, strict=False)):
        table[i, :count] = ids[start : start + count]
    cache = torch.randn(2, sum(used) + 1, kv_heads, block_size, head_dim, generator=generator).to(dtype)
    starts = torch.tensor([0, *itertools.accumulate(q for q, _ in batch)], dtype=torch.int32)
    query = torch.randn(int(starts[-1]), heads, head_dim, generator=generator).to(dtype)
    lengths = torch.tensor([length for _, length in batch], dtype=torch.int32)
    return query, cache, table, lengths, starts, head_dim**-0.5, window


def _tiled(*args):
    return cpu.attention(*args, prepared=cpu.tiles(*args))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads, kv_heads, head_dim, block_size", HEADS)
@pytest.mark.parametrize("window", WINDOWS)
def test_tactic_equals_reference(dtype, heads, kv_heads, head_dim, block_size, window):
    args = _case(dtype, heads, kv_heads, head_dim, block_size, BATCH, window)
    assert_close(_tiled(*args), attention(*args))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads, kv_heads, head_dim, block_size", HEADS)
@pytest.mark.parametrize("window", WINDOWS)
def test_bits_do_not_depend_on_batch_or_chunk(dtype, heads, kv_heads, head_dim, block_size, window):
    query, cache, table, lengths, starts, scale, window = _case(
        dtype, heads, kv_heads, head_dim, block_size, BATCH, window
    )
    together = _tiled(query, cache, table, lengths, starts, scale, window)
    for i, (count, length) in enumerate(BATCH):
        for first, last in {(0, count), (count - 1, count), (count // 3, count // 3 + 1), (0, -(-count // 2))}:
            alone = _tiled(
                query[starts[i] + first : starts[i] + last],
                cache,
                table[i : i + 1],
                torch.tensor([length - count + last], dtype=torch.int32),
                torch.tensor([0, last - first], dtype=torch.int32),
                scale,
                window,
            )
            assert torch.equal(alone, together[starts[i] + first : starts[i] + last]), (i, first, last)


@pytest.mark.parametrize("threads", [2, 3, 4])
@pytest.mark.parametrize("heads, kv_heads", [(1, 1), (3, 1), (7, 1), (4, 2)])
def test_a_single_pair_keeps_its_bits_with_many_threads(heads, kv_heads, threads):
    """One KV head and one key tile make one product, which the library would split over threads."""
    before = torch.get_num_threads()
    batch = [(1, 60)] * 5 + [(20, 100), (1, 128)]
    try:
        torch.set_num_threads(threads)
        query, cache, table, lengths, starts, scale, _ = _case(torch.float32, heads, kv_heads, 64, 16, batch, None)
        together = _tiled(query, cache, table, lengths, starts, scale, None)
        for i, (count, _) in enumerate(batch):
            rows, only = slice(int(starts[i]), int(starts[i + 1])), torch.tensor([0, count], dtype=torch.int32)
            alone = _tiled(query[rows], cache, table[i : i + 1], lengths[i : i + 1], only, scale, None)
            assert torch.equal(alone, together[rows])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("is_free, keeps_bits", [(False, True), (False, False), (True, False)])
def test_where_a_proof_fails_the_promise_holds_the_slow_way(monkeypatch, is_free, keeps_bits):
    """On a machine whose library sums by the number of products, or otherwise in long tiles."""
    monkeypatch.setattr(cpu, "_number_is_free", lambda *shape: is_free)
    monkeypatch.setattr(cpu, "long_keeps_bits", lambda *shape: keeps_bits)
    used = []
    honest = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda a, b: used.append(tuple(a.shape[:2])) or honest(a, b))
    args = _case(torch.float32, 4, 2, 64, 16, BATCH, None)
    assert_close(_tiled(*args), attention(*args))
    if not is_free:
        assert len({count for count, _ in used}) == 1, "every call has a full chunk's number of products"
    if not keeps_bits:
        assert len({rows for _, rows in used}) == 1, "every call has short tiles"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cap", [1.0, 50.0])
def test_capped_scores(dtype, cap):
    args = (*_case(dtype, 4, 2, 64, 16, BATCH, None), None, cap)
    got = _tiled(*args)
    assert_close(got, attention(*args))
    assert not torch.equal(got, _tiled(*args[:-1]))


def test_a_cap_bounds_the_scores():
    """One key scores 100 and one 0: capped at 1, neither weighs more than e times the other."""
    query, cache = torch.full((1, 1, 1), 100.0), torch.tensor([1.0, 0.0]).view(1, 1, 1, 2, 1).repeat(2, 1, 1, 1, 1)
    step = (torch.zeros(1, 1, dtype=torch.int32), torch.tensor([2]), torch.tensor([0, 1]))
    weights = torch.tensor([1.0, 0.0]).softmax(0)
    assert_close(attention(query, cache, *step, 1.0, soft_cap=1.0).view(1), weights[:1])
    valid = [t.name for t in tactics_for("attention", "cpu") if t.is_valid(scale=1.0, soft_cap=1.0)]
    assert [name for name in valid if name != "native"] == ["tiled", "reference"]


def test_what_lies_behind_a_sequence_does_not_leak():
    """Finite rubbish past a sequence's length, and block 0, must not change a bit."""
    args = _case(torch.float32, 4, 2, 16, 16, [(3, 20), (1, 5)], None)
    before = _tiled(*args)
    cache, table = args[1], args[2]
    cache[:, 0] = 1e30
    cache[:, int(table[0, 1]), :, 4:] = -1e30
    assert torch.equal(_tiled(*args), before)


def test_empty_step():
    args = _case(torch.float32, 4, 2, 16, 16, [(0, 3)], None)
    assert _tiled(*args).shape == (0, 4, 16)


@pytest.mark.parametrize("run", [append_kv, None], ids=["reference", "tactic"])
def test_append_kv_writes_slots_and_skips_padding(run):
    key, value = torch.randn(4, 2, 3), torch.randn(4, 2, 3)
    cache = torch.zeros(2, 3, 2, 5, 3)
    args = (key, value, cache, torch.tensor([5, -1, 14, 7], dtype=torch.int32))
    if run is None:
        cpu.append_kv(*args, prepared=cpu.slots(*args))
    else:
        run(*args)
    for token, (block, offset) in {0: (1, 0), 2: (2, 4), 3: (1, 2)}.items():
        assert torch.equal(cache[0, block, :, offset], key[token])
        assert torch.equal(cache[1, block, :, offset], value[token])
    assert int((cache != 0).any(-1).any(2).sum()) == 6


def test_errors():
    args = list(_case(torch.float32, 4, 2, 16, 16, [(1, 1)], None))
    with pytest.raises(ShapeError, match="num_heads divisible by num_kv_heads=2, got 3"):
        attention(args[0][:, :3], *args[1:])
    with pytest.raises(ShapeError, match="Invalid window"):
        attention(*args[:-1], 0)
    with pytest.raises(ShapeError, match="Invalid soft_cap: expected a positive number or None, got 0"):
        attention(*args, soft_cap=0.0)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_dense_attention_is_the_reference(dtype, window):
    """Whole prompts, a chunk of one, a single query, and a sequence without queries."""
    generator = torch.Generator().manual_seed(0)
    cache = torch.randn(2, 9, 2, 4, 16, generator=generator).to(dtype)
    table = torch.tensor([[1, 2, 3], [4, 5, 0], [6, 7, 8], [0, 0, 0]], dtype=torch.int32)
    lens, starts = torch.tensor([9, 5, 12, 0], dtype=torch.int32), torch.tensor([0, 9, 12, 13, 13], dtype=torch.int32)
    query = torch.randn(13, 4, 16, generator=generator).to(dtype)
    dense = next(t for t in tactics_for("attention", "cpu") if t.name == "dense")
    got = dense.run(query, cache, table, lens, starts, 0.25, window)
    assert_close(got, attention(query, cache, table, lens, starts, 0.25, window))
    eight = torch.randint(-127, 127, cache.shape, generator=generator).to(torch.int8)
    scales = torch.rand(2, 2, generator=generator) / 50
    arguments = (query, eight, table, lens, starts, 0.25, window, scales)
    assert_close(dense.run(*arguments), attention(*arguments))
