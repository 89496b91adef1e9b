"""`tune`: time the tactics of every kind of call on this device, so that each runs by the fastest.

One tactic serves all numbers of rows: which of two with different bits runs must not depend on how many requests there
are. It is the one with the smallest geometric mean over the numbers of rows that were timed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from quire.graph.network import Network
from quire.graph.nodes import op_of, spec
from quire.ops.op import Tactic
from quire.plan.device import this_device
from quire.plan.folding import constant_nodes
from quire.plan.tactics import DeviceTactics, TacticRecord, candidates, describe
from quire.quantization.step import kv_cache, step_inputs

ROWS = (1, 16, 256)
"""Decoding one sequence, decoding several, a prompt."""

_ROUNDS = 5
_ROUND_S = 0.002


@torch.inference_mode()
def tune(network: Network, kind: str = "cpu", on_progress: Callable[[int, int], None] | None = None) -> DeviceTactics:
    """Measure a network's tactics on a device; calls with one tactic are not timed. Reads no weights.

    Args:
        network: Of a plan.
        kind: Kind of device.
        on_progress: Called with calls done so far, and their number.
    """
    constants = constant_nodes(network)
    steps = [step_inputs(network, [range(rows)]) for rows in ROWS]
    calls = {describe(node): node for node in network.calls() if node not in constants}
    found = {call: candidates(node, constants, kind) for call, node in calls.items()}
    several = [call for call, tactics in found.items() if len(tactics) > 1]
    records = []
    for done, call in enumerate(several):
        times = _times(calls[call], constants, found[call], steps)
        best = min(times, key=lambda name: math.prod(times[name]))
        records.append(TacticRecord(call, best, times))
        if on_progress is not None:
            on_progress(done + 1, len(several))
    return DeviceTactics(this_device(kind), ROWS, tuple(records))


def _times(
    node: fx.Node, constants: set[fx.Node], tactics: Sequence[Tactic], steps: Sequence[Mapping[fx.Node, Any]]
) -> dict[str, tuple[float, ...]]:
    """Return the microseconds of each tactic, one for each number of rows."""
    fixed = {name: _made_up(v, {}, 0) for name, v in node.kwargs.items() if isinstance(v, fx.Node) and v in constants}
    columns = []
    for inputs, rows in zip(steps, ROWS, strict=True):
        given = {
            name: fixed[name] if name in fixed else _made_up(value, inputs, rows) for name, value in node.kwargs.items()
        }
        columns.append(_race({tactic.name: _bound(node, tactic, given) for tactic in tactics}))
    return {tactic.name: tuple(round(column[tactic.name], 2) for column in columns) for tactic in tactics}


def _bound(node: fx.Node, tactic: Tactic, given: Mapping[str, Any]) -> Callable[[], object]:
    """Return a call of a tactic, its constants packed and its step prepared."""
    arguments = dict(given)
    more = {} if tactic.prepare is None else {"prepared": tactic.prepare(**given)}
    if tactic.pack is not None:
        packed = tactic.pack(*(given[name] for name in tactic.pack_args))
        arguments.update({**dict.fromkeys(tactic.pack_args), tactic.pack_args[0]: packed})
    ordered = [arguments[name] for name in op_of(node).signature.parameters]
    return lambda: tactic.run(*ordered, **more)


def _race(runs: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Return each one's microseconds: the best of several rounds, taken in turns, so that noise strikes all alike."""
    counts = {}
    for name, run in runs.items():
        run()  # the first run proves row counts, and warms up
        counts[name] = max(1, min(200, int(_ROUND_S / max(_seconds(run, 1), 1e-7))))
    best = dict.fromkeys(runs, math.inf)
    for _ in range(_ROUNDS):
        for name, run in runs.items():
            best[name] = min(best[name], _seconds(run, counts[name]))
    return {name: seconds * 1e6 for name, seconds in best.items()}


def _seconds(run: Callable[[], object], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        run()
    return (time.perf_counter() - start) / count


def _made_up(value: Any, inputs: Mapping[fx.Node, Any], rows: int) -> Any:
    """Return an argument for a step: its inputs as they are, all else seeded noise of the declared shape."""
    if isinstance(value, (list, tuple)):
        return [_made_up(item, inputs, rows) for item in value]
    if not isinstance(value, fx.Node):
        return value
    if value in inputs:
        return inputs[value]
    if value.op == "placeholder":
        return kv_cache(value, inputs)
    declared = spec(value)
    shape = [size if isinstance(size, int) else rows for size in declared.shape]
    generator = torch.Generator().manual_seed(len(shape))
    if declared.dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(declared.dtype)
    return torch.randint(0, 16, shape, generator=generator).to(declared.dtype)
