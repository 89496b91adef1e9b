"""Rotary positions: cos and sin of a step's tokens are looked up once and shared by all layers."""

from __future__ import annotations

import torch
from torch import Tensor


def angles(x: Tensor, positions: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Return cos and signed sin for whole heads, each [num_tokens, 1, rotary_dim], float32."""
    half = table.shape[-1] // 2
    rows = table.index_select(0, positions)
    cos, sin = rows[:, None, :half], rows[:, None, half:]
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


def rope(x: Tensor, positions: Tensor, table: Tensor, prepared: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate each head's pairs; see `ops.rope.rope`. The same products and sums, so the same bits."""
    cos, sin = prepared
    rotary_dim = table.shape[-1]
    head = x if rotary_dim == x.shape[-1] else x[..., :rotary_dim]
    wide = head.float()
    rotated = (wide.roll(rotary_dim // 2, -1).mul_(sin)).add_(wide * cos).to(x.dtype)
    return rotated if head is x else torch.cat((rotated, x[..., rotary_dim:]), -1)
