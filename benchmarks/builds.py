"""What a build costs: time beyond reading the weights, peak memory, and the start of what was built.

    scripts/bench builds [--size base|small] [--quantization w8a8 ...] [--calibration-tokens 65536]

Each build runs in a process of its own. Reading is measured in the same process, the file's pages in memory. The
peak is what the process held at most (VmHWM) less what it held before it opened the model.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.against_transformers import SHAPES, checkpoint
from benchmarks.record import record
from quire import LLM, SamplingParams
from quire.builder.open import open_plan
from quire.core.config import BuildConfig
from quire.plan.storage.tensor_file import TensorFile

_LENGTH = 512
# Random weights predict nothing, so any quantization is far from them.
_ALWAYS = 1e9


def status(field: str) -> int:
    """Return a field of /proc/self/status in bytes, for example "VmHWM"."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def read_seconds(directory: Path) -> float:
    """Return how long it takes to read all tensors of a directory, one at a time."""
    start = time.perf_counter()
    for path in directory.glob("*.safetensors"):
        file = TensorFile(path)
        for name in file.names():
            file.read(name)
    return time.perf_counter() - start


def build(directory: Path, output: Path, settings: dict[str, Any]) -> dict[str, float]:
    """Build and save in this process."""
    before, start = status("VmRSS"), time.perf_counter()
    open_plan(directory, BuildConfig(**settings)).save(output)
    seconds, peak = time.perf_counter() - start, status("VmHWM") - before
    return {"build_s": seconds, "peak_bytes": peak, "read_s": min(read_seconds(directory) for _ in range(2))}


def start(engine: Path, directory: Path) -> dict[str, float]:
    """Load and generate one token in this process; an engine may refer to the weights of its model's directory."""
    held = engine if any(engine.glob("*.safetensors")) else directory
    begin = time.perf_counter()
    with LLM(engine, skip_tokenizer_init=True) as llm:
        llm.generate([[1, 2, 3]], SamplingParams(max_tokens=1, temperature=0, detokenize=False), use_tqdm=False)
    seconds = time.perf_counter() - begin
    return {"start_s": seconds, "start_read_s": min(read_seconds(held) for _ in range(2))}


def in_child(*arguments: object) -> dict[str, float]:
    """Run `build` or `start` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.builds", "--child", *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Build in each scheme, and record what it cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SHAPES, default="base")
    parser.add_argument("--quantization", nargs="*", default=["none", "w8a16", "w8a8", "w4a16"])
    parser.add_argument("--calibration-tokens", type=int, default=128 * _LENGTH)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--no-save", action="store_true")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        what, *rest = options.child
        found = (
            build(Path(rest[0]), Path(rest[1]), json.loads(rest[2]))
            if what == "build"
            else start(Path(rest[0]), Path(rest[1]))
        )
        print(json.dumps(found))
        return
    with checkpoint(options.size) as directory:
        for scheme in options.quantization:
            measure(directory, scheme, options)


def measure(directory: Path, scheme: str, options: argparse.Namespace) -> None:
    """Build and start in one scheme, some times over."""
    size = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    settings = {} if scheme == "none" else {
        "quantization": scheme, "max_kl": _ALWAYS, "calibration_length": _LENGTH,
        "num_calibration_samples": options.calibration_tokens // _LENGTH,
    }  # fmt: skip
    found: dict[str, list[float]] = {}
    for _ in range(options.repeat):
        with tempfile.TemporaryDirectory() as scratch:
            engine = Path(scratch) / "engine"
            numbers = in_child("build", directory, engine, json.dumps(settings))
            numbers |= in_child("start", engine, directory)
        numbers["build_beyond_reading_s"] = numbers["build_s"] - numbers["read_s"]
        numbers["start_beyond_reading_s"] = numbers["start_s"] - numbers["start_read_s"]
        numbers["peak_of_weights"] = numbers.pop("peak_bytes") / size
        for name, value in numbers.items():
            found.setdefault(name, []).append(value)
    for name, values in found.items():
        unit = "x" if name == "peak_of_weights" else "s"
        record(f"builds.{name}.{scheme}.{options.size}", unit, values, save=not options.no_save)


if __name__ == "__main__":
    main()
