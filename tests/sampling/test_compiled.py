"""Compiled sampling against torch's: the same tokens for the same seeds, on every set of instructions."""

from functools import partial

import pytest
import torch

from quire.core.sampling_params import SamplingParams
from quire.ops.native import library
from quire.sampling import compiled
from quire.sampling.logprobs import token_logprobs
from quire.sampling.row import SamplingRow
from quire.sampling.sampler import sample

pytestmark = pytest.mark.skipif("choose_tokens" not in library.kernel_names(), reason="no compiled kernels")
ISAS = library.library().isas() if library.library() else []
SETTINGS = [
    {"temperature": 0.0},
    {"temperature": 0.8},
    {"temperature": 1e-3},
    {"top_k": 1},
    {"top_k": 50},
    {"top_k": 3000},
    {"top_p": 0.95, "temperature": 0.8},
    {"top_p": 0.999},
    {"top_p": 1e-9},
    {"min_p": 0.05},
    {"min_p": 0.01, "top_k": 40, "top_p": 0.9, "temperature": 1.3},
    {"top_k": 2000, "top_p": 0.99, "temperature": 1.5},
    {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.3, "logit_bias": {5: 4.0, 9: -50.0}},
    {"allowed_token_ids": [4, 17, 1000, 2047], "top_p": 0.7, "min_tokens": 8},
]


@pytest.fixture(params=ISAS, autouse=True)
def isa(request, monkeypatch):
    """Run every test on each set of instructions."""
    for name in ("call", "run"):
        monkeypatch.setattr(compiled, name, partial(getattr(library, name), isa=request.param))
    return request.param


def batch(num_rows, vocab_size, spread, dtype, **params):
    """Return random logits and rows with a history."""
    generator = torch.Generator().manual_seed(vocab_size + num_rows)
    logits = (torch.randn(num_rows, vocab_size, generator=generator) * spread).to(dtype)
    history = torch.randint(vocab_size, (num_rows, 12), generator=generator).tolist()
    rows = [
        SamplingRow(SamplingParams(seed=seed, **params), ids[:6], ids[6:], [17], [[ids[-1], 4], [3]])
        for seed, ids in enumerate(history)
    ]
    return logits, rows


def by_torch(monkeypatch, logits, rows):
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "is_compiled", lambda device: False)
        return sample(logits, rows)


@pytest.mark.parametrize("params", SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_are_those_of_torch(monkeypatch, params, dtype):
    for vocab_size, spread in ((2048, 0.05), (2049, 2.0), (8191, 5.0)):
        logits, rows = batch(40, vocab_size, spread, dtype, **params)
        expected = [result.token_id for result in by_torch(monkeypatch, logits, rows)]
        assert [result.token_id for result in sample(logits, rows)] == expected


def test_ties_everywhere(monkeypatch):
    """Equal logits, and a cut through them: all that tie with the last kept are kept."""
    for params in ({"temperature": 0.0}, {"top_k": 3}, {"top_p": 0.3}, {"min_p": 0.5}, {}):
        logits, rows = batch(60, 1500, 1.0, torch.float32, **params)
        logits = logits.round()
        logits[:9] = 2.5
        expected = [result.token_id for result in by_torch(monkeypatch, logits, rows)]
        assert [result.token_id for result in sample(logits, rows)] == expected


def test_unusable_rows_say_what_torch_says(monkeypatch):
    logits, rows = batch(8, 600, 3.0, torch.float32)
    logits[1, 599], logits[2, 0], logits[3], logits[4, 3:] = torch.nan, torch.inf, -torch.inf, -torch.inf
    got, expected = sample(logits, rows), by_torch(monkeypatch, logits, rows)
    assert [result.error for result in got] == [result.error for result in expected]
    assert [result.error is None for result in got] == [True, False, False, False, True, True, True, True]
    assert [result.token_id for result in got] == [result.token_id for result in expected]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab_size", [1, 5, 511, 4099, 33000])
def test_logprobs(dtype, vocab_size):
    logits, _ = batch(12, vocab_size, 3.0, dtype)
    logits[3, 1::2] = -torch.inf
    logits[4] = 1.0
    token_ids = [index * 37 % vocab_size for index in range(12)]
    nums = [0, 1, 5, 20, 20, 0, 3, 100, 7, 0, 2, 1]
    got, expected = compiled.token_logprobs(logits, token_ids, nums), token_logprobs(logits.float(), token_ids, nums)
    for one, other in zip(got, expected, strict=True):
        assert one.token_ids == other.token_ids and one.ranks == other.ranks
        assert torch.allclose(torch.tensor(one.logprobs), torch.tensor(other.logprobs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("vocab_size", [1, 700, 20001])
def test_logprobs_of_the_whole_vocabulary(vocab_size):
    """In the order of what is left of logits after their largest, of which torch may round neighbours to one."""
    logits, _ = batch(2, vocab_size, 3.0, torch.float32)
    logits[1] = logits[1].round()
    for got, row in zip(compiled.token_logprobs(logits, [0, 0], [-1, vocab_size]), logits, strict=True):
        ids = torch.tensor(got.token_ids[1:])
        assert torch.equal(ids, (row - row.max()).argsort(descending=True, stable=True))
        assert torch.allclose(torch.tensor(got.logprobs[1:]), row.log_softmax(-1)[ids], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_a_row_alone_is_the_row_among_others(monkeypatch, threads):
    monkeypatch.setattr(compiled, "_num_threads", lambda num_rows: threads)
    logits, rows = batch(90, 3001, 3.0, torch.float32, top_p=0.9, logprobs=3)
    alone = [sample(logits[index : index + 1], [row])[0] for index, row in enumerate(rows)]
    for count in (*range(1, 71), 90):
        assert sample(logits[-count:], rows[-count:]) == alone[-count:], count
    wide = torch.zeros(90, 3007)
    wide[:, 2:3003] = logits
    assert sample(wide[:, 2:3003], rows) == alone
