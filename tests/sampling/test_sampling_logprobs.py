"""Logprobs: raw, ranked, ties in order of id."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.core.errors import RequestError, ShapeError
from quire.core.request import TokenLogprobs
from quire.core.sampling_params import SamplingParams
from quire.sampling.logprobs import prompt_logprobs
from quire.sampling.row import SamplingRow
from quire.sampling.sampler import sample


def expected(logits: torch.Tensor, token_id: int, num: int) -> TokenLogprobs:
    """The definition, in float64, with Python's sort."""
    values = logits.double().numpy()
    logprobs = values - values.max() - math.log(np.exp(values - values.max()).sum())
    best = sorted(range(len(values)), key=lambda i: (-values[i], i))[: len(values) if num < 0 else num]
    ids = (token_id, *best)
    ranks = tuple(1 + int((values > values[i]).sum()) for i in ids)
    return TokenLogprobs(ids, tuple(float(logprobs[i]) for i in ids), ranks)


def assert_close(got: TokenLogprobs | None, want: TokenLogprobs) -> None:
    assert got is not None
    assert (got.token_ids, got.ranks) == (want.token_ids, want.ranks)
    assert got.logprobs == pytest.approx(want.logprobs, abs=2e-6, rel=2e-6)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.lists(st.integers(-8, 8), min_size=1, max_size=60), st.integers(-1, 70), st.data())
def test_prompt_logprobs_equal_the_definition(levels: list[int], num: int, data: st.DataObject) -> None:
    """Logits from few levels, so that most of them tie."""
    logits = torch.tensor([levels, levels[::-1]]) / 4
    tokens = [data.draw(st.integers(0, len(levels) - 1)) for _ in range(2)]
    entries = prompt_logprobs(logits, tokens, num)
    for entry, row, token in zip(entries, logits, tokens, strict=True):
        assert_close(entry, expected(row, token, num))


def test_reported_are_the_raw_logits_whatever_was_sampled_from() -> None:
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(1))
    params = SamplingParams(
        seed=1, logprobs=5, temperature=0.3, allowed_token_ids=[7], presence_penalty=2.0, logit_bias={7: 9.0}
    )
    (result,) = sample(logits, [SamplingRow(params, [1], [7])])
    assert result.token_id == 7
    assert_close(result.logprobs, expected(logits[0], 7, 5))


def test_each_row_gets_as_many_as_it_asked_for() -> None:
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(2))
    nums = [None, 0, 3, 400, -1]
    rows = [SamplingRow(SamplingParams(temperature=0.0, logprobs=num), [1]) for num in nums]
    results = sample(logits, rows)
    assert results[0].logprobs is None
    for index in (1, 2, 3, 4):
        assert_close(results[index].logprobs, expected(logits[index], results[index].token_id, nums[index]))


def test_how_many_others_ask_for_does_not_choose_among_ties() -> None:
    logits = torch.zeros(2, 5000)
    short, long = (SamplingRow(SamplingParams(temperature=0.0, logprobs=num), [1]) for num in (3, 700))
    results = sample(logits, [short, long])
    assert results[0].logprobs.token_ids == (0, 0, 1, 2)
    assert results[0].logprobs.ranks == (1, 1, 1, 1)
    assert results[1].logprobs.token_ids == (0, *range(700))


def test_impossible_tokens_have_logprob_minus_infinity() -> None:
    logits = torch.tensor([[0.0, -math.inf, 1.0]])
    (entry,) = prompt_logprobs(logits, [1], -1)
    assert entry.token_ids == (1, 2, 0, 1)
    assert entry.logprobs[0] == entry.logprobs[3] == -math.inf
    assert entry.ranks == (3, 1, 2, 3)


def test_bad_input_is_refused() -> None:
    logits = torch.zeros(2, 10)
    with pytest.raises(RequestError, match=r"expected an id in \[0, 10\), got 10"):
        prompt_logprobs(logits, [1, 10], 1)
    with pytest.raises(ShapeError, match="expected \\[3, vocab_size\\]"):
        prompt_logprobs(logits, [1, 2, 3], 1)
    logits[1, 4] = math.nan
    with pytest.raises(RequestError, match="NaN or infinity"):
        prompt_logprobs(logits, [1, 2], 1)
    assert prompt_logprobs(torch.zeros(0, 10), [], 1) == []
