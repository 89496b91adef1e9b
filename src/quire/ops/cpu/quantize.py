"""Rounding activations row by row in as few passes over memory as torch allows; the same bits as the references."""

from __future__ import annotations

import torch
from torch import Tensor

from quire.ops.quantize import LARGEST, SMALLEST_SCALE
from quire.ops.spec import TensorLike, dtype_of, num_bytes


def quantize_rows(x: Tensor, dtype: str = "int8") -> tuple[Tensor, Tensor]:
    """Return rows and scales; see `ops.quantize.quantize_rows`."""
    scales = x.abs().amax(-1, keepdim=True).float().div_(LARGEST[dtype]).clamp_(min=SMALLEST_SCALE)
    wide = x.div(scales) if x.dtype == torch.float32 else x.float().div_(scales)
    if dtype == "int8":  # |x / scale| is at most 127 and half a unit in the last place
        return wide.round_().to(torch.int8), scales
    return wide.clamp_(-LARGEST[dtype], LARGEST[dtype]).to(dtype_of(dtype)), scales


def quantize_rows_bytes(x: TensorLike, dtype: str = "int8") -> int:
    """Return the most bytes that `quantize_rows` holds: the quotients in float32, the rows, their scales."""
    num_rows = num_bytes(x) // max(1, int(x.shape[-1]) * x.dtype.itemsize)
    return num_bytes(x, torch.float32) + num_bytes(x, dtype_of(dtype)) + 4 * num_rows
