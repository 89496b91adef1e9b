"""What attention is planned to hold: the counts are those of the real tiles, and no step exceeds the worst."""

import random

import numpy as np
import pytest
import torch

from quire.ops.cpu import attention, tiles
from quire.ops.cpu.attention_bytes import step_bytes, worst_step
from quire.ops.cpu.tiles import Step, cut
from quire.ops.spec import TensorSpec

# (num_heads, num_kv_heads, head_dim, block_size)
HEADS = [(8, 2, 32, 16), (4, 4, 64, 16), (14, 2, 64, 8), (3, 1, 48, 5), (16, 8, 128, 32)]
WINDOWS = [None, 100]


def random_queries(rng, num_tokens, num_seqs, longest):
    """Queries of each sequence: some decode, some are in the middle of a prompt, in any mixture."""
    lens, left = [], rng.randint(1, num_tokens)
    while left and len(lens) < num_seqs:
        count = min(left, longest, rng.choice((1, 1, 1, rng.randint(1, 12), rng.randint(1, longest))))
        lens.append(count)
        left -= count
    return np.array(lens, dtype=np.int64)


def make_step(query_lens, seq_lens, heads, kv_heads, head_dim, block_size, window, max_blocks):
    table = np.zeros((len(query_lens), max_blocks), dtype=np.int64)
    return Step(
        np.append(0, np.cumsum(query_lens)), seq_lens, table, heads, (2, 9, kv_heads, block_size, head_dim), window
    )


def bytes_of(parts):
    """Of all tensors of all parts, memory that several share once."""
    found = {}
    for part in parts:
        tensors = [part.tokens, part.source, part.target, part.tile_of_pair]
        for chunk in part.chunks:
            tensors += [chunk.blocks, chunk.bias]
        for tensor in filter(lambda t: t is not None, tensors):
            found[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
    return sum(found.values())


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("heads, kv_heads, head_dim, block_size", HEADS)
def test_counts_are_those_of_the_tiles(heads, kv_heads, head_dim, block_size, window, monkeypatch):
    monkeypatch.setattr(tiles, "_PART_BYTES", 1 << 15)
    rng, most_parts = random.Random(0), 0
    for _ in range(10):
        query_lens = random_queries(rng, 200, 12, 300)
        seq_lens = query_lens + np.array([rng.randint(0, 400) for _ in query_lens])
        max_blocks = -(-int(seq_lens.max()) // block_size)
        step = make_step(query_lens, seq_lens, heads, kv_heads, head_dim, block_size, window, max_blocks)
        only_short = not attention.long_keeps_bits(heads // kv_heads, head_dim, block_size)
        parts = [part for tile, some in step.by_tile(only_short) for part in cut(step, some, tile)]
        most_parts = max(most_parts, len(parts))
        assert step_bytes(step, max_blocks, (2, 2)).prepared == bytes_of(parts)
    assert most_parts > 3


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("heads, kv_heads, head_dim, block_size", HEADS)
def test_no_step_exceeds_the_worst(heads, kv_heads, head_dim, block_size, window):
    rng = random.Random(1)
    for num_tokens, num_seqs, longest in [(64, 4, 700), (200, 16, 1000), (300, 64, 333), (37, 100, 2000)]:
        max_blocks = -(-longest // block_size)
        worst = worst_step(
            TensorSpec((num_tokens, heads, head_dim), torch.bfloat16),
            TensorSpec((2, 9, kv_heads, block_size, head_dim), torch.bfloat16),
            TensorSpec((min(num_seqs, num_tokens), max_blocks), torch.int32),
            window,
        )
        for _ in range(40):
            query_lens = random_queries(rng, num_tokens, num_seqs, longest)
            before = [rng.choice((0, longest, rng.randint(0, longest))) for _ in query_lens]
            seq_lens = np.minimum(query_lens + np.array(before), longest)
            step = make_step(query_lens, seq_lens, heads, kv_heads, head_dim, block_size, window, max_blocks)
            held = step_bytes(step, max_blocks, (2, 2))
            # Which of a few corners is the worst is known, what lies between them only nearly.
            assert held.prepared <= 1.02 * worst.prepared, (query_lens, seq_lens)
            assert held.preparing <= 1.02 * worst.preparing, (query_lens, seq_lens)
            assert held.running <= 1.02 * worst.running, (query_lens, seq_lens)


def test_results_in_many_parts_have_the_same_bits(monkeypatch):
    generator = torch.Generator().manual_seed(3)
    query = torch.randn(150, 8, 32, generator=generator).bfloat16()
    cache = torch.randn(2, 40, 2, 16, 32, generator=generator).bfloat16()
    table = torch.randint(1, 40, (4, 60), generator=generator, dtype=torch.int32)
    lens, starts = torch.tensor([900, 300, 1, 77]), torch.tensor([0, 100, 101, 102, 150])
    args = (query, cache, table, lens.int(), starts.int(), 0.2, None)
    whole = attention.tiles(*args)
    expected = attention.attention(*args, prepared=whole)
    monkeypatch.setattr(tiles, "_PART_BYTES", 1 << 16)
    pieces = attention.tiles(*args)
    assert len(pieces) > 3 * len(whole)
    assert torch.equal(attention.attention(*args, prepared=pieces), expected)


def test_the_bound_does_not_grow_with_the_square_of_the_length():
    def worst(longest):
        query, cache = TensorSpec((2048, 32, 128), torch.bfloat16), TensorSpec((2, 9, 8, 16, 128), torch.bfloat16)
        return worst_step(query, cache, TensorSpec((8, longest // 16), torch.int32), None)

    short, long = worst(4096), worst(32768)
    assert long.running < 1.1 * short.running and long.running < 1 << 28
    assert long.prepared < 10 * short.prepared
