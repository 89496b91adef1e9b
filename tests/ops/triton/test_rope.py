"""rope, append_kv and both in one launch: the references' bits where the interpreter rounds as a GPU does."""

import pytest
import torch

from quire.ops.attention import append_kv
from quire.ops.fused import rope_append_kv
from quire.ops.rope import rope, rope_table
from quire.ops.tactics import tactics_for
from quire.ops.triton import launch
from quire.ops.triton import rope as kernels
from tests.support.tolerance import assert_close

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# (num_heads, num_kv_heads, head_dim, rotary_dim)
HEADS = [(4, 2, 16, 16), (3, 3, 20, 12), (7, 1, 10, 10), (2, 2, 80, 32)]


def _case(dtype, heads, kv_heads, head_dim, rotary_dim, num_tokens=7, kv_dtype=None, block_size=5, index=torch.int32):
    generator = torch.Generator().manual_seed(3)
    widths = [n * head_dim for n in (heads, kv_heads, kv_heads)]
    fused = torch.randn(num_tokens, sum(widths), generator=generator).to(dtype).to(DEVICE)
    query, key, value = (x.unflatten(1, (-1, head_dim)) for x in fused.split(widths, 1))
    positions = torch.randint(0, 50, (num_tokens,), generator=generator).to(index).to(DEVICE)
    slots = torch.randperm(3 * block_size, generator=generator)[:num_tokens].to(index).to(DEVICE)
    slots[1:2] = -1
    cache = torch.zeros(2, 3, kv_heads, block_size, head_dim, device=DEVICE).to(kv_dtype or dtype)
    scales = None
    if kv_dtype is not None:  # the largest values saturate
        scales = (torch.rand(2, kv_heads, generator=generator) / (100 if kv_dtype == torch.int8 else 300)).to(DEVICE)
    return query, key, value, positions, rope_table(50, rotary_dim).to(DEVICE), cache, slots, scales


def _assert_same(got, expected, dtype):
    """Interpreted, values are cut to bfloat16 instead of rounded."""
    if dtype == torch.bfloat16 and launch.INTERPRETED:
        is_wide = expected.dtype == torch.bfloat16
        assert_close(*(x if is_wide else x.to(torch.bfloat16) for x in (got, expected)))
    else:
        assert torch.equal(got.float(), expected.float())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("kv_dtype", [None, torch.int8, torch.float8_e4m3fn], ids=str)
def test_rope_append_kv_is_the_reference(dtype, heads, kv_dtype):
    *arguments, cache, slots, scales = _case(dtype, *heads, kv_dtype=kv_dtype)
    expected = cache.clone()
    want = rope_append_kv(*arguments, expected, slots, scales)
    _assert_same(kernels.rope_append_kv(*arguments, cache, slots, scales), want, dtype)
    if kv_dtype is None or dtype != torch.bfloat16 or not launch.INTERPRETED:
        _assert_same(cache, expected, dtype)
    assert torch.equal(cache[1].float(), expected[1].float()), "values are not rotated, so not rounded before"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_rope_is_the_reference(dtype, heads):
    query, key, _, positions, table, *_ = _case(dtype, *heads, index=torch.int64)
    for x in (query, key, query.transpose(1, 2).contiguous().transpose(1, 2)):
        got = kernels.rope(x, positions, table)
        _assert_same(got, rope(x, positions, table), dtype)
        assert got.is_contiguous()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kv_dtype", [None, torch.int8, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("block_size", [3, 16])
def test_append_kv_is_the_reference(dtype, kv_dtype, block_size):
    _, key, value, _, _, cache, slots, scales = _case(
        dtype, 4, 2, 16, 16, kv_dtype=kv_dtype, block_size=block_size, index=torch.int64
    )
    expected = cache.clone()
    append_kv(key, value, expected, slots, scales)
    kernels.append_kv(key, value, cache, slots, scales)
    assert torch.equal(cache.float(), expected.float())


@pytest.mark.parametrize("kv_dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_every_rounding_of_8_bits(kv_dtype):
    """Halves of every step of the format and their neighbours in float32, both signs, and what saturates."""
    steps = torch.arange(256, dtype=torch.uint8).view(kv_dtype).float()
    steps = steps[steps.isfinite()].sort().values
    halves = (steps[1:] + steps[:-1]) / 2
    near = [torch.nextafter(halves, torch.full_like(halves, sign * 1e9)) for sign in (-1, 1)]
    values = torch.cat((steps, halves, *near, torch.tensor([1e9, -1e9, 127.5, -449.0, 464.0, 465.0])))
    values = torch.nn.functional.pad(values, (0, -len(values) % 16)).view(-1, 1, 16).to(DEVICE)
    slots = torch.arange(len(values), device=DEVICE)
    caches = [torch.zeros(2, len(values), 1, 1, 16, device=DEVICE).to(kv_dtype) for _ in range(2)]
    scales = torch.ones(2, 1, device=DEVICE)
    append_kv(values, -values, caches[0], slots, scales)
    kernels.append_kv(values, -values, caches[1], slots, scales)
    assert torch.equal(caches[1].view(torch.uint8), caches[0].view(torch.uint8))


@pytest.mark.parametrize("num_tokens", [0, 1])
def test_few_tokens(num_tokens):
    *arguments, cache, slots, scales = _case(torch.float16, 4, 2, 16, 16, num_tokens)
    expected = cache.clone()
    want = rope_append_kv(*arguments, expected, slots, scales)
    assert torch.equal(kernels.rope_append_kv(*arguments, cache, slots, scales), want)
    assert torch.equal(cache, expected)


def test_bits_do_not_depend_on_the_batch():
    query, key, value, positions, table, cache, slots, _ = _case(torch.bfloat16, 4, 2, 16, 16)
    together = kernels.rope_append_kv(query, key, value, positions, table, cache, slots)
    alone = torch.zeros_like(cache)
    for i in range(7):
        one = (x[i : i + 1] for x in (query, key, value, positions))
        assert torch.equal(kernels.rope_append_kv(*one, table, alone, slots[i : i + 1]), together[i : i + 1])
    assert torch.equal(alone, cache)


def test_listed():
    assert [tactics_for(op, "cuda")[0].run for op in ("rope", "append_kv", "rope_append_kv")] == [
        kernels.rope,
        kernels.append_kv,
        kernels.rope_append_kv,
    ]
