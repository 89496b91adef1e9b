"""Thresholds of min_p, top_k and top_p on integer weights against a full sort."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.core.sampling_params import SamplingParams
from quire.sampling import filters
from quire.sampling.filters import apply_filters


def expected_threshold(weights: list[int], params: SamplingParams) -> int:
    """Exact rational arithmetic over a full sort."""
    ordered = sorted(weights, reverse=True)
    threshold = max(1, math.ceil(Fraction(params.min_p) * ordered[0]))
    if 0 < params.top_k < len(ordered):
        threshold = max(threshold, ordered[params.top_k - 1])
    if params.top_p < 1:
        kept = [weight for weight in ordered if weight >= threshold]
        needed, mass = Fraction(params.top_p) * sum(kept), 0
        for weight in kept:
            mass += weight
            if mass >= needed:
                return max(threshold, weight)
    return threshold


WEIGHTS = st.lists(st.integers(0, 12) | st.integers(0, 10_000), min_size=1, max_size=70).filter(any)
# Eighths are exact in binary, so that float64 products of small numbers are the exact ones.
FILTERS = st.fixed_dictionaries(
    {
        "top_k": st.sampled_from([0, 1, 2, 3, 15, 16, 17]) | st.integers(0, 75),
        "top_p": st.integers(1, 8).map(lambda i: i / 8),
        "min_p": st.integers(0, 8).map(lambda i: i / 8),
    }
)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.lists(st.tuples(WEIGHTS, FILTERS), min_size=1, max_size=5), st.sampled_from([1, 2, 16, 128]))
def test_equal_to_a_full_sort_however_small_the_first_look(rows: list, few: int) -> None:
    width = max(len(weights) for weights, _ in rows)
    table = [weights + [0] * (width - len(weights)) for weights, _ in rows]
    params = [SamplingParams(**fields) for _, fields in rows]
    weights = torch.tensor(table)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filters, "_FEW", few)
        apply_filters(weights, params)
    for got, before, p in zip(weights.tolist(), table, params, strict=True):
        threshold = expected_threshold(before, p)
        assert got == [weight if weight >= threshold else 0 for weight in before]


@pytest.mark.parametrize("spread", [0.01, 1.0, 5.0])
@pytest.mark.parametrize(
    "fields", [{"top_p": 0.95}, {"top_p": 0.9999999}, {"top_k": 1500}, {"top_k": 400, "top_p": 0.9}]
)
def test_real_sizes_keep_the_smallest_sufficient_mass(spread: float, fields: dict) -> None:
    logits = torch.randn(3, 5003, generator=torch.Generator().manual_seed(0)) * spread
    weights = (logits.softmax(-1) * 2.0**60).to(torch.int64)
    params = SamplingParams(**fields)
    filtered = weights.clone()
    apply_filters(filtered, [params] * 3)
    for row, kept in zip(weights, filtered, strict=True):
        threshold = int(kept[kept > 0].min())
        assert torch.equal(kept, torch.where(row >= threshold, row, 0))
        ordered = row.sort(descending=True).values
        if params.top_k:
            ordered = ordered[ordered >= ordered[params.top_k - 1]]
        mass, needed = int(ordered.sum()), math.ceil(Fraction(params.top_p) * int(ordered.sum()))
        assert abs(needed - params.top_p * mass) < 2**10
        assert int(ordered[ordered >= threshold].sum()) >= needed - 2**10
        assert int(ordered[ordered > threshold].sum()) < needed + 2**10


def test_top_p_just_below_one_asks_for_no_more_than_there_is() -> None:
    """Totals on either side of where float64 rounds whole numbers."""
    params = SamplingParams(top_p=math.nextafter(1.0, 0.0))
    totals = [2**k + offset for k in (53, 54, 59, 60, 61) for offset in (-129, -65, -64, -1, 0, 1, 127, 128, 129, 255)]
    weights = torch.tensor([[total - 300, 0, 300] for total in totals])
    apply_filters(weights, [params] * len(totals))
    assert ((weights[:, 0] + 300).tolist(), weights[:, 1].max()) == (totals, 0)


@pytest.mark.parametrize("top_k", [127, 128, 129, 199, 200, 201])
def test_top_k_around_the_sizes_that_change_the_method(top_k: int) -> None:
    weights = torch.randperm(200, generator=torch.Generator().manual_seed(0))[None] + 1
    apply_filters(weights, [SamplingParams(top_k=top_k)])
    assert weights[weights > 0].numel() == min(top_k, 200)
    assert weights[weights > 0].min() == max(201 - top_k, 1)
