"""Rotary positions: cos and sin of a step's tokens are looked up once and shared by all layers."""

from __future__ import annotations

import torch
from torch import Tensor

from quire.ops.spec import TensorLike, TensorSpec, num_bytes, sizes_of


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


def rope_bytes(x: TensorLike, positions: TensorLike, table: TensorLike) -> int:
    """Return the most bytes that `rope` holds: both products in float32, the part that turns if it is not, the result.

    Where only a part of a head turns, that part's result is there beside the whole.
    """
    num_tokens, num_heads, head_dim = sizes_of(x)
    turning = TensorSpec((num_tokens, num_heads, sizes_of(table)[1]), x.dtype)
    wide = num_bytes(turning, torch.float32)
    copied = 0 if x.dtype == torch.float32 else wide
    rest = 0 if turning.shape[2] == head_dim else num_bytes(turning) + num_bytes(x)
    return copied + max(2 * wide, (wide if copied else 0) + num_bytes(turning), rest)


def angles_bytes(x: TensorLike, positions: TensorLike, table: TensorLike) -> tuple[int, int]:
    """Return the bytes of `angles`, cos and sin of whole heads, and the most that making them takes."""
    rows = 4 * sizes_of(positions)[0] * sizes_of(table)[1]
    return 2 * rows, 3 * rows + rows // 2
