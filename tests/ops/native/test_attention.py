"""attention in C++: against the reference, and a row's bits whatever is computed beside it, on every processor."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.ops.attention import attention
from quire.ops.native.attention import attention as native
from quire.ops.native.attention import is_valid
from quire.ops.native.library import library
from tests.support.tolerance import assert_close

pytestmark = pytest.mark.skipif(library() is None, reason="no compiled kernels")
ISAS = library().isas() if library() else [""]
F32, BF16, F16, I8, F8 = torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.float8_e4m3fn
# (dtype of queries, of the cache)
DTYPES = [(F32, F32), (BF16, BF16), (F16, F16), (F32, I8), (BF16, I8), (F16, F8), (BF16, F8)]
# (queries, length) of each sequence: none, decode within a span of 256 and beyond, prompts, chunks over a context
BATCH = [(1, 1), (0, 5), (1, 300), (7, 7), (40, 171), (1, 256), (1, 257), (130, 260), (3, 530)]


def _case(dtypes, heads, kv_heads, head_dim, block_size, batch=BATCH, index=torch.int32, seed=7):
    """Return the op's arguments up to `query_start_loc`, and `kv_scales`."""
    dtype, kv_dtype = dtypes
    generator = torch.Generator().manual_seed(seed)
    used = [-(-length // block_size) for _, length in batch]
    ids = torch.randperm(sum(used), generator=generator) + 1
    table = torch.zeros(len(batch), max(used) + 1, dtype=index)
    for i, (start, count) in enumerate(zip(itertools.accumulate([0, *used]), used, strict=False)):
        table[i, :count] = ids[start : start + count]
    cache = torch.randn(2, sum(used) + 1, kv_heads, block_size, head_dim, generator=generator)
    scales = None
    if kv_dtype in (I8, F8):
        scales = (torch.rand(2, kv_heads, generator=generator) + 0.5) / (30 if kv_dtype == I8 else 1)
        cache = (cache / scales.amin()).clamp(-127, 127)
    starts = torch.tensor([0, *itertools.accumulate(q for q, _ in batch)], dtype=index)
    query = torch.randn(int(starts[-1]), heads, head_dim, generator=generator).to(dtype)
    lengths = torch.tensor([length for _, length in batch], dtype=index)
    return query, cache.to(kv_dtype), table, lengths, starts, scales


def _run(case, window=None, cap=None, isa="", threads=2):
    query, cache, table, lengths, starts, scales = case
    scale = query.shape[2] ** -0.5
    return native(
        query, cache, table, lengths, starts, scale, window, scales, cap, num_threads=threads, isa=isa
    )  # fmt: skip


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
        torch.tensor([0, last - first], dtype=starts.dtype),
        scales,
    )


def _same_bits(a, b):
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize(
    "heads, kv_heads, head_dim, block_size, window, cap",
    [
        (4, 2, 64, 16, None, None),
        (3, 1, 80, 8, 5, None),
        (2, 2, 96, 32, 130, 3.0),
        (1, 1, 128, 16, 257, None),
        (4, 1, 256, 5, None, 50.0),
        (17, 1, 24, 1, 1, None),
        (6, 2, 37, 200, None, None),
        (140, 1, 8, 16, 40, None),
    ],
)
def test_equals_reference(isa, dtypes, heads, kv_heads, head_dim, block_size, window, cap):
    case = _case(dtypes, heads, kv_heads, head_dim, block_size)
    assert_close(_run(case, window, cap, isa), _reference(case, window, cap))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtypes", [(F32, F32), (BF16, BF16), (BF16, I8), (F16, F8)], ids=str)
@pytest.mark.parametrize("heads, kv_heads, head_dim, block_size", [(4, 2, 64, 16), (7, 1, 80, 8), (20, 1, 16, 5)])
@pytest.mark.parametrize("window, cap", [(None, None), (130, None), (5, 3.0)])
def test_bits_do_not_depend_on_batch_or_chunk(isa, dtypes, heads, kv_heads, head_dim, block_size, window, cap):
    """Together = alone = in chunks = decoded one by one."""
    case = _case(dtypes, heads, kv_heads, head_dim, block_size)
    together, starts = _run(case, window, cap, isa), case[4].tolist()
    for i, (count, _) in enumerate(BATCH):
        chunks = {(0, count), (count // 3, count // 3 + 20), (count // 2, count)}
        for first, last in chunks | {(at, at + 1) for at in range(0, count, 1 + count // 50)}:
            last = min(last, count)
            alone = _run(_part(case, i, first, last), window, cap, isa, threads=1)
            assert _same_bits(alone, together[starts[i] + first : starts[i] + last]), (i, first, last)


def _cancelling(case):
    """Keys far larger than they add up to, and values that cancel: any other order of summing shows."""
    query, cache, *rest = case
    keys = cache[0]
    keys[..., 1::2] = -keys[..., ::2] * 1.01
    query[..., 1::2] = query[..., ::2]
    cache[1, :, :, 1::2] *= -1e3
    return query * 8, cache, *rest


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtypes", [(F32, F32), (BF16, BF16)], ids=str)
@pytest.mark.parametrize("prepare", [lambda case: case, _cancelling], ids=["random", "cancelling"])
def test_every_number_of_rows(isa, dtypes, prepare):
    """The last token of a prompt, with 0 to 69 before it and 199, each row being one of several heads or the only."""
    for heads in (1, 3):
        case = prepare(_case(dtypes, heads, 1, 64, 16, [(200, 300)]))
        last = _run(_part(case, 0, 199, 200), isa=isa, threads=1)
        for count in [*range(1, 71), 200]:
            assert _same_bits(_run(_part(case, 0, 200 - count, 200), isa=isa)[-1:], last), count


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtypes", [(F32, F32), (BF16, BF16), (BF16, I8)], ids=str)
@pytest.mark.parametrize(
    "batch", [BATCH, [(1, 2500)], [(9, 2500), (1, 20)], [(300, 300)], [(1, 40)] * 33], ids=lambda batch: str(batch[0])
)
def test_bits_do_not_depend_on_threads(isa, dtypes, batch):
    """With more threads, fewer sequences are cut into more parts; with one, into none."""
    case = (
        _cancelling(_case((F32, F32), 4, 2, 64, 16, batch)) if dtypes[1] == F32 else _case(dtypes, 4, 2, 64, 16, batch)
    )
    alone = _run(case, isa=isa, threads=1)
    for threads in (2, 3, 5):
        assert _same_bits(_run(case, isa=isa, threads=threads), alone), threads
    assert_close(alone, _reference(case))


def _with_shared(case, block_size, beginnings):
    """Return a case whose sequences have their first blocks from others: {sequence: (whose, tokens)}, in order."""
    query, cache, table, *rest = case
    table = table.clone()
    for sequence, (whose, tokens) in beginnings.items():
        blocks = tokens // block_size
        table[sequence, :blocks] = table[whose, :blocks]
    return query, cache, table, *rest


# Decoding, one ending with a span, some tokens at a time, a prompt over a context, and one that is short.
SHARED_BATCH = [(1, 800), (1, 600), (3, 1100), (1, 1024), (2, 513), (1, 300), (90, 700), (1, 100), (1, 530), (1, 900)]
SHARED = {
    "one": {i: (0, 512) for i in (1, 2, 3, 4, 6, 8)},
    "some further": {1: (0, 512), 2: (0, 768), 3: (0, 768), 4: (0, 256), 5: (0, 256), 8: (4, 512), 9: (3, 768)},
    "less than a span": {i: (0, 240) for i in (1, 2, 3, 5)},
    "across spans": {i: (0, 400) for i in (1, 2, 3, 4, 6, 8, 9)},
    "two": {1: (0, 512), 2: (0, 512), 4: (3, 512), 8: (3, 512), 9: (3, 768)},
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("shared", SHARED.values(), ids=SHARED)
@pytest.mark.parametrize("heads, kv_heads, head_dim, block_size", [(4, 2, 64, 16), (6, 1, 80, 8), (1, 1, 32, 400)])
def test_sequences_that_begin_alike_keep_their_bits(isa, dtypes, shared, heads, kv_heads, head_dim, block_size):
    """They meet what they share together; each has the bits that it has alone."""
    case = _with_shared(_case(dtypes, heads, kv_heads, head_dim, block_size, SHARED_BATCH), block_size, shared)
    for window in (None, 1000, 300):
        expected = [_run(_part(case, i, 0, count), window, isa=isa) for i, (count, _) in enumerate(SHARED_BATCH)]
        for threads in (1, 2, 3):
            together = _run(case, window, isa=isa, threads=threads)
            assert _same_bits(together, torch.cat(expected)), (window, threads)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "count, length, common, heads",
    [(2, 2500, 2304, 1), (70, 600, 512, 2), (150, 800, 800, 1), (40, 300, 256, 4), (5, 512, 512, 3)],
)
def test_many_that_begin_alike(isa, count, length, common, heads):
    """More than a tile has rows for, a beginning that threads share, and tables that are alike to their last block."""
    case = _case((BF16, BF16), heads, 1, 32, 16, [(1, length)] * count)
    case = _with_shared(case, 16, {i: (0, common) for i in range(1, count)})
    for threads in (1, 2, 5):
        together = _run(case, isa=isa, threads=threads)
        for i in {0, 1, count // 2, count - 1}:
            assert _same_bits(together[i : i + 1], _run(_part(case, i, 0, 1), isa=isa, threads=1)), (i, threads)


@pytest.mark.parametrize("isa", ISAS)
def test_bits_do_not_depend_on_block_ids_or_size(isa):
    case = _case((BF16, BF16), 4, 2, 64, 16)
    query, cache, table, *rest = case
    order = torch.randperm(cache.shape[1], generator=torch.Generator().manual_seed(3))
    moved = torch.empty_like(cache)
    moved[:, order] = cache
    expected = _run(case, isa=isa)
    assert _same_bits(_run((query, moved, order.to(torch.int32)[table], *rest), isa=isa), expected)
    halves = cache.unflatten(3, (2, 8)).transpose(2, 3).flatten(1, 2).contiguous()
    both = torch.stack((2 * table, 2 * table + 1), -1).flatten(1)
    assert _same_bits(_run((query, halves, both, *rest), isa=isa), expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("kv_dtype", [I8, F8], ids=str)
def test_every_value_of_8_bits_is_read_exactly(isa, dtype, kv_dtype):
    """A sequence of one token returns its value: two of them hold all 256, those that stand for no number included."""
    cache = torch.arange(256, dtype=torch.uint8).view(1, 2, 1, 1, 128).repeat(2, 1, 1, 1, 1)
    cache[0] = 0
    cache = cache.view(kv_dtype)
    table, lengths = torch.arange(2)[:, None], torch.ones(2, dtype=torch.int64)
    case = (torch.zeros(2, 1, 128, dtype=dtype), cache, table, lengths, torch.arange(3), torch.ones(2, 1))
    expected = cache[1].flatten().float()
    assert torch.equal(torch.nan_to_num(_run(case, isa=isa).view(256).float(), 1e6), torch.nan_to_num(expected, 1e6))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtypes", [(F32, F32), (BF16, BF16), (F16, F16), (BF16, F8)], ids=str)
@pytest.mark.parametrize("head_dim", [64, 80])
def test_what_lies_behind_a_sequence_does_not_leak(isa, dtypes, head_dim):
    """What was never written may be anything, in the last block and in block 0."""
    case = _case(dtypes, 4, 2, head_dim, 16, [(3, 36), (1, 5), (40, 301)])
    before = _run(case, 30, isa=isa)
    cache, table, lengths = case[1].view(torch.uint8), case[2], case[3].tolist()
    cache[:, 0] = 0x7F
    for i, length in enumerate(lengths):
        cache[:, int(table[i, length // 16]), :, length % 16 :] = 0x7F  # NaN in float8, else 3.4e38, or NaN in float16
    assert _same_bits(_run(case, 30, isa=isa), before)
    if dtypes[1] != F8:
        case[1].view(-1, 16, head_dim)[:1] = float("nan")
        case[1][1, int(table[0, 2]), :, 4:] = float("nan")
        case[1][0, int(table[1, 0]), :, 5:] = float("inf")
        assert _same_bits(_run(case, 30, isa=isa), before)


@pytest.mark.parametrize("isa", ISAS)
def test_arguments_may_be_parts_of_something_larger(isa):
    query, cache, table, lengths, starts, _ = case = _case((BF16, BF16), 4, 2, 64, 16, index=torch.int64)
    expected = _run(case, isa=isa)
    fused = torch.full((query.shape[0], 8, 64), 3.0, dtype=BF16)
    fused[:, 2:6] = query
    wide = torch.full((table.shape[0], 99), 1 << 40)
    wide[:, : table.shape[1]] = table
    layers = torch.stack((cache, cache))[1]
    apart = cache.transpose(2, 3).contiguous().transpose(2, 3)
    parts = (fused[:, 2:6], layers, wide[:, : table.shape[1]], lengths, starts, None)
    assert _same_bits(_run(parts, isa=isa), expected)
    assert _same_bits(_run((query, apart, *parts[2:]), isa=isa), expected)


@pytest.mark.parametrize("isa", ISAS)
def test_who_sees_no_key_gets_zero(isa):
    case = list(_case((F32, F32), 4, 2, 16, 16, [(2, 40), (3, 3)]))
    case[3] = torch.tensor([40, 0], dtype=torch.int32)
    got = _run(case, isa=isa)
    assert not got[2:].any()
    assert_close(got[:2], _reference(_part(case, 0, 0, 2)))


@pytest.mark.parametrize("isa", ISAS)
def test_empty_steps(isa):
    assert _run(_case((F32, F32), 4, 2, 16, 16, [(0, 3)]), isa=isa).shape == (0, 4, 16)
    query, cache, table, lengths, starts, _ = _case((BF16, BF16), 4, 2, 16, 16, [(0, 3)])
    assert _run((query, cache, table[:0], lengths[:0], starts[:1], None), isa=isa).shape == (0, 4, 16)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_step(data):
    draw = data.draw
    dtypes, isa = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(ISAS))
    counts = draw(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 400)), min_size=1, max_size=4))
    batch = [(queries, queries + context) for queries, context in counts]
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    sizes = draw(st.integers(1, 130)), draw(st.integers(1, 70))
    window, cap = draw(st.none() | st.integers(1, 300)), draw(st.none() | st.floats(0.5, 60))
    case = _case(dtypes, kv_heads * group, kv_heads, *sizes, batch, seed=draw(st.integers(0, 99)))
    together = _run(case, window, cap, isa, threads=draw(st.integers(1, 4)))
    assert_close(together, _reference(case, window, cap))
    for i, (count, _) in enumerate(batch):
        if count:
            at = draw(st.integers(0, count - 1))
            assert _same_bits(_run(_part(case, i, at, at + 1), window, cap, isa), together[int(case[4][i]) + at][None])


def test_validity():
    assert is_valid(scale=0.25)
    assert not is_valid(scale=-1.0)
    assert not is_valid(scale=0.0)
