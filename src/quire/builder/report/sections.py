"""The page's sections. Each takes the facts of a summary, or of a bare build report, and shows what is there."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from quire.builder.report.drawing import KINDS, draw
from quire.builder.report.figures import Figure, figures, num_worst, worst_layers
from quire.builder.report.listing import Line, first_layer, read_listing
from quire.builder.report.markup import Html, details, join, table, tag
from quire.builder.report.plots import NUM_COLOURS, depth_plot, error_bars, kl_plot, stacked_bars, time_bar
from quire.builder.report.timings import Timing, geometric_mean, timings
from quire.builder.report.words import by_reason, compact, compress, is_number, num_bytes, percent, plural

Facts = Mapping[str, Any]

_MOST_BARS = 32
_DEPTH = re.compile(r"(?<![A-Za-z0-9])(\d+)_(\w+)")


def accuracy_section(facts: Facts) -> Html | None:
    """Return what quantization cost."""
    quantization = facts.get("quantization")
    if quantization is None:
        return None
    return join(
        tag("p", "Exact and quantized model read the same text, and their predictions are compared token by token.",
            class_="lead"),
        table(["figure", "value", "what it means"], [_figure_row(figure) for figure in figures(quantization)]),
        tag("h3", "How the divergence is spread"),
        tag("figure", kl_plot(quantization["accuracy"], quantization["max_kl"]), style="margin:0"),
    )  # fmt: skip


def _figure_row(figure: Figure) -> list[object]:
    return [tag("b", figure.name), tag("span", figure.value, style="white-space:nowrap"), figure.meaning]


def layers_section(facts: Facts) -> Html | None:
    """Return the error of every quantized layer, and those that stayed as they were."""
    quantization = facts.get("quantization")
    if quantization is None:
        return None
    layers = worst_layers(quantization)
    skipped = [[tag("code", name), reason] for reason, names in by_reason(quantization["skipped"])
               for name in compress(names)]  # fmt: skip
    return join(
        _errors(layers) if layers else tag("p", "No linear layer was quantized here."),
        tag("h3", "Layers that stay as they are") if skipped else None,
        table(["layer", "why"], skipped) if skipped else None,
    )


def _errors(layers: Sequence[tuple[str, Facts]]) -> Html:
    largest, marked = layers[0][1]["error"] or 0.0, num_worst(list(layers))
    series = _over_depth(layers)
    return join(
        tag("p", "How far the output of a layer moves on calibration text, |quantized - exact| / |exact|, with what it "
            "gets from the layers before left exact. The number behind it is the exponent of smoothing that left "
            "the least error: the higher, the more range goes from activations into weights.", class_="lead"),
        tag("figure", error_bars(layers[:_MOST_BARS], largest, marked), style="margin:0"),
        details(f"{plural(len(layers) - _MOST_BARS, 'more layer')} with smaller errors",
                error_bars(layers[_MOST_BARS:], largest, 0)) if len(layers) > _MOST_BARS else None,
        tag("h3", "Over the depth of the model") if series else None,
        tag("figure", depth_plot(series), style="margin:0") if series else None,
    )  # fmt: skip


def _over_depth(layers: Sequence[tuple[str, Facts]]) -> dict[str, dict[int, float]]:
    """Return errors by kind of layer and depth; nothing where there are too few depths or too many kinds to draw."""
    series: dict[str, dict[int, float]] = defaultdict(dict)
    for name, record in layers:
        found = _DEPTH.search(name)
        if found and is_number(record["error"]) and record["error"] > 0:
            series[found[2]][int(found[1])] = record["error"]
    depths = {depth for line in series.values() for depth in line}
    return dict(series) if len(depths) > 1 and len(series) <= NUM_COLOURS else {}


def memory_section(facts: Facts) -> Html | None:
    """Return where the bytes are."""
    sizes = facts.get("bytes")
    if sizes is None:
        return None
    total, parts, per_token = sizes["weights"], sizes["parts"], sizes["kv_cache_per_token"]
    colours = {part["part"]: i for i, part in enumerate(parts)}
    bars = [("as built", [(part["part"], part["bytes"], colours[part["part"]]) for part in parts])]
    if sizes.get("defined") not in (None, total):
        bars.insert(0, ("as defined", [("all weights", sizes["defined"], -1)]))
    rows: list[list[object]] = [
        [join(tag("span", class_=f"swatch s{i % NUM_COLOURS}"), part["part"]), part["dtype"], f"{part['tensors']:,}",
         num_bytes(part["bytes"]), percent(part["bytes"] / total, 1) if total else ""]
        for i, part in enumerate(parts)
    ]  # fmt: skip
    return join(
        tag("figure", stacked_bars(bars), style="margin:0"),
        table(["weights", "dtype", "tensors", "bytes", "share"], rows, numeric=(2, 3, 4)),
        tag("p", f"The weights: {kept_text(sizes['kept'])}."),
        tag("p", f"A token in the KV cache takes {num_bytes(per_token)} over all layers: 1 GiB holds "
            f"{2**30 // per_token:,} tokens.") if per_token else None,
    )  # fmt: skip


def kept_text(kept: Mapping[str, Any]) -> str:
    """Return where the weights are, in words."""
    own, referenced, files = kept["own"], kept["referenced"], [PurePath(file).name for file in kept["files"]]
    where = files[0] if len(files) == 1 else f"{files[0]} and {plural(len(files) - 1, 'more file')}" if files else ""
    made = f"{num_bytes(own)} {'in the engine directory' if kept['is_saved'] else 'made by the build'}"
    return ", ".join([made] * bool(own) + [f"{num_bytes(referenced)} as they are in {where}"] * bool(referenced))


def passes_section(facts: Facts) -> Html | None:
    """Return what each pass did and did not do."""
    if "passes" not in facts:
        return None
    rows: list[list[object]] = [[tag("code", record["pass"]), f"{record['matches']:,}", _places(record["done"]),
                                 _missed(record["missed"])] for record in facts["passes"]]  # fmt: skip
    left_out = facts.get("settings", {}).get("without_passes")
    return join(
        tag("p", "In the order in which they ran. A place missed is one that looked like a match and was none.",
            class_="lead"),
        table(["pass", "matches", "where", "missed"], rows, numeric=(1,)),
        tag("p", f"Left out on request: {', '.join(left_out)}.") if left_out else None,
    )  # fmt: skip


def _places(names: Sequence[str]) -> Html:
    return join(*(join(tag("code", name), tag("br")) for name in compress(names))) if names else _nothing()


def _nothing() -> Html:
    return tag("span", "—", class_="none")


def _missed(missed: Mapping[str, str]) -> Html:
    reasons = by_reason(dict(missed))
    shown = (
        tag("p", tag("span", f"{len(names):,}: {reason}", class_="missed"), tag("br"),
            *(join(tag("code", name), tag("br")) for name in compress(names)))
        for reason, names in reasons
    )  # fmt: skip
    return join(*shown) if reasons else _nothing()


def tactics_section(facts: Facts) -> Html | None:
    """Return which tactics were timed, and which are used, a table for each device."""
    found: dict[str, list[Timing]] = defaultdict(list)
    for timing in timings(facts):
        found[timing.device].append(timing)
    if not found:
        return None
    lead = "An op has several implementations. Those that fit were timed for these shapes; that with the "
    lead += "smallest geometric mean, which is the bar, is used. Times are in microseconds."
    return join(tag("p", lead, class_="lead"), *(_device(device, some) for device, some in found.items()))


def _device(device: str, found: Sequence[Timing]) -> Html:
    rows, header = (
        [_timing_row(timing) for timing in found],
        ["op", "arguments", "tactics, the one in use first", "over the slowest"],
    )
    return join(tag("h3", device) if device else None, table(header, rows, numeric=(3,)))


def _timing_row(timing: Timing) -> list[object]:
    longest = max((geometric_mean(times) for _, times in timing.times_us), default=0) or 1
    rows: list[list[object]] = [
        [tag("b", name) if name == timing.chosen else name, *(f"{time:,.1f}" for time in times),
         time_bar(geometric_mean(times) / longest, name == timing.chosen)]
        for name, times in timing.times_us
    ]  # fmt: skip
    columns = [plural(count, "row") for count in timing.rows] or [""] * max((len(row) - 2 for row in rows), default=0)
    inner = table(["", *columns, ""], rows, numeric=tuple(range(1, len(columns) + 1))) if rows else timing.chosen
    gain = "" if timing.speedup is None else f"{timing.speedup:.1f} x"
    return [tag("code", timing.op), tag("code", timing.arguments), inner, gain]


def network_section(facts: Facts) -> Html | None:
    """Return the network before and after: one layer drawn, all of it as text."""
    texts = facts.get("network")
    if not texts or "after" not in texts:
        return None
    before, after = read_listing(texts.get("before", "")), read_listing(texts["after"])
    shown = [("As defined", before, ()), ("As bound", after, before)]
    drawn = [_figure(name, lines, replaced) for name, lines, replaced in shown if lines]
    listings = [details(f"The whole network {name.lower()}, as text: {plural(len(lines), 'line')}", tag("pre", text))
                for (name, lines, _), text in zip(shown, (texts.get("before"), texts["after"]), strict=True)
                if text]  # fmt: skip
    return join(
        tag("p", "The first decoder layer. A box is an op call with the weight and the shape of its result; a thick "
            "border marks one that stands for several before, a dashed one what belongs to the neighbours, a dashed "
            "line what goes through the KV cache. Point at a box to read its line.", class_="lead"),
        _legend(),
        tag("div", *drawn, class_="graphs"),
        *listings,
    )  # fmt: skip


def _figure(name: str, lines: Sequence[Line], replaced: Sequence[Line]) -> Html:
    part = first_layer(lines)
    count = f"{plural(len(part.lines), 'call')} in the layer, {len(lines):,} in the network"
    caption = tag("figcaption", name, tag("span", count))
    return tag("figure", caption, draw(part, replaced, f"The first layer, {name.lower()}"))


def _legend() -> Html:
    return tag("div", *(tag("span", tag("span", class_=f"swatch {key}"), words) for key, words in KINDS.items()),
               class_="legend")  # fmt: skip


def settings_section(facts: Facts) -> Html | None:
    """Return the model's numbers and the settings of the build."""
    model, settings = facts.get("model"), facts.get("settings")
    if not model and not settings:
        return None
    tables = [
        tag("div", tag("h3", title), table(["name", "value"], [[tag("code", k), _value(v)] for k, v in found.items()]))
        for title, found in (("Build settings", settings), ("The model", model))
        if found
    ]
    return tag("div", *tables, class_="pair")


def _value(value: Any) -> str:
    """Return a setting in words."""
    return ("yes" if value else "no") if isinstance(value, bool) else compact(value) or "none"
