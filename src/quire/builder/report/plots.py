"""The page's plots, drawn by hand: bars, dots on a logarithmic axis, lines over depth, and one stacked bar."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from quire.builder.report.markup import Html, join, svg, tag
from quire.builder.report.words import is_number, num_bytes, number, percent

WIDTH = 1040
NUM_COLOURS = 8
"""Classes `s0` to `s7` of the style sheet colour series and parts."""

_LETTER = 6.7
_ALPHA = "\N{GREEK SMALL LETTER ALPHA}"
_SMALLEST = 1e-8
_QUANTILES = {
    "0.5": "half of the tokens below",
    "0.9": "nine in ten below",
    "0.99": "99 in 100 below",
    "1": "the worst token",
}


def _text(x: float, y: float, words: object, class_: str = "", anchor: str = "start") -> Html:
    return tag("text", words, x=float(x), y=float(y), class_=class_ or None, text_anchor=anchor)


def _line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Html:
    return tag("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=class_)


class _LogAxis:
    """Positions on a logarithmic axis of whole decades."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        logs = [math.log10(max(value, _SMALLEST)) for value in values]
        self.low, self.high = math.floor(min(logs)), max(math.ceil(max(logs)), math.floor(min(logs)) + 1)
        self._start, self._end = start, end

    def at(self, value: float) -> float:
        """Return where a value lies."""
        share = (math.log10(max(value, _SMALLEST)) - self.low) / (self.high - self.low)
        return self._start + (self._end - self._start) * min(max(share, 0.0), 1.0)

    def decades(self) -> list[tuple[float, str]]:
        """Return position and label of each decade."""
        return [(self.at(10.0**power), f"1e{power}" if power < -4 else f"{10.0**power:g}")
                for power in range(self.low, self.high + 1)]  # fmt: skip


def kl_plot(accuracy: Mapping[str, Any], max_kl: Any) -> Html:
    """Draw how KL divergence is spread over tokens, with its mean and the limit that the mean is held to."""
    dots = [(words, accuracy["kl_quantiles"].get(key)) for key, words in _QUANTILES.items()]
    rows = [(words, max(float(value), 0.0)) for words, value in dots if is_number(value)]
    means = (("mean", accuracy["kl"], "mean"), ("limit of the mean", max_kl, "limit"))
    marks = [(name, float(value), style) for name, value, style in means if is_number(value)]
    left, top, step = 190, 34, 30
    bottom = top + step * len(rows)
    axis = _LogAxis([value for _, value in rows] + [value for _, value, _ in marks] or [1.0], left, WIDTH - 110)
    parts = []
    for x, label in axis.decades():
        parts += [_line(x, top - 8, x, bottom, "grid"), _text(x, bottom + 16, label, "tick", "middle")]
    for name, value, style in marks:
        x = axis.at(value)
        parts += [
            _line(x, top - 14, x, bottom, style),
            _text(x, top - 20, f"{name} {number(value, 2)}", style, "middle"),
        ]
    for i, (words, value) in enumerate(rows):
        y, x = top + step * i + step / 2, axis.at(value)
        parts += [_text(left - 12, y + 4, words, anchor="end"), _text(x + 12, y + 4, number(value, 2), "value")]
        parts += [_line(left, y, x, y, "stem"), tag("circle", cx=x, cy=y, r="5.5", class_="dot")]
    parts.append(
        _text((left + WIDTH - 110) / 2, bottom + 34, "KL(exact ‖ quantized) of a token, nats", "tick", "middle")
    )
    return svg(WIDTH, bottom + 42, *parts, label="Quantiles of the KL divergence of a token")


def error_bars(layers: Sequence[tuple[str, Mapping[str, Any]]], largest: float, num_worst: int) -> Html:
    """Draw the error of each layer as a bar, the first `num_worst` marked.

    Args:
        layers: Names and records, largest error first.
        largest: Error of a full bar.
        num_worst: How many to mark.
    """
    step, left = 19, min(400.0, _LETTER * max((len(name) for name, _ in layers), default=0) + 14)
    full = WIDTH - left - 190
    parts = []
    for i, (name, record) in enumerate(layers):
        y, error = step * i, float(record["error"] or 0.0)
        length = max(1.5, full * error / largest) if largest > 0 else 1.5
        style = "bar worst" if i < num_worst else "bar"
        most = int(left / _LETTER) - 2
        shown = name if len(name) <= most else "…" + name[-most + 1 :]
        note = [tag("tspan", percent(error), class_="value"), tag("tspan", _smoothing(record), class_="note", dx="8")]
        parts.append(
            tag("g", tag("title", f"{name}: {percent(error, 3)}"), _text(left - 10, y + 13, shown, "mono", "end"),
                tag("rect", x=left, y=float(y + 4), width=length, height="11", rx="2", class_=style),
                _text(left + length + 8, y + 13, join(*note, tag("tspan", "◀ worst", class_="mark", dx="8")
                                                      if i < num_worst else "")))
        )  # fmt: skip
    return svg(WIDTH, step * len(layers) + 2, *parts, label="Relative error of the output of each layer")


def _smoothing(record: Mapping[str, Any]) -> str:
    words = [f"{_ALPHA} {record['alpha']:.2g}"] if is_number(record.get("alpha")) else []
    words += ["clipped"] if record.get("shares") else []
    return ", ".join(words) or "not smoothed"


def depth_plot(series: Mapping[str, Mapping[int, float]]) -> Html:
    """Draw errors over depth, a line for each kind of layer, on a logarithmic axis.

    Args:
        series: Error by number of the layer, by kind.
    """
    values = [value for line in series.values() for value in line.values()]
    depths = sorted({depth for line in series.values() for depth in line})
    left, right, top, bottom = 64, WIDTH - 250, 12, 212
    axis = _LogAxis(values, bottom, top)
    across = (right - left - 24) / max(1, depths[-1] - depths[0])
    parts = []
    for y, label in axis.decades():
        parts += [
            _line(left, y, right, y, "grid"),
            _text(left - 8, y + 4, f"{100 * float(label):g} %", "tick", "end"),
        ]
    for depth in depths[:: max(1, len(depths) // 16)]:
        parts.append(_text(left + 12 + across * (depth - depths[0]), bottom + 18, depth, "tick", "middle"))
    for i, (name, line) in enumerate(series.items()):
        points = [(left + 12 + across * (depth - depths[0]), axis.at(line[depth])) for depth in sorted(line)]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        dots = [tag("circle", cx=x, cy=y, r="3.5") for x, y in points]
        y = top + 12 + 20 * i
        key = [_line(right + 22, y - 4, right + 44, y - 4, "key"), _text(right + 52, y, name, "mono")]
        parts.append(tag("g", tag("path", d=path), *dots, *key, class_=f"series s{i % NUM_COLOURS}"))
    parts.append(_text((left + right) / 2, bottom + 36, "number of the decoder layer", "tick", "middle"))
    return svg(WIDTH, bottom + 44, *parts, label="Relative error over depth")


def stacked_bars(bars: Sequence[tuple[str, Sequence[tuple[str, int, int]]]]) -> Html:
    """Draw one bar under the other, each of parts in colours, on one scale.

    Args:
        bars: What each is, and its parts: name, bytes, number of the colour; -1 is no colour.
    """
    left, step, full = 190, 46, WIDTH - 190 - 120
    most = max((sum(size for _, size, _ in parts) for _, parts in bars), default=0) or 1
    shown = []
    for i, (name, parts) in enumerate(bars):
        y, x = 4 + step * i, float(left)
        shown.append(_text(left - 12, y + 22, name, anchor="end"))
        for part, size, colour in parts:
            width = full * size / most
            style = "bar plain" if colour < 0 else f"part s{colour % NUM_COLOURS}"
            box = tag("rect", x=x, y=float(y), width=max(width, 0.6), height="34", class_=style)
            shown.append(tag("g", tag("title", f"{part}: {num_bytes(size)}"), box))
            x += width
        shown.append(_text(x + 10, y + 22, num_bytes(sum(size for _, size, _ in parts)), "value"))
    return svg(WIDTH, step * len(bars), *shown, label="Bytes of the weights by part")


def meter(share: float) -> Html:
    """Draw how much of a limit is used; 1 is all of it."""
    used = min(max(share, 0.0), 1.0)
    style = "good" if share <= 0.7 else "tight" if share <= 1 else "bad"
    track = tag("rect", width="220", height="10", rx="5", class_="track")
    bar = tag("rect", width=max(6.0, 220 * used), height="10", rx="5", class_=style)
    return svg(220, 10, track, bar, label=f"{percent(share, 0)} of the limit")


def time_bar(share: float, is_chosen: bool) -> Html:
    """Draw a small bar in a table; 1 is the longest."""
    bar = tag(
        "rect", width=max(2.0, 120 * share), height="9", rx="2", class_="bar chosen" if is_chosen else "bar plain"
    )
    return svg(120, 9, bar, label=percent(share, 0))
