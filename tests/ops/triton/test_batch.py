"""A step's inputs made on the device, against a loop over rows in plain Python."""

import pytest
import torch

from quire.ops.triton.step.batch import keep_tokens, lay_out, update_tables

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
UNTOUCHED = -7


def ints(values, *shape):
    return torch.tensor(values, dtype=torch.int32, device=DEVICE).view(*(shape or (len(values),)))


def tables(num_slots, max_blocks):
    """Block tables in which no block comes twice."""
    order = torch.randperm(num_slots * max_blocks, generator=torch.Generator().manual_seed(0))
    return order.view(num_slots, max_blocks).int().to(DEVICE)


def expected_inputs(rows, counts, tokens, last_tokens, table, block_size):
    """Return each input as a list; of the block table only the blocks in use."""
    ids, positions, slots, lens, blocks = [], [], [], [], []
    for (slot, start, source), count in zip(rows, counts, strict=True):
        if slot < 0:
            ids, positions, slots = ids + [0] * count, positions + [0] * count, slots + [-1] * count
            lens, blocks = [*lens, 0], [*blocks, []]
            continue
        own = [last_tokens[slot]] if source < 0 else tokens[source : source + count]
        places = range(start, start + count)
        ids, positions = ids + own, positions + list(places)
        slots += [table[slot][place // block_size] * block_size + place % block_size for place in places]
        lens.append(start + count)
        blocks.append(table[slot][: -(-(start + count) // block_size)])
    return ids, positions, slots, lens, blocks


CASES = {
    "ragged": ([(2, 0, 0), (0, 5, 7), (3, 16, 8)], [7, 1, 3], 4),
    "one row, one token": ([(1, 0, 0)], [1], 4),
    "last tokens": ([(0, 9, -1), (3, 1, -1), (1, 4, 0), (2, 30, -1)], [1, 1, 2, 1], 5),
    "padding": ([(1, 6, -1), (0, 3, 0), (-1, 0, -1), (-1, 0, -1)], [1, 1, 1, 1], 4),
    "nothing but padding": ([(-1, 0, -1)] * 3, [1, 1, 1], 16),
    "rows over several chunks": ([(1, 3, 0), (0, 700, -1), (2, 0, 1100)], [1100, 1, 513], 1),
    "blocks over several chunks": ([(0, 2000, -1), (1, 1023, 0)], [1, 2], 2),
}


@pytest.mark.parametrize("name", CASES)
def test_lay_out(name):
    rows, counts, block_size = CASES[name]
    num_slots, max_blocks = 4, -(-2048 // block_size)
    table = tables(num_slots, max_blocks)
    tokens = [(31 * i) % 97 for i in range(sum(counts))]
    last_tokens = [11, 12, 13, 14]
    starts = [sum(counts[:i]) for i in range(len(counts) + 1)]
    sizes = {"input_ids": (starts[-1] + 3,), "positions": (starts[-1] + 3,), "slot_mapping": (starts[-1] + 3,)}
    sizes |= {"seq_lens": (len(rows) + 2,), "block_table": (len(rows) + 2, max_blocks)}
    inputs = {key: torch.full(size, UNTOUCHED, dtype=torch.int32, device=DEVICE) for key, size in sizes.items()}
    flat = [number for row in rows for number in row]
    lay_out(ints(flat, -1, 3), ints(starts), ints(tokens), ints(last_tokens), table, inputs, block_size)
    ids, positions, slots, lens, blocks = expected_inputs(rows, counts, tokens, last_tokens, table.tolist(), block_size)
    got = {key: tensor.tolist() for key, tensor in inputs.items()}
    assert got["input_ids"] == [*ids, *[UNTOUCHED] * 3]
    assert got["positions"] == [*positions, *[UNTOUCHED] * 3]
    assert got["slot_mapping"] == [*slots, *[UNTOUCHED] * 3]
    assert got["seq_lens"] == [*lens, UNTOUCHED, UNTOUCHED]
    for row, used in zip(got["block_table"], [*blocks, [], []], strict=True):
        assert row == [*used, *[UNTOUCHED] * (max_blocks - len(used))]


@pytest.mark.parametrize("count", [0, 1, 511, 513])
def test_update_tables(count):
    table = torch.full((40, 30), UNTOUCHED, dtype=torch.int32, device=DEVICE)
    places = torch.randperm(table.numel(), generator=torch.Generator().manual_seed(1))[:count].tolist()
    update_tables(ints([n for i, place in enumerate(places) for n in (place, i)], -1, 2), table)
    expected = [UNTOUCHED] * table.numel()
    for i, place in enumerate(places):
        expected[place] = i
    assert table.view(-1).tolist() == expected


def test_keep_tokens():
    last_tokens = ints([50, 51, 52, 53, 54])
    keep_tokens(ints([7, -1, 9, 3]), ints([4, 1, -1, 0]), last_tokens)
    assert last_tokens.tolist() == [3, 0, 52, 53, 7], "a row that failed keeps an id that exists, padding nothing"


def test_many_tokens_are_kept():
    slots = torch.randperm(700, generator=torch.Generator().manual_seed(2)).tolist()
    last_tokens = ints([UNTOUCHED] * 700)
    keep_tokens(ints(range(700)), ints(slots), last_tokens)
    assert [last_tokens.tolist()[slot] for slot in slots] == list(range(700))
