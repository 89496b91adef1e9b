"""`quire build MODEL -o DIRECTORY`: bind a model into an engine directory, and say what was done to it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quire.cli.options import MODEL, add_fields, read_fields, require, table
from quire.core.config import BuildConfig
from quire.core.progress import OnProgress

if TYPE_CHECKING:  # both import torch, which `--help` can do without
    from quire.plan.plan import Plan
    from quire.plan.tactics import DeviceTactics


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument(
        "-o", "--output", metavar="DIRECTORY", help="engine directory to write; may be left out to tune an engine"
    )
    parser.add_argument(
        "--tune", action="store_true", help="time the tactics of every op on this device, and keep the fastest"
    )
    parser.add_argument(
        "--copy-weights",
        action="store_true",
        help="write weights that nothing changed, too, instead of referring to the model's files",
    )
    add_fields(parser, BuildConfig)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Build, save and summarise."""
    from quire.builder.open import open_plan
    from quire.builder.report.page import draw_page
    from quire.core.progress import stages
    from quire.plan.engine_directory import is_engine_directory

    if options.output is None:
        _tune_in_place(options)
        return
    output = Path(options.output)
    is_free = not output.exists() or (output.is_dir() and (not any(output.iterdir()) or is_engine_directory(output)))
    require(is_free, "--output", "a new, empty or engine directory", options.output)
    start = time.perf_counter()
    with stages() as on_progress:
        plan = open_plan(options.model, read_fields(BuildConfig, options), on_progress)
        measured = _tuned(plan, on_progress) if options.tune else ()
    plan = replace(plan, tactics=measured, draw_page=draw_page) if measured else plan
    plan.save(output, copy_weights=options.copy_weights)
    print(table([*_summary(plan.report), *_tactics(measured)]))
    print(f"\nBuilt in {time.perf_counter() - start:.1f} s. Run it: quire generate {output} PROMPT")


def _tune_in_place(options: argparse.Namespace) -> None:
    """Measure the tactics of an engine on this device, and write them beside it."""
    from quire.core.progress import stages
    from quire.plan.engine_directory import is_engine_directory
    from quire.plan.plan import Plan
    from quire.plan.tactics import write_tactics

    root = Path(options.model)
    is_engine = is_engine_directory(root)
    require(is_engine and options.tune, "--output", "a directory, or an engine as MODEL with --tune", None)
    with stages() as on_progress:
        measured = _tuned(Plan.load(root), on_progress)
    paths = [write_tactics(root, tactics) for tactics in measured]
    print(table(_tactics(measured)))
    print(f"\nWrote {paths[0]}.")


def _tuned(plan: Plan, on_progress: OnProgress) -> tuple[DeviceTactics, ...]:
    from quire.builder.tactics import tune
    from quire.plan.device import device_kind

    return (tune(plan.network, device_kind("auto"), partial(on_progress, "Tuning")),)


def _tactics(measured: tuple[DeviceTactics, ...]) -> list[tuple[str, str]]:
    """Return what tuning found: for how many kinds of call, and where the default lost by how much."""
    rows = []
    for tactics in measured:
        rows.append(("tuned", f"{len(tactics.records)} kinds of call on {tactics.device}"))
        for record in tactics.records:
            default, best = next(iter(record.times_us.values())), record.times_us[record.chosen]
            gain = prod(a / b for a, b in zip(default, best, strict=True)) ** (1 / len(best))
            if gain > 1:
                rows.append((f"  {record.call.partition('(')[0]}", f"{record.chosen}, {gain:.2f} times as fast"))
    return rows


def _summary(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what the passes did and what quantization cost, a line each."""
    rows = [(record["pass"], _matches(record)) for record in report["passes"]]
    if "quantization" in report:
        accuracy = report["quantization"]["accuracy"]
        rows += [
            ("quantized", f"{len(report['quantization']['layers'])} linear layers"),
            ("KL divergence", f"{accuracy['kl']:.2g} nats a token (at most {report['quantization']['max_kl']:g})"),
            ("top-1 agreement", f"{accuracy['top1_agreement']:.2%}"),
            ("perplexity", f"{accuracy['exact_perplexity']:.4g} before, {accuracy['perplexity']:.4g} after"),
        ]
    return rows


def _matches(record: Mapping[str, Any]) -> str:
    missed = len(record["missed"])
    return f"{record['matches']} matches" + (f", {missed} missed" if missed else "")
