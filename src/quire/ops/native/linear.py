"""Linear layers by the compiled kernels, their weights packed in panels (csrc/kernels/panels.hpp).

One kernel, `linear`, serves weights of float32, bfloat16, int8 and four bits; float8_e4m3fn becomes bfloat16 when it is
packed, and float16 becomes float32, both exactly. A row's bits depend neither on other rows nor on threads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quire.ops.native.library import call, kernel_names
from quire.ops.spec import TensorLike, TensorSpec, num_bytes, sizes_of

KERNEL = "linear"
"""Its operands: the result, `x`, the packed weight, its scales and zero points, `bias`."""

PANEL = 32
"""Output channels of a panel."""

_STEP_BYTES, _TILE_ROWS = 64, 16
_GROUP = 32  # what AMX sums at once, so what a group is a multiple of


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """A weight in panels, with what its values are multiplied by.

    Attributes:
        weight: [panels, steps, 2, 16, values in 64 bytes], filled up with zeros.
        scales: [out_features], float32, or of four bits [panels, num_groups, 32], any float; None for plain weights.
        zero_points: Shape of `scales`, uint8; None but for four bits.
        out_features: Of the layer.
    """

    weight: Tensor
    scales: Tensor | None
    zero_points: Tensor | None
    out_features: int


def pack(weight: Tensor) -> PackedLinear:
    """Pack a weight [out_features, in_features], float32 | bfloat16 | float16."""
    return PackedLinear(_panels(weight), None, None, weight.shape[0])


def pack_8bit(weight: Tensor, scales: Tensor) -> PackedLinear:
    """Pack a weight [out_features, in_features], int8 | float8_e4m3fn, with its scales [out_features], float32."""
    return PackedLinear(_panels(weight), scales.contiguous(), None, weight.shape[0])


def pack_int4(weight: Tensor, scales: Tensor, zero_points: Tensor) -> PackedLinear:
    """Pack a weight of four bits and its groups; see `ops.linear.linear_w4a16`."""
    return PackedLinear(_panels(weight), _by_panel(scales), _by_panel(zero_points), weight.shape[0])


def held_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that a weight is packed in."""
    return {torch.float16: torch.float32, torch.float8_e4m3fn: torch.bfloat16}.get(dtype, dtype)


def _panels(weight: Tensor) -> Tensor:
    held = weight.to(held_dtype(weight.dtype))
    if held.stride(1) != 1:
        held = held.contiguous()
    panels, steps = _num_panels_and_steps(held)
    packed = held.new_empty(panels, steps, 2, _TILE_ROWS, _STEP_BYTES // held.element_size())
    call("pack_linear", [packed, held])
    return packed


def _num_panels_and_steps(held: TensorLike) -> tuple[int, int]:
    out_features, in_features = sizes_of(held)
    return -(-out_features // PANEL), -(-in_features * held.dtype.itemsize // _STEP_BYTES)


def _by_panel(values: Tensor) -> Tensor:
    """Return [panels, num_groups, 32] from values [out_features, num_groups], filled up with zeros."""
    out_features, groups = values.shape
    panels = -(-out_features // PANEL)
    padded = values.new_zeros(panels * PANEL, groups)
    padded[:out_features] = values
    return padded.view(panels, PANEL, groups).transpose(1, 2).contiguous()


def run(x: Tensor, weight: PackedLinear, bias: Tensor | None = None) -> Tensor:
    """Return the product of rows with a packed weight; see `ops.linear`.

    Args:
        x: [*rows, in_features], float32 | bfloat16 | float16.
        weight: Packed.
        bias: [out_features], dtype of `x`, or None.

    Returns:
        [*rows, out_features], dtype of `x`.
    """
    rows = x.reshape(-1, x.shape[-1])
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    out = x.new_empty(len(rows), weight.out_features)
    call(KERNEL, [out, rows, weight.weight, weight.scales, weight.zero_points, bias])
    return out.view(*x.shape[:-1], weight.out_features)


def is_valid(x: TensorLike, weight: TensorLike, scales: TensorLike | None = None, **others: object) -> bool:
    """Return whether there is a kernel, and it takes this layer: groups of four bits are multiples of 32 channels."""
    if weight.dtype == torch.uint8:
        assert scales is not None, "four bits have scales"
        if 2 * sizes_of(weight)[1] // sizes_of(scales)[1] % _GROUP:
            return False
    return x.dtype != torch.int8 and KERNEL in kernel_names()


# --------------------------------------------------------------------------------------------------- what they hold


def packed_bytes(weight: TensorLike) -> int:
    """Return the bytes that `pack` makes of a weight."""
    held = TensorSpec(sizes_of(weight), held_dtype(weight.dtype))
    panels, steps = _num_panels_and_steps(held)
    return panels * steps * PANEL * _STEP_BYTES


def packed_8bit_bytes(weight: TensorLike, scales: TensorLike) -> int:
    """Return the bytes that `pack_8bit` makes of a weight, and of its scales."""
    return packed_bytes(weight) + num_bytes(scales)


def packed_int4_bytes(weight: TensorLike, scales: TensorLike, zero_points: TensorLike) -> int:
    """Return the bytes that `pack_int4` makes of a weight, and of its groups."""
    out_features, groups = sizes_of(scales)
    whole = -(-out_features // PANEL) * PANEL * groups
    return packed_bytes(weight) + whole * (scales.dtype.itemsize + zero_points.dtype.itemsize)
