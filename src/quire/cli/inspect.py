"""`quire inspect MODEL [OTHER]`: what a build did, cost and holds; with OTHER, how two builds differ."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from quire.cli.options import MODEL, add_fields, read_fields, require
from quire.core.config import BuildConfig
from quire.core.errors import ConfigError

if TYPE_CHECKING:
    from quire.cli.terminal import Printer

_NUM_WORST = 5
_TOTALS = {"weights": "all weights", "kv_cache_per_token": "KV cache of a token"}
_NUMBERS = ("num_layers", "hidden_size", "intermediate_size", "vocab_size", "max_position_embeddings")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("model", metavar="MODEL", help=f"{MODEL}; what is not built is built in memory")
    parser.add_argument("other", metavar="OTHER", nargs="?", help="another one, to compare with")
    parser.add_argument("--html", metavar="FILE", help="write the build report as a page")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--graph", action="store_true", help="print the network, too; of two, what differs")
    add_fields(parser, BuildConfig)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Summarise or compare, and print."""
    from quire.cli.terminal import Printer

    require(not (options.html and options.other), "--html", "one MODEL", f"{options.model} {options.other}")
    summaries = _summaries(options)
    if options.html:
        _write_page(options.html, summaries[0])
    if options.json:
        print(msgspec.json.encode(_record(summaries, options.graph)).decode())
    elif options.other:
        _print_comparison(Printer(), summaries[0], summaries[1], options.graph)
    else:
        _print_summary(Printer(), summaries[0], options.graph)


def _summaries(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Open what is named; build settings are for what is not built yet."""
    from quire.builder.open import open_plan
    from quire.builder.report.summary import summarize
    from quire.core.progress import stages
    from quire.plan.engine_directory import is_engine_directory

    settings, names = read_fields(BuildConfig, options), [options.model, *filter(None, [options.other])]
    built = [is_engine_directory(Path(name)) for name in names]
    with stages() as on_progress:
        return [
            summarize(open_plan(name, BuildConfig() if is_built and not all(built) else settings, on_progress))
            for name, is_built in zip(names, built, strict=True)
        ]


def _write_page(file: str, facts: Mapping[str, Any]) -> None:
    from quire.builder.report.page import render_html

    try:
        Path(file).write_text(render_html(facts, facts["name"]), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--html: expected a file that can be written, got {file!r}: {error.strerror}.") from None
    print(f"Wrote {file}", file=sys.stderr)


def _record(summaries: list[dict[str, Any]], has_graph: bool) -> dict[str, Any]:
    from quire.builder.report.comparison import compare

    if len(summaries) == 2:
        graph = {"graph": _graph_difference(*summaries)} if has_graph else {}
        return {**compare(*summaries), **graph}
    return {key: value for key, value in summaries[0].items() if has_graph or key != "network"}


def _print_summary(out: Printer, facts: Mapping[str, Any], has_graph: bool) -> None:
    from quire.builder.report.figures import verdict

    found = verdict(facts)
    out.line(f"{facts['name']}: {_model(facts['model'])}")
    out.line(_schemes(facts["schemes"]))
    out.title(found.headline)
    out.line(found.plain)
    for section in (_accuracy, _layers, _bytes, _passes, _tactics, _ops):
        section(out, facts)
    if has_graph:
        out.title("Network")
        print(facts["network"]["after"])


def _model(model: Mapping[str, Any]) -> str:
    numbers = [f"{name} {model[name]:,}" for name in _NUMBERS if name in model]
    return ", ".join([str(model["architecture"]), str(model["dtype"]), *numbers])


def _schemes(schemes: Mapping[str, int]) -> str:
    from quire.builder.report.words import plural

    return ", ".join(f"{plural(count, 'linear layer')} in {name}" for name, count in schemes.items())


def _accuracy(out: Printer, facts: Mapping[str, Any]) -> None:
    from quire.builder.report.figures import figures

    if "quantization" in facts:
        out.table("Accuracy", ["figure", "value"], [[f.name, f.value] for f in figures(facts["quantization"])])


def _layers(out: Printer, facts: Mapping[str, Any]) -> None:
    from quire.builder.report.figures import worst_layers
    from quire.builder.report.words import by_reason, compress, percent

    quantization = facts.get("quantization")
    if quantization is None:
        return
    worst = worst_layers(quantization)[:_NUM_WORST]
    out.table("Layers with the largest errors", ["layer", "scheme", "error"],
              [[name, record["scheme"], percent(record["error"])] for name, record in worst], numeric=(2,))  # fmt: skip
    skipped = by_reason(quantization["skipped"])
    out.table("Layers that stay as they are", ["layers", "why"], [["\n".join(compress(n)), why] for why, n in skipped])


def _bytes(out: Printer, facts: Mapping[str, Any]) -> None:
    from quire.builder.report.sections import kept_text
    from quire.builder.report.words import num_bytes, percent

    sizes = facts["bytes"]
    rows = [[part["part"], part["dtype"], f"{part['tensors']:,}", num_bytes(part["bytes"])] for part in sizes["parts"]]
    rows.append(["all", "", f"{sum(part['tensors'] for part in sizes['parts']):,}", num_bytes(sizes["weights"])])
    out.table("Weights", ["part", "dtype", "tensors", "bytes"], rows, numeric=(2, 3))
    if sizes.get("defined") not in (None, sizes["weights"]):
        out.line(f"{percent(sizes['weights'] / sizes['defined'], 0)} of the {num_bytes(sizes['defined'])} as defined")
    out.line(f"kept: {kept_text(sizes['kept'])}")
    out.line(f"KV cache: {num_bytes(sizes['kv_cache_per_token'])} a token")


def _passes(out: Printer, facts: Mapping[str, Any]) -> None:
    from quire.builder.report.words import by_reason, compress

    def missed(record: Mapping[str, Any]) -> str:
        reasons = by_reason(record["missed"])
        return "\n".join(f"{len(names):,}: {reason} ({', '.join(compress(names))})" for reason, names in reasons)

    rows = [[record["pass"], f"{record['matches']:,}", missed(record)] for record in facts.get("passes", ())]
    out.table("Passes", ["pass", "matches", "missed"], rows, numeric=(1,))


def _tactics(out: Printer, facts: Mapping[str, Any]) -> None:
    from quire.builder.report.timings import timings

    found = timings(facts)
    for device in dict.fromkeys(timing.device for timing in found):
        rows = [
            [t.op, t.arguments, "\n".join(f"{name}: {_times(times)}" for name, times in t.times_us) or t.chosen,
             "" if t.speedup is None else f"{t.speedup:.1f} x"]
            for t in found if t.device == device
        ]  # fmt: skip
        counts = ", ".join(str(count) for count in next(t.rows for t in found if t.device == device))
        title = "Tactics" + (f" on {device}" if device else "") + (f", times for {counts} rows" if counts else "")
        out.table(
            title, ["op", "arguments", "times in us, the one in use first", "over the slowest"], rows, numeric=(3,)
        )


def _times(times: list[float]) -> str:
    return ", ".join(f"{time:,.1f}" for time in times)


def _ops(out: Printer, facts: Mapping[str, Any]) -> None:
    rows = [[op, f"{count:,}"] for op, count in facts["ops"].items()]
    out.table("Calls in a step", ["op", "calls"], rows, numeric=(1,))


def _graph_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    before, after = (facts["network"]["after"].splitlines() for facts in (one, other))
    return "\n".join(difflib.unified_diff(before, after, one["name"], other["name"], lineterm="", n=1))


def _print_comparison(out: Printer, one: Mapping[str, Any], other: Mapping[str, Any], has_graph: bool) -> None:
    from quire.builder.report.comparison import compare
    from quire.builder.report.words import compact, num_bytes, number

    found = compare(one, other)
    names = [f"{name} ({i})" if one["name"] == other["name"] else name for i, name in enumerate(found["names"], 1)]
    shown: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
        ("Model", "model", compact),
        ("Settings", "settings", compact),
        ("Accuracy", "accuracy", lambda value: number(value, 4)),
        ("Bytes", "bytes", num_bytes),
        ("Passes", "passes", lambda made: f"{made['matches']:,} matches, {made['missed']:,} missed"),
        ("Schemes of linear layers", "layers", str),
        ("Calls in a step", "ops", str),
    )
    for title, key, words in shown:
        rows = _grouped({name: ["-" if value is None else words(value) for value in pair]
                         for name, pair in found[key].items()})  # fmt: skip
        out.table(title, [key, *names], rows, numeric=(1, 2) if key in ("bytes", "accuracy", "ops") else ())
    same = [title.lower() for title, key, _ in shown if not found[key] and key != "accuracy"]
    if same:
        out.title(f"The same: {', '.join(same)}")
    if has_graph:
        out.title("Networks")
        print(_graph_difference(one, other) or "the same")


def _grouped(rows: Mapping[str, list[str]]) -> list[list[str]]:
    """Return rows with names that differ in their number alone, and whose values are equal, as one."""
    from quire.builder.report.words import compress

    groups: dict[tuple[str, ...], list[str]] = {}
    for name, values in rows.items():
        groups.setdefault(tuple(values), []).append(name)
    return [[_TOTALS.get(name, name), *values] for values, names in groups.items() for name in compress(names)]
