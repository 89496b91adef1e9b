"""`StepTimes`: seconds of a step on every stage of a replica, and between stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from quire.simulation.timing.costs import NetworkCosts, StepShape
from quire.simulation.timing.pace import Pace


class StepSeconds(NamedTuple):
    """What a step takes.

    Attributes:
        host: The host's part.
        stages: The devices' part, by stage of the pipeline, tensors sent on to the next one included.
    """

    host: float
    stages: tuple[float, ...]


class StepTimes:
    """Answers how long a step takes; what depends on numbers of tokens alone is computed once.

    Args:
        stages: What the network of each stage costs a device.
        pace: How fast a device is.

    Attributes:
        windows: Of the model, for `step_shape`.
        is_ahead: Whether the host prepares a step while the device computes the one before.
    """

    def __init__(self, stages: Sequence[NetworkCosts], pace: Pace) -> None:
        self.windows = tuple(dict.fromkeys(window for stage in stages for window in stage.windows))
        self.is_ahead = pace.is_ahead
        self._stages = stages
        self._pace = pace
        self._calls: dict[tuple[int, int], tuple[float, ...]] = {}

    def of(self, shape: StepShape) -> StepSeconds:
        """Return the seconds of a step."""
        key = (shape.num_tokens, shape.num_logits)
        calls = self._calls.get(key)
        if calls is None:
            calls = self._calls[key] = tuple(self._calls_s(stage, shape) for stage in self._stages)
        attention = (self._attention_s(stage, shape) for stage in self._stages)
        return StepSeconds(self._pace.host_s(shape.num_rows), tuple(map(sum, zip(calls, attention, strict=True))))

    def _calls_s(self, stage: NetworkCosts, shape: StepShape) -> float:
        rows = {"num_tokens": shape.num_tokens, "num_logits": shape.num_logits}
        return sum(cost.count * self._pace.call_s(cost, rows[cost.rows]) for cost in stage.calls)

    def _attention_s(self, stage: NetworkCosts, shape: StepShape) -> float:
        return sum(
            cost.count * self._pace.attention_s(cost, shape.attended[cost.window], shape.num_tokens)
            for cost in stage.attention
        )
