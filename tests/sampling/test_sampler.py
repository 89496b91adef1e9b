"""Every field against the slow reference, the statistics of draws, and rows that fail alone."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import reference_sampler as reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.core.errors import ShapeError
from quire.core.sampling_params import SamplingParams
from quire.sampling import choice, compiled
from quire.sampling.row import SamplingRow
from quire.sampling.sampler import sample

pytestmark = pytest.mark.usefixtures("way")

VOCAB = 203  # prime: no vector width divides it


def random_logits(num_rows: int, vocab_size: int = VOCAB, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * 3


def check_against_reference(params: dict, prompt=(1, 2, 3), output=(), stop=(), bad_words=()) -> set[int]:
    """Draw with 40 seeds and compare every draw; return what was drawn."""
    logits = random_logits(40)
    rows = [
        SamplingRow(SamplingParams(**{"seed": seed, **params}), prompt, output, stop, bad_words) for seed in range(40)
    ]
    drawn = [result.token_id for result in sample(logits, rows)]
    for index, row in enumerate(rows):
        edited = reference.edited(logits[index].numpy(), row.params, prompt, output, stop, bad_words)
        probs = reference.probabilities(edited, row.params)
        assert drawn[index] in reference.draw(probs, row.params, len(output)), (index, params)
        assert probs[drawn[index]] > 0
    return set(drawn)


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0.0},
        {},
        {"temperature": 0.3},
        {"temperature": 2.0},
        {"temperature": 1e-4},
        {"top_k": 1},
        {"top_k": 5},
        {"top_k": VOCAB - 1},
        {"top_k": 100 * VOCAB},
        {"top_p": 0.01},
        {"top_p": 0.5},
        {"top_p": 0.95, "temperature": 0.8},
        {"top_p": 0.9999},
        {"min_p": 0.05},
        {"min_p": 1.0},
        {"min_p": 0.02, "top_k": 7, "top_p": 0.8, "temperature": 1.3},
        {"top_k": 150, "top_p": 0.99, "temperature": 2.0},
    ],
)
def test_filters_equal_reference(params: dict) -> None:
    check_against_reference(params)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "params",
    [
        {"repetition_penalty": 1.5},
        {"repetition_penalty": 0.5},
        {"frequency_penalty": 1.7},
        {"presence_penalty": -2.0},
        {"repetition_penalty": 1.2, "frequency_penalty": 0.5, "presence_penalty": 0.5},
        {"logit_bias": {0: 100.0, 7: 99.0, 9: -100.0}},
        {"logit_bias": {5: 8.0}, "repetition_penalty": 2.0},
        {"allowed_token_ids": [4, 4, 200, 17, 5]},
        {"min_tokens": 9},
    ],
)
def test_edits_equal_reference(params: dict, temperature: float) -> None:
    output = (5, 9, 5, 5, 200)
    check_against_reference({**params, "temperature": temperature}, (0, 7, 7, 9), output, stop=tuple(range(60)))


def test_min_tokens_masks_stop_tokens_only_before_the_count() -> None:
    stop = tuple(range(VOCAB - 1))
    params = {"min_tokens": 2, "max_tokens": 9}
    assert check_against_reference(params, output=(3,), stop=stop) == {VOCAB - 1}
    assert len(check_against_reference(params, output=(3, 4), stop=stop)) > 1


def test_bad_words_are_banned_only_where_they_would_be_completed() -> None:
    everything_but_8 = [[9, 6, token] for token in range(VOCAB) if token != 8]
    assert check_against_reference({}, output=(1, 9, 6), bad_words=everything_but_8) == {8}
    assert len(check_against_reference({}, output=(1, 9, 7), bad_words=everything_but_8)) > 1
    assert len(check_against_reference({}, output=(6,), bad_words=everything_but_8)) > 1
    assert len(check_against_reference({}, prompt=(9, 6), output=(), bad_words=everything_but_8)) > 1


def test_masks_survive_bias_and_penalties() -> None:
    params = {"allowed_token_ids": [3, 4], "logit_bias": {50: 100.0}, "presence_penalty": -2.0}
    assert check_against_reference(params, output=(50, 51)) <= {3, 4}


FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0.0, 0.1, 0.7, 1.0, 2.0]),
        "top_k": st.integers(0, 80),
        "top_p": st.floats(0.05, 1.0),
        "min_p": st.floats(0.0, 1.0),
        "repetition_penalty": st.floats(0.5, 2.0),
        "frequency_penalty": st.floats(-2.0, 2.0),
        "presence_penalty": st.floats(-2.0, 2.0),
        "logit_bias": st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-100, 100), max_size=5),
        "allowed_token_ids": st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=30),
        "logprobs": st.sampled_from([None, 0, 1, 5, -1]),
        "min_tokens": st.sampled_from([0, 4]),
        "seed": st.integers(-(1 << 63), (1 << 64) - 1),
    },
)
IDS = st.lists(st.integers(0, VOCAB - 1), max_size=12)
BAD_WORDS = st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=3), max_size=3)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(FIELDS, IDS, IDS, BAD_WORDS, st.integers(0, 99))
def test_any_combination_draws_what_the_reference_draws(fields, prompt, output, bad_words, logits_seed) -> None:
    params = SamplingParams(**{"seed": 1, **fields})
    logits = random_logits(1, seed=logits_seed)
    edited = reference.edited(logits[0].numpy(), params, prompt, output, (1, 2), bad_words)
    (result,) = sample(logits, [SamplingRow(params, prompt, output, (1, 2), bad_words)])
    if edited.max() == -math.inf:
        assert result.error is not None
        return
    assert result.error is None
    # A float32 threshold may fall on the other side of a token that the float64 reference sees on the very edge.
    possible: set[int] = set()
    for e in (-1e-6, 0.0, 1e-6):
        nudged = replace(params, top_p=min(params.top_p + e, 1.0), min_p=min(max(params.min_p + e, 0.0), 1.0))
        possible |= reference.draw(reference.probabilities(edited, nudged), nudged, len(output))
    assert result.token_id in possible


@pytest.mark.parametrize("params", [{}, {"temperature": 0.7, "top_p": 0.9}, {"top_k": 6}, {"min_p": 0.1}])
def test_draws_follow_the_distribution(params: dict) -> None:
    logits = random_logits(1, vocab_size=17, seed=3) / 2
    num_draws = 6000
    rows = [SamplingRow(SamplingParams(seed=seed, **params), [0]) for seed in range(num_draws)]
    drawn = [result.token_id for result in sample(logits.expand(num_draws, -1), rows)]
    probs = reference.probabilities(logits[0].double().numpy(), rows[0].params)
    counts = np.bincount(drawn, minlength=17)
    assert counts[probs == 0].sum() == 0
    expected = probs[probs > 0] * num_draws
    statistic = ((counts[probs > 0] - expected) ** 2 / expected).sum()
    degrees = len(expected) - 1
    assert statistic < degrees + 4 * math.sqrt(2 * degrees)


def test_draws_follow_the_distribution_along_one_sample() -> None:
    row = SamplingRow(SamplingParams(seed=11), [0])
    logits = torch.tensor([[0.0, math.log(2.0), math.log(5.0)]])
    for _ in range(2000):
        row.append(sample(logits, [row])[0].token_id)
    counts = np.bincount(row.output_token_ids)
    expected = np.array([1, 2, 5]) / 8 * 2000
    assert ((counts - expected) ** 2 / expected).sum() < 13.8  # 2 degrees of freedom, p = 0.001


@pytest.mark.parametrize(("bits", "token_id"), [(0, 3), ((1 << 64) - 1, 200)])
def test_the_ends_of_the_random_range_hit_the_first_and_last_possible_token(
    monkeypatch: pytest.MonkeyPatch, bits: int, token_id: int
) -> None:
    monkeypatch.setattr(choice, "random_bits", lambda seed, position: bits)
    monkeypatch.setattr(compiled, "random_bits_of", lambda starts, positions: np.full_like(starts, bits))
    allowed = SamplingParams(seed=1, allowed_token_ids=[3, 100, 200])
    assert sample(random_logits(1), [SamplingRow(allowed, [0])])[0].token_id == token_id


def test_same_seed_same_tokens_other_seed_other_tokens() -> None:
    def run(seed: int) -> list[int]:
        row = SamplingRow(SamplingParams(seed=seed), [0])
        for step in range(20):
            row.append(sample(random_logits(1, seed=step), [row])[0].token_id)
        return row.output_token_ids

    assert run(5) == run(5)
    assert run(5) != run(6)
    assert run(-1) == run((1 << 64) - 1)


def test_a_row_made_again_after_preemption_goes_on_as_before() -> None:
    params = SamplingParams(seed=5, repetition_penalty=1.3, frequency_penalty=0.7)
    row = SamplingRow(params, [3, 4])
    for step in range(10):
        row.append(sample(random_logits(1, seed=step), [row])[0].token_id)
    again = SamplingRow(params, [3, 4], row.output_token_ids)
    logits = random_logits(1, seed=99)
    assert sample(logits, [again]) == sample(logits, [row])


def test_greedy_takes_the_lowest_id_among_ties() -> None:
    logits = torch.zeros(3, VOCAB)
    logits[1, [40, 7, 201]] = 2.0
    logits[2] = -torch.inf
    logits[2, [202, 201]] = -5.0
    rows = [SamplingRow(SamplingParams(temperature=0.0), [0])] * 3
    assert [result.token_id for result in sample(logits, rows)] == [0, 7, 201]


@pytest.mark.parametrize("params", [{"top_k": 2}, {"top_p": 0.3}, {"min_p": 1.0}, {"top_k": 2, "top_p": 0.5}])
def test_all_ties_with_the_last_kept_token_are_kept(params: dict) -> None:
    logits = torch.zeros(600, VOCAB)
    logits[:, [4, 100, 202]] = 3.0 if "min_p" in params else 10.0
    rows = [SamplingRow(SamplingParams(seed=seed, **params), [0]) for seed in range(600)]
    assert {result.token_id for result in sample(logits, rows)} == {4, 100, 202}


def test_ties_over_the_whole_vocabulary() -> None:
    logits = torch.full((400, 4001), -3.25)
    rows = [SamplingRow(SamplingParams(seed=seed, top_k=3, top_p=0.5), [0]) for seed in range(400)]
    drawn = [result.token_id for result in sample(logits, rows)]
    assert len(set(drawn)) > 350
    assert 1700 < np.mean(drawn) < 2300


def test_extreme_logits() -> None:
    logits = torch.zeros(6, VOCAB)
    logits[0, 9] = 1e30
    logits[1] = -1e30
    logits[1, 9] = -1e29
    logits[2] = -torch.inf
    logits[2, 9] = -3e38
    logits[3, 9], logits[3, 10] = 3.4e38, -3.4e38
    logits[4, 9] = 60.0
    logits[5, 9] = 1e-3
    for params in ({}, {"temperature": 1e-5}, {"top_p": 0.5}, {"top_k": 3, "min_p": 0.2}, {"temperature": 0.0}):
        rows = [SamplingRow(SamplingParams(seed=1, logprobs=3, **params), [0]) for _ in range(6)]
        results = sample(logits, rows)
        assert all(result.error is None for result in results)
        assert [result.token_id for result in results[:5]] == [9] * 5
        for result in results:
            assert not any(math.isnan(logprob) for logprob in result.logprobs.logprobs)


def test_masked_tokens_are_never_drawn() -> None:
    logits = torch.full((500, VOCAB), -torch.inf)
    logits[:, [0, 77, 202]] = torch.tensor([1.0, 1.5, 1.2])
    rows = [SamplingRow(SamplingParams(seed=seed, temperature=2.0), [0]) for seed in range(500)]
    assert {result.token_id for result in sample(logits, rows)} == {0, 77, 202}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_computed_in_float32(dtype: torch.dtype) -> None:
    logits = random_logits(8).to(dtype)
    rows = [SamplingRow(SamplingParams(seed=seed, top_p=0.9, logprobs=4), [0]) for seed in range(8)]
    assert sample(logits, rows) == sample(logits.float(), rows)


def test_logits_are_not_changed() -> None:
    logits = random_logits(4)
    before = logits.clone()
    params = SamplingParams(seed=1, repetition_penalty=2.0, allowed_token_ids=[1, 2, 3], logit_bias={1: 5.0}, top_k=2)
    sample(logits, [SamplingRow(params, [1, 2], [3]) for _ in range(4)])
    assert torch.equal(logits, before)


def test_empty_batch() -> None:
    assert sample(torch.zeros(0, VOCAB), []) == []


def test_wrong_shapes_are_refused() -> None:
    row = SamplingRow(SamplingParams(seed=1), [0])
    for logits in (torch.zeros(VOCAB), torch.zeros(2, VOCAB), torch.zeros(1, VOCAB, dtype=torch.int64)):
        with pytest.raises(ShapeError, match="logits: expected floating"):
            sample(logits, [row])


def failing_rows() -> dict[str, tuple[SamplingRow, float | None]]:
    """Per expected message a row that must fail, and what its logits are filled with (None: healthy logits)."""
    row = SamplingRow
    inside, outside = SamplingParams(seed=1, logprobs=2), VOCAB + 3
    return {
        "got nan": (row(inside, [0]), math.nan),
        "got inf": (row(SamplingParams(temperature=0.0), [0]), math.inf),
        "all logits are -inf": (row(inside, [0]), -math.inf),
        "no token is left": (row(SamplingParams(seed=1, allowed_token_ids=[3]), [0], (), (), [[3]]), None),
        "finite numbers, got inf": (row(SamplingParams(seed=1, repetition_penalty=0.01), [5]), 1e38),
        "logit_bias: expected token ids": (row(SamplingParams(seed=1, logit_bias={outside: 1.0}), [0]), None),
        "allowed_token_ids: expected": (
            row(SamplingParams(temperature=0.0, allowed_token_ids=[1, outside]), [0]),
            None,
        ),
        "stop_token_ids: expected": (row(SamplingParams(seed=1, min_tokens=1), [0], (), [outside]), None),
        "bad_words: expected": (row(inside, [0], (), (), [[1, outside]]), None),
        "got -1": (row(SamplingParams(seed=1, repetition_penalty=1.1), [4, -1]), None),
    }


@pytest.mark.parametrize("message", failing_rows())
@pytest.mark.parametrize("only_one_value", [False, True])
def test_a_row_fails_alone(message: str, only_one_value: bool) -> None:
    bad_row, fill = failing_rows()[message]
    rows = [
        SamplingRow(
            SamplingParams(seed=seed, temperature=seed % 3 / 2, top_p=0.9, logprobs=2, presence_penalty=0.5), [1]
        )
        for seed in range(6)
    ]
    logits = random_logits(7)
    if fill is not None:
        logits[3, [5, 100] if only_one_value and fill != -math.inf else slice(None)] = fill
    results = sample(logits, [*rows[:3], bad_row, *rows[3:]])
    failed = results.pop(3)
    assert message in failed.error
    assert (failed.token_id, failed.logprobs) == (-1, None)
    assert results == sample(logits[[0, 1, 2, 4, 5, 6]], rows)
    assert all(result.error is None for result in results)


def test_nan_in_a_masked_token_fails_the_row_too() -> None:
    logits = random_logits(1)
    logits[0, 50] = math.nan
    (result,) = sample(logits, [SamplingRow(SamplingParams(seed=1, allowed_token_ids=[1, 2]), [0])])
    assert "got nan" in result.error
