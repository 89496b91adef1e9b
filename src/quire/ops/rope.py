"""Rotary position embedding and its scalings for longer contexts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from quire.core.errors import ShapeError
from quire.ops.op import op
from quire.ops.spec import FLOATS, INTS, Shapes, TensorLike, TensorSpec, spec_of

ROPE_KINDS = ("default", "linear", "llama3", "yarn")


def _llama3(inv_freq: Tensor, factor: float, low: float, high: float, original: int) -> Tensor:
    """Stretch long wavelengths by `factor`, leave short ones, interpolate between (Llama 3.1's released rule)."""
    wavelength = 2 * math.pi / inv_freq
    smooth = (original / wavelength - low) / (high - low)
    blended = (1 - smooth) * inv_freq / factor + smooth * inv_freq
    scaled = torch.where(wavelength > original / low, inv_freq / factor, inv_freq)
    is_medium = (wavelength >= original / high) & (wavelength <= original / low)
    return torch.where(is_medium, blended, scaled)


def _yarn(inv_freq: Tensor, dim: int, theta: float, factor: float, fast: float, slow: float, original: int) -> Tensor:
    """Blend stretched and original wavelengths by a ramp over dimensions (Peng et al. 2023, eq. 17-23)."""

    def dimension(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(dimension(fast)), 0)
    high = min(math.ceil(dimension(slow)), dim - 1)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)).clamp(0, 1)
    return inv_freq / factor * ramp + inv_freq * (1 - ramp)


def _infer_rope_table(max_position: int, dim: int, theta: float, kind: str, **scaling: float) -> TensorSpec:
    if kind not in ROPE_KINDS:
        raise ShapeError(f"Invalid kind: expected one of {', '.join(ROPE_KINDS)}, got {kind!r}.")
    if dim % 2 or dim < 2 or max_position < 1:
        raise ShapeError(f"Invalid sizes: expected an even dim and a positive max_position, got {dim}, {max_position}.")
    return TensorSpec((max_position, dim), torch.float32)


@op(_infer_rope_table)
def rope_table(
    max_position: int,
    dim: int,
    theta: float = 10000.0,
    kind: str = "default",
    factor: float = 1.0,
    original_max_position: int = 0,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    attention_factor: float = 1.0,
) -> Tensor:
    """Return cos and sin of every position: a constant, computed once when a plan is loaded.

    Frequencies are `theta ** (-2 i / dim)` (Su et al. 2021, https://arxiv.org/abs/2104.09864), scaled by `kind`:
    "linear" divides them by `factor`; "llama3" and "yarn" (https://arxiv.org/abs/2309.00071) as in their papers.

    Args:
        max_position: Number of positions.
        dim: Rotated width of a head, even.
        theta: Base.
        kind: One of `ROPE_KINDS`.
        factor: How many times the context is stretched.
        original_max_position: llama3, yarn: context length before stretching, in tokens.
        low_freq_factor: llama3: bound of the stretched wavelengths.
        high_freq_factor: llama3: bound of the untouched wavelengths.
        beta_fast: yarn: rotations above which a dimension is untouched.
        beta_slow: yarn: rotations below which a dimension is stretched.
        attention_factor: Multiplies cos and sin.

    Returns:
        [max_position, dim], float32: cos in the first half, sin in the second.
    """
    inv_freq = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    if kind == "linear":
        inv_freq = inv_freq / factor
    elif kind == "llama3":
        inv_freq = _llama3(inv_freq, factor, low_freq_factor, high_freq_factor, original_max_position)
    elif kind == "yarn":
        inv_freq = _yarn(inv_freq, dim, theta, factor, beta_fast, beta_slow, original_max_position)
    angles = torch.arange(max_position, dtype=torch.float32)[:, None] * inv_freq
    return torch.cat((angles.cos(), angles.sin()), -1) * attention_factor


def _infer_rope(x: TensorLike, positions: TensorLike, table: TensorLike) -> TensorSpec:
    shapes = Shapes()
    shapes.check("x", x, "num_tokens num_heads head_dim", FLOATS)
    shapes.check("positions", positions, "num_tokens", INTS)
    shapes.check("table", table, "max_position rotary_dim", (torch.float32,))
    if shapes.size("rotary_dim") > shapes.size("head_dim"):
        raise ShapeError(
            f"Invalid shape of table: expected rotary_dim of at most head_dim={shapes.size('head_dim')}, "
            f"got {shapes.size('rotary_dim')}."
        )
    return spec_of(x)


@op(_infer_rope)
def rope(x: Tensor, positions: Tensor, table: Tensor) -> Tensor:
    """Rotate each head's pairs (i, i + rotary_dim / 2) by the angle of its position, in float32.

    Args:
        x: [num_tokens, num_heads, head_dim], float32 | bfloat16 | float16.
        positions: [num_tokens], int32 | int64, each below max_position.
        table: [max_position, rotary_dim], float32, from `rope_table`. Dimensions past rotary_dim pass unchanged.

    Returns:
        [num_tokens, num_heads, head_dim], same dtype.
    """
    half = table.shape[-1] // 2
    angles = table.index_select(0, positions).unsqueeze(1)
    cos, sin = angles[..., :half], angles[..., half:]
    first, second, rest = x[..., :half].float(), x[..., half : 2 * half].float(), x[..., 2 * half :]
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)
    return torch.cat((rotated, rest), -1) if rest.shape[-1] else rotated
