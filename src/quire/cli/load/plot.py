"""`draw`: one figure of a run: how latencies are spread, and what happened when."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from quire.cli.load.measure import Measured
from quire.cli.load.settings import LoadConfig
from quire.cli.load.summary import LATENCIES, samples_ms
from quire.core.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {"ttft_ms": "#1f6f8b", "itl_ms": "#3a8f5c", "e2e_ms": "#8a5a9e"}
_LIMITS = {"ttft_ms": "slo_ttft_ms", "itl_ms": "slo_itl_ms", "e2e_ms": "slo_e2e_ms"}
_OF = {"ttft_ms": "", "itl_ms": " of a request's mean", "e2e_ms": ""}
_ALARM, _DIM, _GRID = "#b3402a", "#6b7276", "#e3e0d8"
_BEHIND = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
_MAX_BINS = 120


def draw(path: Path, measured: Measured, config: LoadConfig, result: dict[str, Any]) -> None:
    """Write a PNG.

    Args:
        path: Where to.
        measured: The run.
        config: Its settings.
        result: Its summary.

    Raises:
        ConfigError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError('plot: expected matplotlib, got none. Install it: pip install "quire[bench]".') from None
    figure = Figure(figsize=(11, 7), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplot_mosaic([["ttft_ms", "itl_ms", "e2e_ms"], ["latency"] * 3, ["rate"] * 3],
                                 height_ratios=(1.25, 1, 0.8))  # fmt: skip
    values = samples_ms(measured.records)
    for name in _COLOURS:
        _draw_spread(axes[name], name, values[name], result[name], getattr(config, _LIMITS[name]))
    _draw_latency(axes["latency"], measured, config)
    _draw_rate(axes["rate"], measured, result)
    axes["latency"].sharex(axes["rate"])
    figure.suptitle(_title(config, measured, result), fontsize=12, x=0.01, ha="left")
    try:
        figure.savefig(path)
    except OSError as error:
        raise ConfigError(f"plot: expected a file that can be written, got {str(path)!r}: {error.strerror}.") from None


def _title(config: LoadConfig, measured: Measured, result: dict[str, Any]) -> str:
    return (
        f"{measured.model}: {len(measured.records)} requests at {config.rate:g}/s ({config.arrivals}), "
        f"{result['output_tokens_per_s']:,.0f} tokens/s, {result['good_share']:.0%} good, "
        f"{result['num_rejected']} rejected, {sum(result['errors'].values())} failed"
    )


def _plain(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10, loc="left", color=_DIM)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5)


def _draw_spread(
    axes: Axes, name: str, values: list[float], marks: dict[str, float] | None, limit: float | None
) -> None:
    """Draw which share of values is below which, with percentiles and the limit."""
    _plain(axes, f"{LATENCIES[name]}, ms")
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    if marks is None:
        axes.text(0.5, 0.5, "no values", transform=axes.transAxes, ha="center", color=_DIM)
        return
    ordered = sorted(values)
    shares = [(i + 1) / len(ordered) for i in range(len(ordered))]
    axes.step(ordered, shares, where="post", color=_COLOURS[name], linewidth=1.8)
    for word, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
        axes.plot(marks[word], share, "o", color=_COLOURS[name], markersize=4.5)
        axes.annotate(f"{word} {marks[word]:,.4g}", (marks[word], share), xytext=(7, -11),
                      textcoords="offset points", fontsize=8.5, bbox=_BEHIND)  # fmt: skip
    if ordered[-1] > 20 * max(marks["p50"], 1e-3):
        axes.set_xscale("log")
    if limit is not None:
        axes.axvline(limit, color=_ALARM, linewidth=1, linestyle="--", label=f"limit {limit:g}{_OF[name]}")
        axes.legend(frameon=False, fontsize=8.5, loc="lower right")
    axes.margins(x=0.16)


def _draw_latency(axes: Axes, measured: Measured, config: LoadConfig) -> None:
    """Draw each request where it was due: first and last token, or that it failed."""
    _plain(axes, "each request, s after it was due")
    fine = [record for record in measured.records if record.error is None and record.first_s is not None]
    due = [record.planned.due_s for record in fine]
    last = [record.last_s - at for record, at in zip(fine, due, strict=True)]
    first = [(record.first_s or 0.0) - at for record, at in zip(fine, due, strict=True)]
    axes.vlines(due, first, last, color=_GRID, linewidth=1)
    axes.scatter(due, last, s=9, color=_COLOURS["e2e_ms"], label="last token", linewidths=0)
    axes.scatter(due, first, s=9, color=_COLOURS["ttft_ms"], label="first token", linewidths=0)
    failed = [record.planned.due_s for record in measured.records if record.error is not None]
    if failed:
        axes.scatter(failed, [0.0] * len(failed), marker="x", s=18, color=_ALARM, label="rejected or failed")
    if config.slo_ttft_ms is not None:
        axes.axhline(config.slo_ttft_ms / 1e3, color=_ALARM, linewidth=1, linestyle="--", label="limit of the first")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8.5, loc="lower right", bbox_to_anchor=(1, 0.97), ncols=4)


def _draw_rate(axes: Axes, measured: Measured, result: dict[str, Any]) -> None:
    """Draw tokens per second over time: a request's tokens are spread evenly over the time in which they came."""
    _plain(axes, "output tokens per second, and requests in flight (right)")
    seconds = result["duration_s"]
    width = seconds / min(_MAX_BINS, max(1, round(seconds / 0.25)))
    bins = [0.0] * (int(seconds / width) + 1)
    flight = [0] * len(bins)
    for record in measured.records:
        for i in range(int(record.sent_s / width), min(len(bins), int(record.end_s / width) + 1)):
            flight[i] += 1
        _spread(record.first_s, record.last_s, record.num_output_tokens, bins, width)
    times = [i * width for i in range(len(bins))]
    axes.fill_between(times, [count / width for count in bins], step="post", color=_COLOURS["itl_ms"], alpha=0.35,
                      linewidth=0)  # fmt: skip
    right = axes.twinx()
    right.step(times, flight, where="post", color=_DIM, linewidth=1)
    right.set_ylim(bottom=0)
    right.spines["top"].set_visible(False)
    right.tick_params(labelsize=8.5)
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, seconds)
    axes.set_xlabel("seconds", fontsize=9)


def _spread(first_s: float | None, last_s: float, count: int, bins: list[float], width: float) -> None:
    if first_s is None:
        return
    low, high = int(first_s / width), min(len(bins) - 1, int(last_s / width))
    for i in range(low, high + 1):
        bins[i] += count / (high - low + 1)
