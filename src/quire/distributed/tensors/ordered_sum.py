"""The sum of what several ranks have, with bits that depend on nothing but the ranks' own."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def ordered_sum(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the sum of tensors, the terms of an element added in their order in float32, rounded once.

    Args:
        parts: Of one shape and dtype, float32 | bfloat16 | float16; at least one. Not mutated.
    """
    total = parts[0].to(torch.float32, copy=True)
    for part in parts[1:]:
        total += part
    return total.to(parts[0].dtype)
