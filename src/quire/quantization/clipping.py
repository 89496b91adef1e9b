"""Clipping: how much of the range of a group of four-bit weights is kept.

A narrower range rounds most weights more finely and cuts off the outermost. AWQ (Lin et al. 2023,
https://arxiv.org/abs/2306.00978, its search for a clipping range) keeps, per group, what moves the group's part of the
output least on calibration rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from quire.ops.quantize import dequantize_int4, quantize_weight_int4

_SHARES = [1 - 0.05 * i for i in range(1, 11)]


def products_of_groups(batches: Sequence[Tensor], group_size: int, factors: Tensor | None) -> Tensor:
    """Return `x.T @ x` within each group of input channels, [num_groups, group_size, group_size], float32.

    Args:
        batches: A layer's input, [*rows, in_features] each.
        group_size: Divides in_features.
        factors: [in_features]: what the input is divided by first, None for nothing.
    """
    total = torch.zeros(batches[0].shape[-1] // group_size, group_size, group_size)
    for batch in batches:
        rows = batch.reshape(-1, batch.shape[-1]).float()
        rows = rows if factors is None else rows / factors
        groups = rows.view(len(rows), -1, group_size).transpose(0, 1)
        total.baddbmm_(groups.transpose(1, 2), groups)
    return total


def best_shares(weight: Tensor, products: Tensor) -> Tensor:
    """Return the share of each group's range that leaves the smallest error, [out_features, num_groups], float32.

    Args:
        weight: [out_features, in_features]; its dtype is that of the scales.
        products: From `products_of_groups`.
    """
    out_features, (num_groups, group_size, _) = weight.shape[0], products.shape
    wide = weight.float()

    def errors(shares: Tensor) -> Tensor:
        rounded = dequantize_int4(*quantize_weight_int4.reference(weight, group_size, shares=shares))
        change = (rounded - wide).view(out_features, num_groups, group_size).transpose(0, 1)
        return ((change @ products) * change).sum(-1).t()

    best = torch.ones(out_features, num_groups)
    smallest = errors(best)
    for share in _SHARES:
        found = errors(torch.full_like(best, share))
        is_better = found < smallest
        best[is_better] = share
        smallest = torch.where(is_better, found, smallest)
    return best
