"""The command: options, run, and what is printed."""

from __future__ import annotations

import argparse
from typing import Any

import msgspec

from quire.cli.load.settings import LoadConfig
from quire.cli.options import add_fields, read_fields


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("base_url", metavar="URL", help="of an OpenAI-compatible server: http://127.0.0.1:8000")
    add_fields(parser, LoadConfig)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--plot", metavar="FILE", help="write a PNG; needs matplotlib")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Put the load on the server; returns 1 if no request went well.

    Raises:
        ConfigError: An option is wrong, or the server is not there.
    """
    import asyncio
    from pathlib import Path

    from quire.cli.load.measure import measure
    from quire.cli.load.summary import doubts, summarize

    config = read_fields(LoadConfig, options)
    measured = asyncio.run(measure(options.base_url, config))
    result = summarize(measured, config, options.base_url)
    if options.json:
        print(msgspec.json.encode(result).decode())
    else:
        _show(result, doubts(result))
    if options.plot:
        from quire.cli.load.plot import draw

        draw(Path(options.plot), measured, config, result)
    return 0 if result["num_ok"] else 1


def _show(result: dict[str, Any], doubted: list[str]) -> None:
    from quire.cli.load.summary import LATENCIES, REJECTION
    from quire.cli.terminal import Printer

    printer, settings = Printer(), result["settings"]
    failed = ", ".join(f"{count} {kind}" for kind, count in result["errors"].items()) or "none"
    prompt, answer = (f"{result[f'mean_{name}_tokens']:.0f} tokens" for name in ("prompt", "output"))
    rows = [
        ("requests", f"{result['num_ok']} of {result['num_requests']}", "429", str(result["num_rejected"])),
        ("seconds", f"{result['duration_s']:.2f}", "failed", failed),
        ("requests/s", f"{result['requests_per_s']:.2f}", "mean prompt", prompt),
        ("tokens/s", f"{result['output_tokens_per_s']:,.0f}", "mean answer", answer),
        ("good/s", f"{result['good_requests_per_s']:.2f}", "good", f"{result['good_share']:.1%}"),
    ]
    title = f"{settings['model']} at {result['base_url']}: {settings['rate']:g} requests/s, {settings['arrivals']}"
    printer.table(title, ("what", "value", "more", "value"), rows, numeric=(1,))
    shown = [
        (f"{words} ({name.removesuffix('_ms')})", *(f"{marks[key]:,.1f}" for key in ("p50", "p90", "p99", "mean")))
        for name, words in {**LATENCIES, REJECTION: "refused (429)"}.items() if (marks := result[name]) is not None
    ]  # fmt: skip
    printer.table("Latency, ms", ("what", "p50", "p90", "p99", "mean"), shown, numeric=(1, 2, 3, 4))
    for words in doubted:
        printer.line(f"Doubtful: {words}.")
