"""`quire simulate MODEL`: what a load would do on devices that need not be there; or measure those that are."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from quire.cli.options import add_fields, add_model, read_fields, require
from quire.core.config import BuildConfig, EngineConfig
from quire.simulation.load import PlannedRequest, SyntheticLoad, plan_load, share_prefixes
from quire.simulation.settings import SimulationConfig

if TYPE_CHECKING:
    from quire.plan.plan import Plan
    from quire.simulation.cluster import Cluster
    from quire.simulation.timing.calibration import Calibration

_BYTES_PER_TOKEN = 4  # of English text, where a model has no tokenizer to count with


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_model(parser)
    add_fields(parser, SyntheticLoad, skip=("seed",))
    add_fields(parser, SimulationConfig)
    parser.add_argument(
        "--measure", metavar="FILE", help="run the model here, time steps of many shapes, write FILE, and end"
    )
    parser.add_argument("--measure-s", type=float, default=60.0, metavar="X", help="seconds it takes (default: 60)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Simulate and print, or measure.

    Raises:
        ConfigError: A setting is wrong or contradicts the model.
        CapacityError: The model does not fit the devices.
        PlanError: The calibration is damaged.
    """
    from quire.builder.open import open_plan
    from quire.cli.simulate.cluster import cluster_of, measure_here

    build, engine = read_fields(BuildConfig, options), read_fields(EngineConfig, options)
    if options.measure:
        require(options.measure_s > 0, "--measure-s", "more than 0", options.measure_s)
        _report(measure_here(open_plan(options.model, build), engine, options.measure_s), Path(options.measure))
        return
    settings, load = read_fields(SimulationConfig, options), read_fields(SyntheticLoad, options)
    plan = _estimated(options.model, build)
    cluster = cluster_of(plan, engine, settings)
    _simulate(plan, cluster, _requests(plan, cluster, load, settings), settings, options.json)


def _estimated(model: str, build: BuildConfig) -> Plan:
    """Return a model's plan, quantized by shapes alone: nothing is calibrated, no weight is read."""
    from quire.builder.estimate import estimate_quantized
    from quire.builder.open import open_plan

    plain = open_plan(model, replace(build, quantization=None, kv_cache_dtype="auto"))
    return estimate_quantized(plain, build) or plain


def _requests(plan: Plan, cluster: Cluster, load: SyntheticLoad, settings: SimulationConfig) -> list[PlannedRequest]:
    """Return the requests of the trace, or of the synthetic load."""
    from quire.simulation.trace import read_trace

    if settings.trace is None:
        planned = plan_load(load, cluster.config.max_model_len)
        return share_prefixes(planned, settings.num_prefixes, settings.prefix_len, load.seed)
    return read_trace(Path(settings.trace), load, _Counter(plan))


class _Counter:
    """Counts tokens with the model's tokenizer, which is loaded for the first text; without one, by bytes."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._is_loaded = False

    def __call__(self, text: str) -> int:
        """Return how many tokens a text has."""
        if not self._is_loaded:
            from quire.engine.model_text import load_model_text

            has_words = any(name.startswith(("tokenizer", "vocab")) for name in self._plan.small_files)
            words = load_model_text(self._plan.directory, (), skip_tokenizer_init=not has_words)
            self._tokenizer, self._is_loaded = words.tokenizer, True
        if self._tokenizer is None:
            return -(-len(text.encode()) // _BYTES_PER_TOKEN)
        return len(self._tokenizer.encode(text))


def _simulate(
    plan: Plan, cluster: Cluster, requests: list[PlannedRequest], settings: SimulationConfig, is_json: bool
) -> None:
    from quire.simulation.cluster import simulate
    from quire.simulation.summary import summarize

    result = summarize(simulate(cluster, requests), cluster, settings.price_per_hour)
    if is_json:
        described = {"model": plan.source, "settings": msgspec.to_builtins(settings)}
        print(msgspec.json.encode({**described, **result}).decode())
    else:
        _show(f"{plan.source} on {cluster.num_replicas} x {cluster.num_devices} {settings.hardware}, predicted", result)


def _show(title: str, result: dict[str, Any]) -> None:
    from quire.cli.terminal import Printer
    from quire.simulation.summary import LATENCIES

    printer, cost = Printer(), result["cost"]
    each, hits = f"{result['tokens_per_s_per_device']:,.1f}", f"{result['prefix_hit_share']:.1%}"
    rows = [
        ("requests", f"{result['num_done']:,} of {result['num_requests']:,}", "refused", f"{result['num_refused']:,}"),
        ("seconds", f"{result['duration_s']:,.2f}", "requests/s", f"{result['requests_per_s']:,.2f}"),
        ("tokens/s", f"{result['output_tokens_per_s']:,.1f}", "a device", each),
        ("prompt tokens/s", f"{result['prompt_tokens_per_s']:,.1f}", "prefix hits", hits),
        ("steps", f"{result['num_steps']:,}", "preemptions", f"{result['num_preemptions']:,}"),
        ("busy", f"{result['busy_share']:.1%}", "bubble", f"{result['bubble_share']:.1%}"),
        ("device hours", f"{cost['device_hours']:,.3f}", "price", f"{cost['price']:,.2f}" if "price" in cost else ""),
        ("per million tokens", f"{cost.get('device_hours_per_million_tokens', 0):,.3f} h", "price",
         f"{cost['price_per_million_tokens']:,.2f}" if "price_per_million_tokens" in cost else ""),
    ]  # fmt: skip
    printer.table(title, ("what", "value", "more", "value"), rows, numeric=(1,))
    shown = [
        (words, *(f"{marks[key]:,.2f}" for key in ("p50", "p90", "p99", "mean")))
        for name, words in LATENCIES.items() if (marks := result[name]) is not None
    ]  # fmt: skip
    printer.table("Latency, ms", ("what", "p50", "p90", "p99", "mean"), shown, numeric=(1, 2, 3, 4))


def _report(calibration: Calibration, path: Path) -> None:
    """Write a calibration, and say how well it explains what was measured."""
    from quire.simulation.timing.calibration import write_calibration

    write_calibration(path, calibration)
    print(f"{path}: {calibration.num_steps} steps on {calibration.device}, explained within {calibration.error:.1%}")
