"""`fit`: the factors of a calibration from steps that were timed, by non-negative least squares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from quire.plan.device import Device
from quire.simulation.timing.calibration import Calibration
from quire.simulation.timing.costs import NetworkCosts, StepShape
from quire.simulation.timing.hardware import Efficiency, Hardware
from quire.simulation.timing.pace import Roofline, neighbours

UNIT = Efficiency(
    products=1, reading=1, attention=1, cache_reading=1, narrow_cache=1, call_s=0, step_s=0, row_s=0, request_s=0
)
"""A roof that was measured is reached by definition; what is not is in the factors."""

_OUTLIER = 4.0  # medians of absolute errors: beyond, another process had the processor
_PRIOR = 0.03  # of the weight of a step: that a factor is as usual
_HOST = -3  # the last three unknowns are the host's, and no factors
_ROUNDS = 3000  # of coordinate descent; some 30 unknowns settle within a few hundred


class TimedStep(NamedTuple):
    """A step that was executed.

    Attributes:
        shape: What it computed.
        seconds: From the end of the step before, or from when it was asked for.
    """

    shape: StepShape
    seconds: float


class Roof(NamedTuple):
    """What a device reaches.

    Attributes:
        read_bytes_per_s: Reading memory.
        flops: A product of square matrices, operations per second.
    """

    read_bytes_per_s: float
    flops: float


def measured_hardware(kind: str, roof: Roof, memory_bytes: int = 0) -> Hardware:
    """Return a device that is known by its roof alone."""
    flops = {"bfloat16": roof.flops}
    return Hardware("here", kind, memory_bytes, roof.read_bytes_per_s, flops, "shared-memory", UNIT, "measured here")


def fit(
    steps: Sequence[TimedStep], costs: NetworkCosts, roof: Roof, device: Device, model: str, knots: Sequence[int]
) -> Calibration:
    """Return the factors that explain the times of steps best.

    Errors count relative to the time of their step. Steps that are far off after a first fit are left out.

    Args:
        steps: What was timed.
        costs: Of the network that was executed.
        roof: Of the device.
        device: Where.
        model: What the calibration is for, in words.
        knots: Numbers of rows that get a factor of their own, ascending.
    """
    roofline = Roofline(measured_hardware(device.kind, roof))
    seconds = np.array([step.seconds for step in steps])
    features = np.array([_features(step.shape, costs, roofline, knots) for step in steps]) / seconds[:, None]
    usual = float(np.median(1 / features[:, :_HOST].sum(axis=1)))
    found = _non_negative(features, usual)
    errors = np.abs(features @ found - 1)
    kept = errors <= _OUTLIER * max(float(np.median(errors)), 1e-3)
    found = _non_negative(features[kept], usual)
    error = float(np.abs(features[kept] @ found - 1).mean())
    *factors, decode, prefill, step_s, row_s, request_s = (float(factor) for factor in found)
    return Calibration(
        device=device,
        model=model,
        read_bytes_per_s=roof.read_bytes_per_s,
        flops=roof.flops,
        rows=tuple(knots),
        factors=tuple(factors),
        decode_factor=decode,
        prefill_factor=prefill,
        step_s=step_s,
        row_s=row_s,
        request_s=request_s,
        num_steps=len(steps),
        error=error,
    )


def _features(shape: StepShape, costs: NetworkCosts, roofline: Roofline, knots: Sequence[int]) -> list[float]:
    """Return the seconds by the roof of each unknown: calls by knot, two kinds of attention, three of the host."""
    found = [0.0] * (len(knots) + 5)
    for cost in costs.calls:
        rows = getattr(shape, cost.rows)
        for knot, share in neighbours(knots, rows) if rows else ():
            found[knot] += share * cost.count * roofline.call_s(cost, rows)
    for each in costs.attention:
        attended = shape.attended[each.window]
        found[_HOST - 2] += each.count * roofline.decode_s(each, attended)
        found[_HOST - 1] += each.count * roofline.prefill_s(each, attended, shape.num_tokens)
    found[_HOST:] = [1.0, float(shape.num_rows), float(shape.num_new)]
    return found


def _non_negative(features: np.ndarray, usual: float) -> np.ndarray:
    """Return the non-negative least squares solution for ones, by descent along one unknown after the other.

    Each factor is drawn to what is usual, weakly: it decides where steps tell nothing of a factor, or too little to
    tell it from another.
    """
    prior = np.eye(features.shape[1])[:_HOST] * (_PRIOR / usual)
    rows, wanted = np.vstack([features, prior]), np.append(np.ones(len(features)), np.full(len(prior), _PRIOR))
    scale = np.linalg.norm(rows, axis=0)
    scaled = rows / scale
    gram, target = scaled.T @ scaled, scaled.T @ wanted
    found = np.zeros(len(target))
    for _ in range(_ROUNDS):
        for i in range(len(target)):
            found[i] = max(0.0, found[i] + target[i] - gram[i] @ found)
    return np.asarray(found / scale, dtype=np.float64)
