"""`StepTimes`: seconds of a step on every stage of a replica."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from quire.simulation.timing.costs import NetworkCosts, StepShape
from quire.simulation.timing.exchanges import Exchanges
from quire.simulation.timing.pace import Pace


class StepSeconds(NamedTuple):
    """What a step takes.

    Attributes:
        host: The host's part.
        stages: The devices' part, by stage of the pipeline, what is sent on to the next one included.
    """

    host: float
    stages: tuple[float, ...]


class Stage(NamedTuple):
    """One stage of a pipeline, by one of its ranks: they all do the same.

    Attributes:
        costs: Of the rank's network.
        exchanges: What it takes to exchange tensors; None for one rank alone.
    """

    costs: NetworkCosts
    exchanges: Exchanges | None = None


class StepTimes:
    """Answers how long a step takes; what depends on numbers of tokens alone is computed once.

    Args:
        stages: Of a pipeline, or one.
        pace: How fast a device is.

    Attributes:
        windows: Of the model, for `step_shape`.
        is_ahead: Whether the host prepares a step while the device computes the one before.
        num_stages: How many there are.
    """

    def __init__(self, stages: Sequence[Stage], pace: Pace) -> None:
        self.windows = tuple(dict.fromkeys(window for stage in stages for window in stage.costs.windows))
        self.is_ahead = pace.is_ahead
        self.num_stages = len(stages)
        self._stages = stages
        self._pace = pace
        self._fixed: dict[tuple[int, int], tuple[float, ...]] = {}

    def of(self, shape: StepShape) -> StepSeconds:
        """Return the seconds of a step."""
        key = (shape.num_tokens, shape.num_logits)
        fixed = self._fixed.get(key)
        if fixed is None:
            fixed = self._fixed[key] = tuple(self._fixed_s(stage, shape) for stage in self._stages)
        attention = (self._attention_s(stage.costs, shape) for stage in self._stages)
        return StepSeconds(
            self._pace.host_s(shape.num_rows, shape.num_new), tuple(map(sum, zip(fixed, attention, strict=True)))
        )

    def _fixed_s(self, stage: Stage, shape: StepShape) -> float:
        """Return what does not depend on how long sequences are."""
        rows = {"num_tokens": shape.num_tokens, "num_logits": shape.num_logits}
        seconds = sum(cost.count * self._pace.call_s(cost, rows[cost.rows]) for cost in stage.costs.calls)
        return seconds + (stage.exchanges.seconds(**rows) if stage.exchanges is not None else 0.0)

    def _attention_s(self, costs: NetworkCosts, shape: StepShape) -> float:
        return sum(
            cost.count * self._pace.attention_s(cost, shape.attended[cost.window], shape.num_tokens)
            for cost in costs.attention
        )
