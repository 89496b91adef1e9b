"""Smoothing: factors that move range between a layer's activations and its weights, without changing its result.

`x @ w.T = (x / s) @ (w * s).T`. Dividing the input costs nothing where it can be done to what makes it: the weight of a
norm, or the rows of the projection before. SmoothQuant (Xiao et al. 2022, https://arxiv.org/abs/2211.10438) takes
`s = max|x| ** alpha / max|w| ** (1 - alpha)` per input channel, AWQ (Lin et al. 2023,
https://arxiv.org/abs/2306.00978) `s = mean|x| ** alpha`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from quire.graph.nodes import is_call
from quire.ops.linear import linear_w4a16, linear_w8a8, linear_w8a16
from quire.ops.quantize import quantize_rows, quantize_weight, quantize_weight_int4

_ALPHAS = {"w8a8": [0.1 * i for i in range(1, 10)], "w4a16": [0.05 * i for i in range(1, 21)]}
_SMALLEST = 1e-5
# Output channels that tell an exponent's error: of 8,192 as well as all of them, in a sixteenth of the time.
_NUM_OUTPUTS = 512


@dataclass(frozen=True, slots=True)
class Activations:
    """What calibration saw of a layer's input.

    Attributes:
        size: [in_features], float32: the magnitude of each channel, its mean for w4a16, the largest for other schemes.
        rows: [num_rows, in_features]: some of its rows, evenly spread.
    """

    size: Tensor
    rows: Tensor


@dataclass(frozen=True, slots=True)
class Choice:
    """What a search found for layers that share an input.

    Attributes:
        alpha: Exponent, None if nothing is smoothed.
        factors: [in_features], float32, None if nothing is smoothed.
        error: Relative error of the output on `Activations.rows`.
    """

    alpha: float | None
    factors: Tensor | None
    error: float


def absorber(x: fx.Node, layer: fx.Node) -> fx.Node | None:
    """Return the call whose weight can be divided by factors of the channels of `x`, or None.

    That is a norm, or the `linear` before a gated or rectified activation; none of them may be used elsewhere.

    Args:
        x: The input of the layer.
        layer: A linear layer, the only user of `x`.
    """
    if set(x.users) != {layer}:
        return None
    if is_call(x, "rms_norm", "layer_norm"):
        return x
    if is_call(x, "item"):
        source = x.kwargs["results"]
        return source if is_call(source, "add_rms_norm") and x.kwargs["index"] == 0 else None
    source = x.kwargs.get("x")
    if is_call(x, "silu_mul", "relu") and is_call(source, "linear") and len(source.users) == 1:
        return source
    return None


def quantized_output(scheme: str, group_size: int, rows: Tensor, weight: Tensor) -> Tensor:
    """Return a linear layer's output with a weight quantized by a scheme, [num_rows, out_features], float32.

    Args:
        scheme: "w8a16", "w8a8", "w4a16" or "fp8".
        group_size: w4a16: input channels that share a scale.
        rows: [num_rows, in_features], float32.
        weight: [out_features, in_features], float32.
    """
    if scheme == "w4a16":
        return linear_w4a16.reference(rows, *quantize_weight_int4.reference(weight, group_size))
    dtype = "float8_e4m3fn" if scheme == "fp8" else "int8"
    quantized, scales = quantize_weight.reference(weight, dtype)
    if scheme == "w8a16":
        return linear_w8a16.reference(rows, quantized, scales)
    return linear_w8a8.reference(*quantize_rows.reference(rows, dtype), quantized, scales, dtype="float32")


def search(
    scheme: str,
    group_size: int,
    seen: Activations,
    weight: Tensor,
    *,
    may_smooth: bool,
    alpha: float | None,
) -> Choice:
    """Return the factors that leave the smallest error, no factors among the candidates.

    Args:
        scheme: "w8a16", "w8a8", "w4a16" or "fp8".
        group_size: w4a16: input channels that share a scale.
        seen: The layers' input.
        weight: [out_features, in_features]: of all layers that share the input, one after the other.
        may_smooth: Whether the factors can be applied.
        alpha: Given exponent; None searches.
    """
    rows, every = seen.rows.float(), max(1, weight.shape[0] // _NUM_OUTPUTS)
    wide = weight[::every].float()
    exact = rows @ wide.t()
    norm = float(exact.norm()) or 1.0

    def error_of(factors: Tensor | None) -> float:
        if factors is None:
            return float((quantized_output(scheme, group_size, rows, wide) - exact).norm()) / norm
        return float((quantized_output(scheme, group_size, rows / factors, wide * factors) - exact).norm()) / norm

    best = Choice(None, None, error_of(None))
    if not may_smooth:
        return best
    factors_at = _factors(scheme, seen, weight)
    for candidate in _ALPHAS[scheme] if alpha is None else [alpha]:
        factors = factors_at(candidate)
        found = Choice(candidate, factors, error_of(factors))
        if found.error < best.error or alpha is not None:
            best = found
    return best


def _factors(scheme: str, seen: Activations, weight: Tensor) -> Callable[[float], Tensor]:
    """Return the scheme's rule from an exponent to factors, scaled around 1."""
    largest_weight = weight.abs().amax(0).float().clamp_(min=_SMALLEST)
    base = seen.size.clamp(min=_SMALLEST)

    def at(alpha: float) -> Tensor:
        raw = base**alpha if scheme == "w4a16" else base**alpha / largest_weight ** (1 - alpha)
        raw = raw.clamp_(min=_SMALLEST)
        return raw / torch.sqrt(raw.amax() * raw.amin())

    return at
