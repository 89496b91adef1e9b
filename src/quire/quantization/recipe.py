"""`Recipe`: what quantization decided, as data; the pass `quantize_linear` writes it into a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True, slots=True)
class LinearRecipe:
    """How one linear layer is quantized.

    Attributes:
        scheme: "w8a16", "w8a8", "w4a16" or "fp8".
        group_size: w4a16: input channels that share a scale.
        smooth: Name of a tensor of the recipe, [in_features], float32: the weight's input channels are multiplied by
            it, and what makes its input is divided by it. None leaves both alone.
        shares: Name of a tensor of the recipe, [out_features, num_groups], float32: w4a16: how much of the range of a
            group of weights is kept. None keeps all.
        error: Relative error of the layer's output on calibration rows, `|quantized - exact| / |exact|`.
        alpha: The exponent that gave `smooth`.
    """

    scheme: str
    group_size: int = 128
    smooth: str | None = None
    shares: str | None = None
    error: float = 0.0
    alpha: float | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a network is quantized.

    Attributes:
        linears: By name of the node of a `linear` call.
        skipped: Name of a node that stays as it is, to the reason.
        unsmoothed: Name of a node that was to be smoothed and is not, to the reason.
        kv_cache_dtype: "int8" or "float8_e4m3fn"; None leaves the cache alone.
        tensors: What the network needs beside the checkpoint's weights, by name: smoothing factors, shares, and
            `kv_scales.<layer>` [2, num_kv_heads], float32.
    """

    linears: Mapping[str, LinearRecipe] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    unsmoothed: Mapping[str, str] = field(default_factory=dict)
    kv_cache_dtype: str | None = None
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
