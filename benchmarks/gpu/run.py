"""Measure everything on one GPU, print a table, and write JSON.

    python -m benchmarks.gpu.run [--only decode prefill ...] [--engine vllm] [--output gpu.json] [--timeline trace.json]

Weights are dummies of the shapes of Llama-3.1-8B and Llama-3.2-1B. Rates stand beside a copy and a matrix product that
the same run measures. `--engine` drives another engine with the same `LLM` and `SamplingParams`; what only Quire has
(attention alone, loading an engine directory, non-deterministic tactics) is left out then.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import measure
from benchmarks.gpu.profile import profiled
from benchmarks.gpu.shapes import SHAPES, engine

# Output tokens per second that TensorRT-LLM's developers published for Llama-3.1-8B in FP8 on one H200.
OFFLINE = {(128, 128): 29526, (128, 2048): 26221, (1000, 1000): 17744, (2048, 128): 3794}
_REQUESTS = {(128, 128): 2048, (128, 2048): 512, (1000, 1000): 512, (2048, 128): 512}
PARTS = ("decode", "decode_1b", "prefill", "attention", "mixed", "offline", "load", "deterministic")


class Report:
    """What has been measured so far.

    Args:
        options: Of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.engine: str = options.engine
        self._output: Path = options.output
        self.found: dict[str, Any] = {
            "device": torch.cuda.get_device_name(),
            "engine": self.engine,
            "versions": {name: _version(name) for name in ("torch", "triton", self.engine)},
            "python": platform.python_version(),
            "cuda": torch.version.cuda,
            "date": time.strftime("%Y-%m-%d"),
        }

    def add(self, name: str, numbers: dict[str, Any]) -> None:
        """Keep, print and write some numbers."""
        self.found[name] = numbers
        shown = (f"{key} {value:,.4g}" for key, value in numbers.items() if isinstance(value, (int, float)))
        print(f"{name:28} {'  '.join(shown)}", flush=True)
        self._output.write_text(json.dumps(self.found, indent=1), encoding="utf-8")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return str(getattr(sys.modules.get(package), "__version__", "source"))


def eight_billion(report: Report, parts: list[str], timeline: Path | None) -> None:
    """Measure the 8B shape in bf16: one request, a prompt, many requests."""
    copy, product = (report.found["roof"][name] for name in ("copy_tb_s", "matmul_tflop_s"))
    options: dict[str, Any] = {"max_model_len": 16384, "max_num_batched_tokens": 8192, "enable_prefix_caching": False}
    with engine(report.engine, "8b", **options) as (llm, params):
        if "decode" in parts:
            report.add("decode.8b.bf16", measure.decode_one(llm, params, "8b", copy))
        if "prefill" in parts:
            report.add("prefill.8b.bf16", measure.prefill(llm, params, "8b", product))
        if "mixed" in parts:
            measure.mixed(llm, params, "8b", 8)
            report.add("mixed.8b.bf16", measure.mixed(llm, params, "8b"))
            report.add("mixed.8b.bf16.profile", profiled(lambda: measure.mixed(llm, params, "8b"), timeline))


def one_billion(report: Report) -> None:
    """Measure the 1B shape in bf16, one request."""
    with engine(report.engine, "1b", max_model_len=4096, enable_prefix_caching=False) as (llm, params):
        report.add("decode.1b.bf16", measure.decode_one(llm, params, "1b", report.found["roof"]["copy_tb_s"]))


def offline(report: Report, deterministic: bool = True) -> None:
    """Measure the published loads in fp8; without deterministic tactics only the first."""
    options: dict[str, Any] = {"max_model_len": 4096, "max_num_batched_tokens": 8192, "max_num_seqs": 512}
    options |= {"enable_prefix_caching": False, "gpu_memory_utilization": 0.92}
    if report.engine == "quire":
        options["deterministic"] = deterministic
    with engine(report.engine, "8b", fp8=True, **options) as (llm, params):
        # Once in vain: on a machine with an empty cache of kernels the first load has 2.5 s of compiling in it.
        measure.offline(llm, params, "8b", _REQUESTS[128, 128], 128, 128)
        for (length, output), published in list(OFFLINE.items())[: None if deterministic else 1]:
            count = _REQUESTS[length, output]
            numbers = measure.offline(llm, params, "8b", count, length, output)
            name = f"offline.8b.fp8.{length}/{output}" + ("" if deterministic else ".any_bits")
            report.add(name, {**numbers, "of_published": numbers["output_tokens_s"] / published})


def any_bits(report: Report) -> None:
    """Measure one request and many without the promise of equal bits."""
    copy = report.found["roof"]["copy_tb_s"]
    options: dict[str, Any] = {"max_model_len": 4096, "enable_prefix_caching": False, "deterministic": False}
    with engine(report.engine, "8b", **options) as (llm, params):
        report.add("decode.8b.bf16.any_bits", measure.decode_one(llm, params, "8b", copy))
    offline(report, deterministic=False)


def load(report: Report) -> None:
    """Measure the start of an engine directory whose weights are dummies; reading them is making them."""
    from quire import LLM, SamplingParams
    from quire.builder.open import open_plan
    from quire.core.config import BuildConfig
    from quire.plan.plan import Plan

    with tempfile.TemporaryDirectory() as scratch:
        model, saved = Path(scratch) / "model", Path(scratch) / "engine"
        model.mkdir()
        (model / "config.json").write_text(json.dumps(SHAPES["8b"]), encoding="utf-8")
        open_plan(model, BuildConfig(load_format="dummy")).save(saved)
        plan, start = Plan.load(saved), time.perf_counter()
        for name in plan.network.weights:
            plan.weights.read(name)
        read, start = time.perf_counter() - start, time.perf_counter()
        with LLM(saved, skip_tokenizer_init=True, max_model_len=16384) as llm:
            one = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False)
            llm.generate([[1, 2, 3]], one, use_tqdm=False)
            report.add("load.8b.bf16", measure.load(time.perf_counter() - start, read))


def main() -> None:
    """Measure what is asked for, the roof first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--engine", default="quire")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--timeline", type=Path)
    options = parser.parse_args()
    report, parts = Report(options), list(options.only)
    report.add("roof", measure.roof())
    is_quire = options.engine == "quire"
    runs: dict[str, Callable[[], None]] = {
        "decode_1b": lambda: one_billion(report),
        "offline": lambda: offline(report),
    }
    if is_quire:
        copy = report.found["roof"]["copy_tb_s"]
        runs["attention"] = lambda: report.add("attention.64x4096", measure.attention(copy))
        runs["load"] = lambda: load(report)
        runs["deterministic"] = lambda: any_bits(report)
    if set(parts) & {"decode", "prefill", "mixed"}:
        eight_billion(report, parts, options.timeline)
    for name, run in runs.items():
        if name in parts:
            run()


if __name__ == "__main__":
    main()
