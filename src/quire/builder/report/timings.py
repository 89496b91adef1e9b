"""Tactics that were measured, as a reader wants them: by device, with the times of all that could have been chosen."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quire.builder.report.words import compact, is_number, short_spec
from quire.plan.plan import Plan

_SMALLEST_US = 0.001
_TENSOR = re.compile(r"(\w+)=(\w+\[[^\[\]]*\])")


@dataclass(frozen=True, slots=True)
class Timing:
    """One call, and how long each tactic took for it.

    Attributes:
        device: Where it was measured, "" if the report does not say.
        op: Its op.
        arguments: Shapes and dtypes.
        chosen: Name of the tactic that is used.
        rows: Numbers of rows that were timed; empty if there is one time a tactic.
        times_us: Microseconds for each of `rows`, by tactic; the chosen one first, then the fastest.
    """

    device: str
    op: str
    arguments: str
    chosen: str
    rows: tuple[int, ...]
    times_us: list[tuple[str, list[float]]]

    @property
    def speedup(self) -> float | None:
        """How many times faster the chosen one is than the slowest, by their geometric means."""
        means = {name: geometric_mean(times) for name, times in self.times_us}
        mine = means.get(self.chosen)
        return max(means.values()) / mine if mine and len(means) > 1 else None


def geometric_mean(times: Sequence[float]) -> float:
    """Return what tactics are compared by: it counts a factor alike for few rows and for many."""
    return math.exp(sum(math.log(max(time, _SMALLEST_US)) for time in times) / len(times)) if times else 0.0


def measured_tactics(plan: Plan) -> list[dict[str, Any]]:
    """Return what was measured for a plan, on all devices, as plain JSON values."""
    return [
        {"device": str(tactics.device), "call": record.call, "chosen": record.chosen, "rows": list(tactics.rows),
         "times_us": {name: list(times) for name, times in record.times_us.items()}}
        for tactics in plan.tactics for record in tactics.records
    ]  # fmt: skip


def timings(facts: Mapping[str, Any]) -> list[Timing]:
    """Return the tactics of a summary or of a bare build report, in order."""
    return [_timing(record) for record in facts.get("tactics") or ()]


def _timing(record: Mapping[str, Any]) -> Timing:
    if "call" in record:
        op, _, inside = record["call"].partition("(")
        arguments = ", ".join(f"{name} {short_spec(spec)}" for name, spec in _TENSOR.findall(inside)) or inside[:-1]
    else:
        op, arguments = record["op"], f"{compact(record['shapes'])}; {compact(record['dtypes'])}"
    times = {name: _numbers(value) for name, value in record["times_us"].items()}
    ordered = sorted(times.items(), key=lambda pair: (pair[0] != record["chosen"], geometric_mean(pair[1])))
    return Timing(record.get("device", ""), op, arguments, record["chosen"], tuple(record.get("rows", ())), ordered)


def _numbers(value: float | Sequence[float]) -> list[float]:
    values = value if isinstance(value, Sequence) else [value]
    return [float(item) for item in values if is_number(item)]
