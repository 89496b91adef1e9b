"""attention in Triton: against the reference, and a row's bits whatever program computes it beside whatever else."""

import itertools

import pytest
import torch

from quire.ops.attention import attention
from quire.ops.tactics import tactics_for
from quire.ops.triton.attention import attend, is_valid
from quire.ops.triton.attention_tiles import Tile, choose_tile, cut
from tests.support.tolerance import assert_close

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Small tiles and splits where kernels are interpreted, real ones on a GPU, with contexts longer by as much.
FACTOR = 4 if DEVICE == "cuda" else 1
SHORT = Tile(64, 64, 4, 4, 2, 128) if DEVICE == "cuda" else Tile(16, 16, 4, 2, 1, 32)
LONG = Tile(128, 64, 8, 3, 1, 128) if DEVICE == "cuda" else Tile(32, 16, 4, 2, 1, 32)
WIDE = Tile(32, 32, 8, 2, 1, 128) if DEVICE == "cuda" else SHORT  # of float32
# (queries, length): decode of one split and of several, a prompt, a chunk over a context, none
BATCH = [(1, 1), (1, 70 * FACTOR), (3, 3), (6, 38 * FACTOR), (0, 5)]


def _case(dtype, heads, kv_heads, head_dim, block_size=16, batch=BATCH, kv_dtype=None, index=torch.int32, seed=7):
    generator = torch.Generator().manual_seed(seed)
    used = [-(-length // block_size) for _, length in batch]
    ids = torch.randperm(sum(used), generator=generator) + 1
    table = torch.zeros(len(batch), max(used) + 2, dtype=index)
    for i, (start, count) in enumerate(zip(itertools.accumulate([0, *used]), used, strict=False)):
        table[i, :count] = ids[start : start + count]
    cache = torch.randn(2, sum(used) + 1, kv_heads, block_size, head_dim, generator=generator)
    scales = None
    if kv_dtype is not None:
        scales = (torch.rand(2, kv_heads, generator=generator) + 0.5) / (30 if kv_dtype == torch.int8 else 1)
        cache = (cache / scales.amin()).clamp(-127, 127).to(kv_dtype)
        scales = scales.to(DEVICE)
    starts = torch.tensor([0, *itertools.accumulate(q for q, _ in batch)], dtype=index)
    query = torch.randn(int(starts[-1]), heads, head_dim, generator=generator).to(dtype)
    lengths = torch.tensor([length for _, length in batch], dtype=index)
    cache = cache if kv_dtype is not None else cache.to(dtype)
    return (*(x.to(DEVICE) for x in (query, cache, table, lengths, starts)), scales)


def _run(case, window=None, cap=None, tile=SHORT, workspace_bytes=1 << 20):
    query, cache, table, lengths, starts, scales = case
    items = cut(query, cache, table, lengths, starts, window, tile, workspace_bytes)
    out = torch.empty(query.shape, dtype=query.dtype, device=DEVICE)
    attend(query, cache, table, query.shape[2] ** -0.5, window, scales, cap, items, out)
    return out


def _reference(case, window=None, cap=None):
    query, cache, table, lengths, starts, scales = case
    return attention(query, cache, table, lengths, starts, query.shape[2] ** -0.5, window, scales, cap)


def _part(case, sequence, first, last):
    """Return one sequence alone, of its queries only those from `first` to `last`."""
    query, cache, table, lengths, starts, scales = case
    start, stop = starts.tolist()[sequence : sequence + 2]
    return (
        query[start + first : start + last],
        cache,
        table[sequence : sequence + 1],
        lengths[sequence : sequence + 1] - (stop - start) + last,
        torch.tensor([0, last - first], dtype=starts.dtype, device=DEVICE),
        scales,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "heads, kv_heads, head_dim, block_size, window, cap",
    [(2, 2, 16, 16, None, None), (3, 1, 24, 8, 5, None), (4, 1, 16, 5, None, 3.0)],
)
def test_equals_reference(dtype, heads, kv_heads, head_dim, block_size, window, cap):
    case = _case(dtype, heads, kv_heads, head_dim, block_size)
    tile = WIDE if dtype == torch.float32 else SHORT
    assert_close(_run(case, window, cap, tile), _reference(case, window, cap))


def test_more_query_heads_than_rows_of_a_tile():
    case = _case(torch.float16, 20 * FACTOR, 1, 10, 1, [(1, 40 * FACTOR), (2, 3)])
    assert_close(_run(case, 35, 1.0, SHORT), _reference(case, 35, 1.0))


@pytest.mark.parametrize("heads, kv_heads, head_dim", [(8, 1, 64), (4, 1, 80), (3, 1, 128), (2, 1, 96), (2, 1, 256)])
def test_head_dims(heads, kv_heads, head_dim):
    case = _case(torch.float16, heads, kv_heads, head_dim, 16, [(1, 40 * FACTOR), (3, 18)])
    assert_close(_run(case, tile=choose_tile(4, 2, head_dim, torch.float16)), _reference(case))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kv_dtype, window, cap", [(torch.int8, None, None), (torch.float8_e4m3fn, 20, 5.0)], ids=str)
def test_caches_of_8_bits(dtype, kv_dtype, window, cap):
    case = _case(dtype, 4, 2, 16, 16, [(1, 40 * FACTOR), (5, 20 * FACTOR)], kv_dtype)
    tile = WIDE if dtype == torch.float32 else SHORT
    assert_close(_run(case, window, cap, tile), _reference(case, window, cap))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kv_dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_every_value_of_8_bits_is_read_exactly(dtype, kv_dtype):
    """A sequence of one token returns its value: two of them hold all 256."""
    cache = torch.arange(256, dtype=torch.uint8, device=DEVICE).view(1, 2, 1, 1, 128).repeat(2, 1, 1, 1, 1)
    cache[cache & 0x7F == 0x7F] = 0  # not a number, and in int8 never written
    cache = cache.view(kv_dtype)
    table, lengths = torch.arange(2, device=DEVICE)[:, None], torch.ones(2, dtype=torch.int64, device=DEVICE)
    case = (torch.zeros(2, 1, 128, dtype=dtype, device=DEVICE), cache, table, lengths, torch.arange(3, device=DEVICE))
    got = _run((*case, torch.ones(2, 1, device=DEVICE)), tile=WIDE if dtype == torch.float32 else SHORT)
    assert torch.equal(got.view(256).float(), cache[1].flatten().float())


@pytest.mark.parametrize("kv_dtype, window, cap", [(None, None, None), (torch.int8, 23, 2.0)], ids=str)
def test_bits_do_not_depend_on_batch_chunk_split_or_tile(kv_dtype, window, cap):
    """Batched = alone = chunked = decoded one by one, cut into splits or not, in short tiles or long ones."""
    case = _case(torch.bfloat16, 4, 1, 16, 16, [(1, 33 * FACTOR), (6, 66 * FACTOR)], kv_dtype)
    together, starts = _run(case, window, cap), case[4].tolist()
    assert torch.equal(_run(case, window, cap, LONG), together)
    assert torch.equal(_run(case, window, cap, workspace_bytes=0), together)
    assert torch.equal(_run(case, window, cap, workspace_bytes=8000), together)
    for i, first, last in [(0, 0, 1), (1, 0, 5), (1, 5, 6), (1, 4, 5)]:
        alone = _run(_part(case, i, first, last), window, cap)
        assert torch.equal(alone, together[starts[i] + first : starts[i] + last]), (i, first, last)


@pytest.mark.parametrize("workspace_bytes", [0, 3000, 14500, 1 << 20])
def test_bits_do_not_depend_on_the_space_for_partial_results(workspace_bytes):
    """Space for none, for short sequences only, for some of the long ones, for all; float32 shows the last bit."""
    case = _case(torch.float32, 4, 1, 16, 16, [(1, 5 * 32 * FACTOR), (9, 166 * FACTOR), (1, 133 * FACTOR), (5, 150)])
    assert torch.equal(_run(case, tile=WIDE, workspace_bytes=workspace_bytes), _run(case, tile=WIDE))


@pytest.mark.parametrize("seed", range(4))
def test_random_batches(seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return int(torch.randint(low, high, (), generator=generator))

    queries = [draw(0, 8) for _ in range(3)]
    batch = [(count, count + draw(0, 60 * FACTOR)) for count in queries]
    group, window = draw(1, 6), [None, draw(1, 50 * FACTOR)][draw(0, 2)]
    case = _case(torch.float16, group, 1, 16, draw(1, 20), batch, index=torch.int64, seed=seed)
    assert_close(_run(case, window), _reference(case, window))


def test_what_belongs_to_no_sequence_is_zero():
    """Sequences of length 0 with a token and without, and tokens behind the last sequence."""
    query, cache, table, _, _, _ = _case(torch.float16, 4, 2, 16, 16, [(1, 40), (1, 3), (1, 1), (4, 4)])
    lengths = torch.tensor([40, 3, 0, 0], dtype=torch.int32, device=DEVICE)
    starts = torch.tensor([0, 1, 2, 3, 3], dtype=torch.int32, device=DEVICE)
    table[2:] = 1 << 30
    got = _run((query, cache, table, lengths, starts, None))
    assert_close(got[:2], _reference((query[:2], cache, table[:2], lengths[:2], starts[:3], None)))
    assert not got[2:].any()


def test_what_lies_behind_a_sequence_does_not_leak():
    """What was never written may be anything, in the last block and in block 0."""
    case = _case(torch.float16, 4, 2, 16, 16, [(3, 36), (1, 5)])
    before = _run(case, 30)
    cache, table = case[1], case[2]
    cache[:, 0] = float("nan")
    cache[:, int(table[0, 2]), :, 4:] = float("nan")
    cache[:, int(table[1, 0]), :, 5:] = float("inf")
    assert torch.equal(_run(case, 30), before)


def test_queries_may_be_a_part_of_something_larger():
    case = _case(torch.float16, 4, 2, 16, 16, [(1, 20), (1, 5)])
    fused = torch.randn(2, 8 * 16, device=DEVICE).half()
    fused[:, 16:80] = case[0].view(2, 64)
    expected = _run(case)
    assert torch.equal(_run((fused[:, 16:80].view(2, 4, 16), *case[1:])), expected)
    assert torch.equal(_run((case[0].transpose(1, 2).contiguous().transpose(1, 2), *case[1:])), expected)


def test_empty_step():
    case = _case(torch.float16, 4, 2, 16, 16, [(0, 3)])
    assert _run(case).shape == (0, 4, 16)


def test_the_tactic_is_listed_and_prepares_itself():
    query, cache, table, lengths, starts, _ = _case(torch.float16, 4, 2, 16, 16, [(3, 36), (1, 5)])
    tactic = tactics_for("attention", "cuda")[0]
    arguments = (query, cache, table, lengths, starts, 0.25, None, None, None)
    assert_close(tactic.run(*arguments, prepared=tactic.prepare(*arguments)), attention(*arguments))
    assert is_valid(0.25, cache) and not is_valid(-1.0, cache)
    assert not is_valid(0.25, torch.empty(2, 1, 1, 16, 5, dtype=torch.int8)), "no whole words"


@pytest.mark.parametrize("kv_dtype", [None, torch.float8_e4m3fn], ids=str)
def test_a_step_of_both_kinds_is_cut_twice(kv_dtype):
    """Tokens of decoding sequences have the bits of a step without prompts, those of prompts of one without others."""
    case = _case(torch.bfloat16, 4, 2, 16, 16, [(1, 70), (20, 36), (1, 5), (7, 7)], kv_dtype)
    tactic, starts = tactics_for("attention", "cuda")[0], case[4].tolist()

    def run(query, cache, table, lengths, starts, scales):
        arguments = (query, cache, table, lengths, starts, 0.25, None, scales, None)
        prepared = tactic.prepare(*arguments)
        return tactic.run(*arguments, prepared=prepared), len(prepared)

    together, num_parts = run(*case)
    assert num_parts == 2
    for i, (first, last) in enumerate(itertools.pairwise(starts)):
        alone, num_parts = run(*_part(case, i, 0, last - first))
        assert num_parts == 1 and torch.equal(alone, together[first:last])
