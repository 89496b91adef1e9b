"""`rope_append_kv` and `attention` as one kernel: the bits of both, in the results and in the cache."""

import pytest
import torch

from quire.ops.rope import rope_table
from quire.ops.triton import attention as tactic
from quire.ops.triton.fused.rope_attention import rope_attention
from quire.ops.triton.rope import rope_append_kv

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BLOCK_SIZE, KV_HEADS = 16, 2


def _case(lengths, dtype=torch.bfloat16, heads=4, head_dim=16, kv_dtype=None, rotary=None):
    """A step of one token for each sequence; of those of length 0, which are padding, nothing is written."""
    generator = torch.Generator().manual_seed(5)
    used = [-(-length // BLOCK_SIZE) for length in lengths]
    table = torch.zeros(len(lengths), max(used) + 1, dtype=torch.int32)
    ids, at = torch.randperm(sum(used), generator=generator).int() + 1, 0
    for i, count in enumerate(used):
        table[i, :count], at = ids[at : at + count], at + count
    lens = torch.tensor(lengths, dtype=torch.int32)
    last = (lens - 1).clamp(min=0)
    slots = table.gather(1, (last // BLOCK_SIZE)[:, None].long())[:, 0] * BLOCK_SIZE + last % BLOCK_SIZE
    slots[lens == 0] = -1
    fused = torch.randn(len(lengths), heads + 2 * KV_HEADS, head_dim, generator=generator).to(DEVICE, dtype)
    query, key, value = fused.split([heads, KV_HEADS, KV_HEADS], 1)
    cache = torch.randn(2, sum(used) + 1, KV_HEADS, BLOCK_SIZE, head_dim, generator=generator).to(DEVICE, dtype)
    angles = rope_table(max(lengths) + 1, rotary or head_dim).to(DEVICE)
    scales = None
    if kv_dtype is not None:
        cache, scales = (cache * 20).to(kv_dtype), torch.full((2, KV_HEADS), 0.05, device=DEVICE)
    last, slots, table, lens = (x.to(DEVICE) for x in (last, slots.int(), table, lens))
    starts = torch.arange(len(lengths) + 1, dtype=torch.int32, device=DEVICE)
    return (query, key, value, last, angles, cache, slots, scales), (table, lens, starts)


def _both(case, window=None, cap=None):
    """Return results and caches of the fused call, and of the two."""
    found = []
    for is_fused in (True, False):
        (query, key, value, positions, angles, cache, slots, scales), step = case
        cache = cache.clone()
        arguments = (cache, *step, query.shape[2] ** -0.5, window, scales, cap)
        first = (query, key, value, positions, angles, cache, slots, scales)
        prepared = tactic.prepare(query, *arguments)
        if is_fused:
            out = rope_attention(*first, *arguments, prepared=prepared)
        else:
            out = tactic.attention(rope_append_kv(*first), *arguments, prepared=prepared)
        found.append((out, cache))
    return found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("window, cap", [(None, None), (130, 4.0)])
def test_bits_are_those_of_two_kernels(dtype, window, cap):
    """Of one split and of several, at the first and the last place of a block, and padding."""
    (out, cache), (expected, expected_cache) = _both(_case([1, 17, 0, 32, 530], dtype), window, cap)
    assert torch.equal(out, expected) and torch.equal(cache.view(torch.int16), expected_cache.view(torch.int16))
    assert not out[2].any()


def test_the_order_of_channels_is_the_same():
    """Heads of several steps of a tensor core, and so many wide scores that one is where a weight rounds otherwise."""
    (query, *rest), step = _case(range(20, 44) if DEVICE == "cuda" else (20, 33), heads=8, head_dim=64)
    (out, _), (expected, _) = _both(((query * 3, *rest), step))
    assert torch.equal(out, expected)


def test_the_new_key_is_seen():
    case = _case([40, 7])
    (out, _), _ = _both(case)
    case[0][2].zero_()
    (other, _), _ = _both(case)
    assert not torch.equal(out, other)


@pytest.mark.parametrize("options", [{"kv_dtype": torch.int8}, {"rotary": 8}, {"head_dim": 24}, {"heads": 64}], ids=str)
def test_what_the_kernel_does_not_take_is_computed_by_two(options, monkeypatch):
    import quire.ops.triton.fused.rope_attention as fused

    monkeypatch.setattr(fused, "attend", None)
    (out, cache), (expected, expected_cache) = _both(_case([3, 40], **options))
    assert torch.equal(out, expected) and torch.equal(cache, expected_cache)
