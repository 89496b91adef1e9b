"""`tune`: time the tactics of every kind of call on this device, so that each runs by the fastest.

One tactic serves all numbers of rows: which of two with different bits runs must not depend on how many requests there
are. It is the one with the smallest geometric mean over the numbers of rows that were timed. Those that do not keep a
row's bits are timed, too; whether they may run is said when a plan is loaded.
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
from quire.plan.device import this_device, torch_device
from quire.plan.folding import constant_nodes
from quire.plan.tactics import DeviceTactics, TacticRecord, contenders, describe, fastest
from quire.quantization.step import kv_cache, step_inputs

ROWS = {"cpu": (1, 16, 256), "cuda": (1, 64, 512, 4096)}
"""By kind of device: decoding one sequence, decoding several, prompts."""

_ROUNDS = 5
_ROUND_S = 0.002
_SECONDS = Callable[[Callable[[], object], int], float]


@torch.inference_mode()
def tune(network: Network, kind: str = "cpu", on_progress: Callable[[int, int], None] | None = None) -> DeviceTactics:
    """Measure a network's tactics on a device; calls with one tactic are not timed. Reads no weights.

    Args:
        network: Of a plan.
        kind: Kind of device.
        on_progress: Called with calls done so far, and their number.
    """
    constants, device = constant_nodes(network), torch_device(kind)
    steps = [
        {node: value.to(device) for node, value in step_inputs(network, [range(rows)]).items()} for rows in ROWS[kind]
    ]
    calls = {describe(node): node for node in network.calls() if node not in constants}
    found = {call: contenders(node, constants, kind) for call, node in calls.items()}
    several = [call for call, tactics in found.items() if len(tactics) > 1]
    records = []
    for done, call in enumerate(several):
        times = _times(calls[call], constants, found[call], steps, kind)
        kept = {tactic.name: times[tactic.name] for tactic in found[call] if tactic.keeps_bits}
        records.append(TacticRecord(call, fastest(kept or times), times))
        if on_progress is not None:
            on_progress(done + 1, len(several))
    return DeviceTactics(this_device(kind), ROWS[kind], tuple(records))


def _times(
    node: fx.Node, constants: set[fx.Node], tactics: Sequence[Tactic], steps: Sequence[Mapping[fx.Node, Any]], kind: str
) -> dict[str, tuple[float, ...]]:
    """Return the microseconds of each tactic, one for each number of rows."""
    device, seconds = torch_device(kind), _device_seconds if kind == "cuda" else _seconds
    fixed = {
        name: _made_up(value, {}, 0, device)
        for name, value in node.kwargs.items()
        if isinstance(value, fx.Node) and value in constants
    }
    columns = []
    for inputs, rows in zip(steps, ROWS[kind], strict=True):
        given = {
            name: fixed[name] if name in fixed else _made_up(value, inputs, rows, device)
            for name, value in node.kwargs.items()
        }
        columns.append(_race({tactic.name: _bound(node, tactic, given) for tactic in tactics}, seconds))
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


def _race(runs: Mapping[str, Callable[[], object]], seconds: _SECONDS) -> dict[str, float]:
    """Return each one's microseconds: the best of several rounds, taken in turns, so that noise strikes all alike."""
    counts = {}
    for name, run in runs.items():
        run()  # the first run proves row counts, and warms up
        counts[name] = max(1, min(200, int(_ROUND_S / max(seconds(run, 1), 1e-7))))
    best = dict.fromkeys(runs, math.inf)
    for _ in range(_ROUNDS):
        for name, run in runs.items():
            best[name] = min(best[name], seconds(run, counts[name]))
    return {name: each * 1e6 for name, each in best.items()}


def _device_seconds(run: Callable[[], object], count: int) -> float:
    """Return what a run takes a GPU, as one of many in a captured graph: launching is not what decides there."""
    graph, start, end = torch.cuda.CUDAGraph(), *(torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    with torch.cuda.graph(graph):
        for _ in range(count):
            run()
    graph.replay()
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / count


def _seconds(run: Callable[[], object], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        run()
    return (time.perf_counter() - start) / count


def _made_up(value: Any, inputs: Mapping[fx.Node, Any], rows: int, device: torch.device) -> Any:
    """Return an argument for a step: its inputs as they are, all else seeded noise of the declared shape."""
    if isinstance(value, (list, tuple)):
        return [_made_up(item, inputs, rows, device) for item in value]
    if not isinstance(value, fx.Node):
        return value
    if value in inputs:
        return inputs[value]
    if value.op == "placeholder":
        return kv_cache(value, inputs).to(device)
    declared = spec(value)
    shape = [size if isinstance(size, int) else rows for size in declared.shape]
    generator = torch.Generator(device).manual_seed(len(shape))
    if declared.dtype.is_floating_point:
        return torch.randn(shape, generator=generator, device=device).to(declared.dtype)
    return torch.randint(0, 16, shape, generator=generator, device=device).to(declared.dtype)
