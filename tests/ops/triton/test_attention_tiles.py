"""The cut of a step into items: every token's splits exactly once, every slot once, within what was reserved."""

import itertools

import pytest
import torch

from quire.ops.triton.attention_tiles import (
    ALL,
    DECODING,
    OTHERS,
    SPLIT,
    WORKSPACE_BYTES,
    Tile,
    attention_bytes,
    cut,
    items_bytes,
    layouts,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TILE = Tile(32, 16, 4, 2, 1, 32)
BATCHES = {
    "decode": [(1, n) for n in (1, 31, 32, 33, 64, 500, 65, 0)],
    "mixed": [(1, 100), (40, 300), (3, 3), (1, 700), (0, 9), (64, 64)],
    "one": [(1, 4096)],
    "prompt": [(300, 300)],
    "late chunk": [(9, 1000)],
}


def _cut(batch, window, slots, heads=4, padding=0, of=ALL):
    lengths = torch.tensor([length for _, length in batch], dtype=torch.int32, device=DEVICE)
    starts = torch.tensor([0, *itertools.accumulate(q for q, _ in batch)], dtype=torch.int32, device=DEVICE)
    query = torch.empty(int(starts[-1]) + padding, heads, 6)
    table = torch.empty(len(batch), -(-max(length for _, length in batch) // 16), dtype=torch.int32)
    cache = torch.empty(2, 1, 1, 16, 6)
    return query, cut(query, cache, table, lengths, starts, window, TILE, slots * heads * 8 * 4, of)


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("window", [None, 1, 70])
@pytest.mark.parametrize("slots", [0, 40, 1000])
def test_every_split_of_every_token_once(name, window, slots):
    batch = BATCHES[name]
    query, found = _cut(batch, window, slots, padding=5)
    num_items = int(found.count)
    assert num_items <= len(found.items)
    seen, of_slot, parts = {}, {}, {}
    for sequence, first, tokens, position, split, end, slot, number in found.items[:num_items].tolist():
        assert 1 <= tokens <= 8
        for i in range(tokens):
            seen.setdefault(first + i, []).extend(range(split, end))
        if number:
            assert not found.arrivals[slot].any() and end <= split + 1
            place = split - (0 if window is None else max(position - window + 1, 0) // 32)
            parts.setdefault((slot, number), []).append(place)
            for i in range(slot + place * tokens, slot + (place + 1) * tokens):
                assert i not in of_slot
                of_slot[i] = sequence
        if sequence < len(batch):
            assert position == batch[sequence][1] - (sum(q for q, _ in batch[: sequence + 1]) - first)
    assert max(of_slot, default=-1) < found.num_slots <= slots
    assert sorted(seen) == list(range(len(query)))
    for (count, length), start in zip(batch, itertools.accumulate([0, *(q for q, _ in batch)]), strict=False):
        for i in range(count):
            at = length - count + i
            low = 0 if window is None else max(at - window + 1, 0)
            needed = set(range(low // 32, at // 32 + 1)) if at >= 0 else set()
            assert len(set(seen[start + i])) == len(seen[start + i]) and needed <= set(seen[start + i])
    assert all(places == list(range(number)) for (_, number), places in parts.items()), "a part for each split"


def test_long_work_comes_first():
    _, found = _cut([(1, 50), (40, 300), (1, 70)], None, 0)
    items = found.items[: int(found.count)].tolist()
    assert [item[0] for item in items] == [1] * 5 + [0, 2]
    assert [item[3] for item in items[:5]] == [292, 284, 276, 268, 260]


@pytest.mark.parametrize("slots", [0, 1000])
def test_both_kinds_of_sequences_are_all(slots):
    counts = []
    for of in (DECODING, OTHERS):
        query, found = _cut(BATCHES["mixed"], None, slots, padding=5, of=of)
        items = found.items[: int(found.count)].tolist()
        counts.append({i for _, first, n, *_ in items for i in range(first, first + n)})
    assert counts == [{0, 44}, set(range(len(query))) - {0, 44}]


def test_a_step_is_cut_twice_where_that_may_help():
    bf16, f32, eight = torch.bfloat16, torch.float32, torch.int8
    assert [of for _, of in layouts(64, 64, 128, bf16)] == [of for _, of in layouts(9, 1, 128, bf16)] == [ALL]
    for kv_dtype in (bf16, eight):
        (long, others), (short, decoding) = layouts(80, 20, 128, bf16, kv_dtype)
        assert (others, decoding) == (OTHERS, DECODING) and long.block_m > short.block_m
        assert (long.block_n, long.split) == (short.block_n, short.split), "bits depend on these"
    assert [of for _, of in layouts(80, 20, 64, f32)] == [of for _, of in layouts(80, 20, 256, bf16)] == [ALL]


def test_bytes_are_what_is_allocated():
    for num_tokens, num_seqs in ((64, 64), (2048, 2), (100, 64)):
        query = torch.empty(num_tokens, 8, 64, dtype=torch.bfloat16, device="meta")
        cache = torch.empty(2, 10, 2, 16, 64, dtype=torch.bfloat16, device="meta")
        table = torch.empty(num_seqs, 512, dtype=torch.int32, device="meta")
        lengths = torch.zeros(num_seqs, dtype=torch.int32, device=DEVICE)
        starts = torch.zeros(num_seqs + 1, dtype=torch.int32, device=DEVICE)
        parts = [
            cut(query, cache, table, lengths, starts, None, tile, of=of)
            for tile, of in layouts(num_tokens, num_seqs, 64, query.dtype)
        ]
        held, found = sum(t.numel() * 4 for p in parts for t in (p.items, p.count, p.arrivals)), parts[0]
        limit = items_bytes(query, cache, table)[0] * len(parts) // 2
        assert held <= limit <= held + 64 * num_tokens
        result = num_tokens * 8 * 64 * 2
        assert attention_bytes(query, cache, table) == result + found.num_slots * 8 * 66 * 4
        assert found.num_slots * 8 * 66 * 4 <= WORKSPACE_BYTES and found.num_slots <= num_tokens * 8192 // SPLIT
