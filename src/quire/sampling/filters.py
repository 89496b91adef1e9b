"""min_p, then top_k, then top_p: each finds one threshold per row and zeroes the weights below it.

Thresholds, not sorted positions, so that ties cannot depend on how something was sorted: **all tokens that tie with
the last kept one are kept**. Weights are integers, so every sum is exact and no order of adding can change it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quire.core.sampling_params import SamplingParams

# Most nuclei and most top_k are smaller. Per row of 32,000 weights: the 128 largest cost 0.08 ms, the 1,024 largest
# 0.23 ms, sorting all 1.2 ms with numpy and 4 ms with torch (AMD EPYC with AVX-512, one thread, torch 2.13).
_FEW = 128


def apply_filters(weights: Tensor, params: Sequence[SamplingParams]) -> None:
    """Zero the weights that min_p, top_k and top_p drop. The largest weight of a row always stays.

    top_p counts the mass that min_p and top_k have left.

    Args:
        weights: [num_rows, vocab_size], int64, in proportion to probabilities; each row sums to 1..2**62. Mutated.
        params: One per row.
    """
    vocab_size = weights.shape[1]
    if any(p.min_p for p in params):
        _drop_below(weights, range(len(params)), _min_p_threshold(weights, [p.min_p for p in params]))
    for low, high in ((1, _FEW + 1), (_FEW + 1, vocab_size)):  # apart, so that a large top_k slows down no small one
        rows = [i for i, p in enumerate(params) if low <= p.top_k < min(high, vocab_size)]
        if rows:
            _drop_below(weights, rows, _top_k_threshold(_take(weights, rows), [params[i].top_k for i in rows]))
    rows = [i for i, p in enumerate(params) if p.top_p < 1]
    if rows:
        _drop_below(weights, rows, _top_p_threshold(_take(weights, rows), [params[i].top_p for i in rows]))


def _take(weights: Tensor, rows: Sequence[int]) -> Tensor:
    return weights if len(rows) == weights.shape[0] else weights[rows]


def _drop_below(weights: Tensor, rows: Sequence[int], thresholds: Tensor) -> None:
    """Zero, in place, what is below the threshold of each of `rows`."""
    limits = torch.zeros(weights.shape[0], dtype=torch.int64, device=weights.device)
    limits[list(rows)] = thresholds
    weights.masked_fill_(weights < limits[:, None], 0)


def _min_p_threshold(weights: Tensor, min_p: Sequence[float]) -> Tensor:
    """Return `min_p` times the largest weight of each row, [num_rows], int64."""
    share = torch.tensor(min_p, dtype=torch.float64, device=weights.device)
    return (share * weights.amax(-1)).ceil().to(torch.int64)


def _top_k_threshold(weights: Tensor, top_k: Sequence[int]) -> Tensor:
    """Return the `top_k`-th largest weight of each row, [num_rows], int64."""
    largest = weights.topk(max(top_k)).values
    return largest.gather(1, torch.tensor(top_k, device=weights.device)[:, None] - 1)[:, 0]


def _top_p_threshold(weights: Tensor, top_p: Sequence[float]) -> Tensor:
    """Return the largest threshold that keeps `top_p` of each row's mass, [num_rows], int64."""
    total = weights.sum(-1)
    # Never more than `total`: a float64 below 1 times a whole number rounds to less than that number's own rounding.
    needed = (torch.tensor(top_p, dtype=torch.float64, device=weights.device) * total).ceil().to(torch.int64)
    largest = weights.topk(min(_FEW, weights.shape[1])).values
    last = (largest.cumsum(-1) < needed[:, None]).sum(-1)
    threshold = largest.gather(1, last.clamp(max=largest.shape[1] - 1)[:, None])[:, 0]
    for index in (last == largest.shape[1]).nonzero()[:, 0].tolist():
        threshold[index] = _wide_nucleus(weights[index].cpu().numpy(), int(needed[index]))
    return threshold


def _wide_nucleus(weights: npt.NDArray[np.int64], needed: int) -> int:
    """Return the threshold of one row by sorting, after dropping what is surely outside.

    Weights of less than (total - needed) / vocab_size sum to less than total - needed, so the others hold the nucleus.
    """
    least = (int(weights.sum()) - needed) // len(weights)
    largest = np.sort(weights[weights >= least])[::-1]
    return int(largest[np.searchsorted(largest.cumsum(), needed)])
