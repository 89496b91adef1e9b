"""Rounding activations row by row in as few passes over memory as torch allows; the same bits as the references."""

from __future__ import annotations

import torch
from torch import Tensor

from quire.ops.quantize import LARGEST, SMALLEST_SCALE
from quire.ops.spec import dtype_of


def quantize_rows(x: Tensor, dtype: str = "int8") -> tuple[Tensor, Tensor]:
    """Return rows and scales; see `ops.quantize.quantize_rows`."""
    scales = x.abs().amax(-1, keepdim=True).float().div_(LARGEST[dtype]).clamp_(min=SMALLEST_SCALE)
    wide = x.div(scales) if x.dtype == torch.float32 else x.float().div_(scales)
    if dtype == "int8":  # |x / scale| is at most 127 and half a unit in the last place
        return wide.round_().to(torch.int8), scales
    return wide.clamp_(-LARGEST[dtype], LARGEST[dtype]).to(dtype_of(dtype)), scales
