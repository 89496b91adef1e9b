"""Where the time of steps goes: kernels by their share, and how much of it the GPU has nothing to do."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


def profiled(run: Any, timeline: Path | None = None) -> dict[str, Any]:
    """Run under torch's profiler.

    Args:
        run: What to do.
        timeline: Where to write a trace for https://ui.perfetto.dev, if anywhere.

    Returns:
        `idle_share`: of the time between the first and the last kernel, what no kernel or copy ran in; `kernels`: the
        ten that took longest, in milliseconds.
    """
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        run()
        torch.cuda.synchronize()
    if timeline is not None:
        found.export_chrome_trace(str(timeline))
    spans, kernels = [], Counter[str]()
    for event in found.events() or ():
        if event.device_type == DeviceType.CUDA:
            spans.append((event.time_range.start, event.time_range.end))
            kernels[event.name[:48]] += event.time_range.end - event.time_range.start
    return {"idle_share": _idle_share(spans), "kernels": {name: us / 1e3 for name, us in kernels.most_common(10)}}


def _idle_share(spans: list[tuple[float, float]]) -> float:
    """Return the part of the time from the first start to the last end that no span covers."""
    spans.sort()
    if not spans:
        return 1.0
    busy, until = 0.0, spans[0][0]
    for start, end in spans:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return 1 - busy / (until - spans[0][0])
