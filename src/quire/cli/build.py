"""`quire build MODEL -o DIRECTORY`: bind a model into an engine directory, and say what was done to it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quire.cli.model import MODEL
from quire.cli.options import add_fields, read_fields, require, table
from quire.core.config import BuildConfig


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument("-o", "--output", required=True, metavar="DIRECTORY", help="engine directory to write")
    add_fields(parser, BuildConfig)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Build, save and summarise."""
    from quire.builder.build import open_plan
    from quire.core.progress import stages
    from quire.plan.engine_directory import is_engine_directory

    output = Path(options.output)
    is_free = not output.exists() or (output.is_dir() and (not any(output.iterdir()) or is_engine_directory(output)))
    require(is_free, "--output", "a new, empty or engine directory", options.output)
    start = time.perf_counter()
    with stages() as on_progress:
        plan = open_plan(options.model, read_fields(BuildConfig, options), on_progress)
        plan.save(output)
    print(table(_summary(plan.report)))
    print(f"\nBuilt in {time.perf_counter() - start:.1f} s. Run it: quire generate {output} PROMPT")


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
