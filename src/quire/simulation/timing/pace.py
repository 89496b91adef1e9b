"""How long calls take: by a roofline of a named device, or by one that was measured here."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Protocol

from quire.simulation.timing.calibration import Calibration
from quire.simulation.timing.costs import Attended, AttentionCost, CallCost
from quire.simulation.timing.hardware import Efficiency, Hardware


class Pace(Protocol):
    """Seconds of calls on one device, and of its host.

    Attributes:
        is_ahead: Whether the host prepares a step while the device computes the one before.
    """

    @property
    def is_ahead(self) -> bool:
        """Whether the host prepares a step while the device computes the one before."""
        ...

    def call_s(self, cost: CallCost, rows: int) -> float:
        """Return the seconds of one call with `rows` rows."""
        ...

    def attention_s(self, cost: AttentionCost, attended: Attended, num_tokens: int) -> float:
        """Return the seconds of one layer's attention."""
        ...

    def host_s(self, num_rows: int, num_new: int) -> float:
        """Return the seconds that the host takes for a step of rows, some of them new."""
        ...


class Roofline:
    """A call takes as long as its operations or its bytes, whichever takes longer, at the share that is reached.

    Williams, Waterman, Patterson 2009, https://doi.org/10.1145/1498765.1498785.

    Args:
        hardware: The device.
    """

    def __init__(self, hardware: Hardware) -> None:
        self._device = hardware
        self._efficiency: Efficiency = hardware.efficiency
        self.is_ahead = hardware.kind == "cuda"

    def call_s(self, cost: CallCost, rows: int) -> float:
        """Return the seconds of one call with `rows` rows; none without rows."""
        if rows == 0:
            return 0.0
        reached = self._efficiency
        computing = cost.flops * rows / (self._device.peak(cost.arithmetic) * reached.products)
        reading = cost.num_bytes(rows) / (self._device.read_bytes_per_s * reached.reading)
        return _together(computing, reading) + reached.call_s

    def attention_s(self, cost: AttentionCost, attended: Attended, num_tokens: int) -> float:
        """Return the seconds of one layer's attention: rows with one token by what they read, prompts by products."""
        return self.decode_s(cost, attended) + self.prefill_s(cost, attended, num_tokens) + self._efficiency.call_s

    def decode_s(self, cost: AttentionCost, attended: Attended) -> float:
        """Return the part of rows with one token."""
        keys, share = attended.decode_keys, self._narrow_share(cost)
        reading = cost.key_bytes * keys / (self._device.read_bytes_per_s * self._efficiency.cache_reading)
        return _together(self._computing_s(cost, keys), reading) / share

    def prefill_s(self, cost: AttentionCost, attended: Attended, num_tokens: int) -> float:
        """Return the part of rows with more than one token."""
        moved = cost.key_bytes * attended.prefill_keys + cost.query_bytes * num_tokens
        reading = moved / (self._device.read_bytes_per_s * self._efficiency.reading)
        return _together(self._computing_s(cost, attended.prefill_pairs), reading) / self._narrow_share(cost)

    def _computing_s(self, cost: AttentionCost, pairs: int) -> float:
        return cost.pair_flops * pairs / (self._device.peak(cost.arithmetic) * self._efficiency.attention)

    def _narrow_share(self, cost: AttentionCost) -> float:
        return self._efficiency.narrow_cache if cost.is_narrow else 1.0

    def host_s(self, num_rows: int, num_new: int) -> float:
        """Return the seconds that the host takes for a step of rows, some of them new."""
        reached = self._efficiency
        return reached.step_s + reached.row_s * num_rows + reached.request_s * num_new


def _together(computing_s: float, reading_s: float) -> float:
    """Return the time of work that overlaps: near the ridge neither hides the other wholly (a norm of power 3)."""
    return float((computing_s**3 + reading_s**3) ** (1 / 3))


class Calibrated:
    """A roofline corrected by what steps took here: a factor by kind of work, and for calls by their number of rows.

    Args:
        roofline: Of the roof that was measured with the calibration.
        calibration: The factors.
    """

    is_ahead = False  # what was timed is the time between two results, the host's part in it

    def __init__(self, roofline: Roofline, calibration: Calibration) -> None:
        self._roofline = roofline
        self._calibration = calibration

    def call_s(self, cost: CallCost, rows: int) -> float:
        """Return the seconds of one call with `rows` rows; none without rows."""
        if rows == 0:
            return 0.0
        knots, factors = self._calibration.rows, self._calibration.factors
        factor = sum(share * factors[knot] for knot, share in neighbours(knots, rows))
        return factor * self._roofline.call_s(cost, rows)

    def attention_s(self, cost: AttentionCost, attended: Attended, num_tokens: int) -> float:
        """Return the seconds of one layer's attention."""
        decode, prefill = self._roofline.decode_s(cost, attended), self._roofline.prefill_s(cost, attended, num_tokens)
        return self._calibration.decode_factor * decode + self._calibration.prefill_factor * prefill

    def host_s(self, num_rows: int, num_new: int) -> float:
        """Return the seconds that the host takes for a step of rows, some of them new."""
        found = self._calibration
        return found.step_s + found.row_s * num_rows + found.request_s * num_new


def neighbours(knots: Sequence[int], rows: int) -> tuple[tuple[int, float], ...]:
    """Return the knots around a number of rows and their shares, linear in its logarithm; beyond the ends, the end."""
    above = bisect_right(knots, rows)
    if above == 0:
        return ((0, 1.0),)
    if above == len(knots):
        return ((above - 1, 1.0),)
    low, high = knots[above - 1], knots[above]
    share = math.log(rows / low) / math.log(high / low)
    return ((above - 1, 1.0 - share), (above, share))
