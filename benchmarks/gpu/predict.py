"""How far the roofline of `quire simulate` is from what GPUs did: its predictions beside rows of results.csv.

    python -m benchmarks.gpu.predict [--no-save] [--only decode.8b.bf16.ms_per_token ...]

Needs no GPU. The loads are those of benchmarks/gpu/run.py; what was measured is the latest row of each name and device.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.gpu.shapes import SHAPES
from benchmarks.record import RESULTS, record
from quire.builder.estimate import estimate_quantized
from quire.builder.open import open_plan
from quire.cli.simulate.cluster import cluster_of
from quire.core.config import BuildConfig, EngineConfig
from quire.plan.plan import Plan
from quire.simulation.cluster import simulate
from quire.simulation.load import PlannedRequest
from quire.simulation.settings import SimulationConfig

DEVICES = {"H200": "NVIDIA H200", "H100": "NVIDIA H100 80GB HBM3"}
Load = Sequence[PlannedRequest]
_BUILD = BuildConfig(load_format="dummy")
_ONE = EngineConfig(max_model_len=16384, max_num_batched_tokens=8192, enable_prefix_caching=False)
_MANY = replace(_ONE, max_model_len=4096, max_num_seqs=512, gpu_memory_utilization=0.92)
_OFFLINE = {(128, 128): 2048, (128, 2048): 512, (1000, 1000): 512, (2048, 128): 512}


class Predictor:
    """Says what a device would take for the measurements of benchmarks/gpu/run.py.

    Args:
        hardware: Name of the device, as for `quire simulate`.
    """

    def __init__(self, hardware: str) -> None:
        self._settings = SimulationConfig(hardware=hardware)

    def decode_ms(self, shape: str) -> float:
        """Return the milliseconds of a token of one request, by what 128 more of them take."""
        plan = plan_of(shape)
        long, short = (self._seconds(plan, _ONE, [PlannedRequest(0.0, 128, count)]) for count in (129, 1))
        return (long - short) / 128 * 1e3

    def prefill_ms(self) -> float:
        """Return the milliseconds of a prompt of 8,192 tokens."""
        return 1e3 * self._seconds(plan_of("8b"), _ONE, [PlannedRequest(0.0, 8192, 1)])

    def mixed(self) -> float:
        """Return the tokens per second of 256 requests of 100 to 1,024 tokens in and out."""
        rng = random.Random(0)
        prompts, outputs = ([rng.randint(100, 1024) for _ in range(256)] for _ in range(2))
        load = [PlannedRequest(0.0, *lengths) for lengths in zip(prompts, outputs, strict=True)]
        return sum(outputs) / self._seconds(plan_of("8b"), _ONE, load)

    def offline(self, num_in: int, num_out: int) -> float:
        """Return the tokens per second of many requests in fp8."""
        count = _OFFLINE[num_in, num_out]
        load = [PlannedRequest(0.0, num_in, num_out)] * count
        return count * num_out / self._seconds(plan_of("8b", is_fp8=True), _MANY, load)

    def _seconds(self, plan: Plan, config: EngineConfig, load: Load) -> float:
        return simulate(cluster_of(plan, config, self._settings), load).end_s


def plan_of(shape: str, *, is_fp8: bool = False) -> Plan:
    """Return the plan of a shape with dummy weights, in eight bits by shapes alone if asked for."""
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "config.json").write_text(json.dumps(SHAPES[shape]), encoding="utf-8")
        plan = open_plan(scratch, _BUILD)
    quantized = replace(_BUILD, quantization="fp8", kv_cache_dtype="fp8")
    return (estimate_quantized(plan, quantized) or plan) if is_fp8 else plan


def measurements(predictor: Predictor) -> dict[str, Callable[[], float]]:
    """Return what can be predicted, by the names of rows without "gpu."."""
    found: dict[str, Callable[[], float]] = {
        "decode.8b.bf16.ms_per_token": lambda: predictor.decode_ms("8b"),
        "decode.1b.bf16.ms_per_token": lambda: predictor.decode_ms("1b"),
        "prefill.8b.bf16.ms": predictor.prefill_ms,
        "mixed.8b.bf16.output_tokens_s": predictor.mixed,
    }
    for lengths in _OFFLINE:
        name = f"offline.8b.fp8.{lengths[0]}/{lengths[1]}.output_tokens_s"
        found[name] = lambda lengths=lengths: predictor.offline(*lengths)  # type: ignore[misc]
    return found


def measured(device: str) -> dict[str, float]:
    """Return the latest value of each name that was recorded on a device."""
    with RESULTS.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["device"] == DEVICES[device]]
    return {row["name"].removeprefix("gpu."): float(row["p50"]) for row in rows}


def main() -> None:
    """Predict what was measured, and record by how many percent that is off."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", nargs="*", choices=DEVICES, default=list(DEVICES))
    parser.add_argument("--only", nargs="*", help="names of rows, without gpu.")
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args()
    for device in options.device:
        known, predictions = measured(device), measurements(Predictor(device))
        for name in options.only or [name for name in predictions if name in known]:
            said = predictions[name]()
            print(f"{device} {name}: measured {known[name]:,.4g}, predicted {said:,.4g}", flush=True)
            record(f"simulation.gpu.{device}.{name}.error", "%", [100 * (said / known[name] - 1)],
                   save=not options.no_save)  # fmt: skip


if __name__ == "__main__":
    main()
