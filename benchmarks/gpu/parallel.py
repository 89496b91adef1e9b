"""Measure and check a model on several GPUs of one machine, print a table, and write JSON.

    python -m benchmarks.gpu.parallel [--only equal bits bf16 fp8 ...] [--layouts tp1 tp2 tp2pp2 ...] [--seconds 540]
        [--output parallel.json]

- `equal`: greedy tokens of a small model in float32, and tokens and logprobs of it in fp8, equal those on one GPU on
  every layout that fits.
- `bits`: tokens and logprobs in bfloat16 are the same bits alone and in a batch, on every layout.
- `bf16`, `fp8`: Llama-3.1-8B's shape with dummy weights: the time of a token of one request, and many requests, on
  one GPU, and on 2 and 4; stages, too. On one and two also without captured graphs, so that it shows that collectives
  are captured; fp8 on two without equal bits, too, and stages balanced by bytes. They are
  written to a temporary directory first: 17 GB each.

A part that fails is noted with its error, and the next one runs; what `--seconds` leaves no time for is noted, too.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import measure
from benchmarks.gpu.run import Report
from benchmarks.gpu.shapes import SHAPES, fp8_plan
from quire import LLM, SamplingParams
from quire.builder.open import open_plan
from quire.core.config import BuildConfig
from quire.plan.plan import Plan

Layout = tuple[int, int]
LAYOUTS: tuple[Layout, ...] = ((1, 1), (2, 1), (4, 1), (1, 2), (2, 2))
"""Sizes of tensor and pipeline parallelism."""

SMALL = {
    **SHAPES["8b"], "vocab_size": 2048, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 8,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "max_position_embeddings": 2048,
}  # fmt: skip
_REQUESTS, _LENGTH, _OUTPUT = 512, 128, 128  # of the offline load: some seconds on one GPU
_MOST_SECONDS = 180.0  # for one layout
PARTS = ("equal", "bits", "bf16", "fp8")


def name_of(layout: Layout) -> str:
    """Return a layout's name, for example "tp2" or "tp2pp2"."""
    tp_size, pp_size = layout
    return f"tp{tp_size}" + (f"pp{pp_size}" if pp_size > 1 else "")


def kill_children() -> None:
    """Kill the workers of this process, so that who waits for them gets an error."""
    for children in Path("/proc/self/task").glob("*/children"):
        for pid in children.read_text().split():
            os.kill(int(pid), signal.SIGKILL)


@contextmanager
def loaded(model: str | Path, layout: Layout, **options: Any) -> Iterator[LLM]:
    """Yield an `LLM` on a layout's GPUs, and give them back at the end."""
    tp_size, pp_size = layout
    options |= {"tensor_parallel_size": tp_size, "pipeline_parallel_size": pp_size, "enable_prefix_caching": False}
    llm = LLM(model, skip_tokenizer_init=True, **options)
    try:
        yield llm
    finally:
        llm.close()
        del llm
        gc.collect()
        torch.cuda.empty_cache()


def prompts(count: int, vocab_size: int = 2048) -> list[list[int]]:
    """Return prompts of 5 to 100 tokens."""
    return [[(7919 * row + 31 * place + 5) % vocab_size for place in range(5 + 19 * row % 96)] for row in range(count)]


def results(llm: LLM, batch: list[list[int]], max_tokens: int, temperature: float = 0.0, first: int = 0) -> list[Any]:
    """Return ids and logprobs, with a temperature of every second request, the first of which has a number."""
    wanted = [
        SamplingParams(temperature=temperature * (row % 2), seed=row, max_tokens=max_tokens, ignore_eos=True,
                       logprobs=2, detokenize=False)
        for row in range(first, first + len(batch))
    ]  # fmt: skip
    outputs = llm.generate(batch, wanted, use_tqdm=False)
    return [(output.outputs[0].token_ids, output.outputs[0].logprobs) for output in outputs]


class Run:
    """The parts, each for every layout that the machine has GPUs for.

    Args:
        report: Where numbers go.
        scratch: A directory for models.
        seconds: When to start nothing new.
        layouts: Of these, those that there are GPUs for.
    """

    def __init__(self, report: Report, scratch: Path, seconds: float, layouts: Sequence[Layout]) -> None:
        self._report, self._scratch = report, scratch
        self._deadline_s = time.monotonic() + seconds
        num_devices = torch.cuda.device_count()
        self._layouts = [layout for layout in layouts if layout[0] * layout[1] <= num_devices]
        self._expected: dict[str, list[Any]] = {}

    def part(self, name: str, work: Callable[..., dict[str, Any]], *given: Any) -> None:
        """Do one thing, and keep what it gives, or why it does not."""
        if time.monotonic() > self._deadline_s:
            self._report.add(name, {"error": "no time was left"})
            return
        began_s = time.monotonic()
        guard = threading.Timer(_MOST_SECONDS, kill_children)  # an exchange that never ends is an error, too
        guard.start()
        try:
            numbers = work(*given)
        except Exception as error:
            traceback.print_exc()
            numbers = {"error": f"{type(error).__name__}: {error}"}
        finally:
            guard.cancel()
        self._report.add(name, {**numbers, "part_s": time.monotonic() - began_s})

    def equal(self) -> None:
        """Compare tokens over layouts, in float32 and in fp8."""
        saved = self._scratch / "small_fp8"
        fp8_plan(str(self._small())).save(saved)
        kinds = {"float32": (self._small(), {"dtype": "float32", "load_format": "dummy"}), "fp8": (saved, {})}
        for kind, (model, options) in kinds.items():
            for layout in dict.fromkeys((LAYOUTS[0], *self._layouts)):  # one GPU says what is expected
                name = f"equal.{kind}.{name_of(layout)}"
                self.part(name, self._equal, kind, model, layout, options)

    def _equal(self, kind: str, model: Path, layout: Layout, options: dict[str, Any]) -> dict[str, Any]:
        with loaded(model, layout, max_num_seqs=32, **options) as llm:
            found = results(llm, prompts(16), 64)
        if layout == LAYOUTS[0]:
            self._expected[kind] = found
        expected = self._expected[kind]
        same = sum(a[0] == b[0] for a, b in zip(found, expected, strict=True))
        same_bits = sum(a == b for a, b in zip(found, expected, strict=True))
        return {"requests": len(found), "equal_to_one_gpu": same, "equal_logprobs": same_bits}

    def bits(self) -> None:
        """Compare a batch with each request alone in bfloat16."""
        for layout in self._layouts:
            self.part(f"bits.{name_of(layout)}", self._bits, layout)

    def _bits(self, layout: Layout) -> dict[str, Any]:
        batch = prompts(12)
        with loaded(self._small(), layout, dtype="bfloat16", load_format="dummy", max_num_seqs=32) as llm:
            together = results(llm, batch, 24, 0.8)
            again = results(llm, batch, 24, 0.8)
            alone = [results(llm, [prompt], 24, 0.8, row)[0] for row, prompt in enumerate(batch)]
            metrics = llm.get_metrics()
        same = sum(a == b for a, b in zip(together, alone, strict=True))
        shown = {name: value for name, value in metrics.items() if name.startswith(("communication", "pipeline"))}
        return {"requests": len(batch), "equal_alone": same, "equal_again": together == again, **shown}

    def eight_billion(self, kind: str) -> None:
        """Measure the 8B shape in bf16 or fp8 on every layout."""
        plan = fp8_plan(str(self._shape("8b"))) if kind == "fp8" else None
        plan = plan or open_plan(self._shape("8b"), BuildConfig(load_format="dummy"))
        saved = self._scratch / kind
        self.part(f"save.8b.{kind}", self._save, plan, saved)
        for layout in self._layouts:
            self.part(f"8b.{kind}.{name_of(layout)}", self._rates, saved, kind, layout)
        others: list[tuple[Layout, str, dict[str, Any]]] = [((1, 2), "balanced", {"pipeline_partition": "balanced"})]
        if kind == "fp8":
            others.append(((2, 1), "any_bits", {"deterministic": False}))
        for layout, name, options in others:
            if layout in self._layouts:
                work = partial(self._rates, **options)
                self.part(f"8b.{kind}.{name_of(layout)}.{name}", work, saved, kind, layout)
        for layout in set(self._layouts) & set(LAYOUTS[:2]):
            name = f"8b.{kind}.{name_of(layout)}.eager"
            self.part(name, partial(self._decode, enforce_eager=True), saved, kind, layout)

    def _save(self, plan: Plan, saved: Path) -> dict[str, Any]:
        plan.save(saved)
        return {"stored_gb": sum(file.stat().st_size for file in saved.iterdir() if file.is_file()) / 1e9}

    def _rates(self, saved: Path, kind: str, layout: Layout, **options: Any) -> dict[str, Any]:
        began_s = time.monotonic()
        options |= {"max_model_len": 4096, "max_num_batched_tokens": 8192, "max_num_seqs": 256}
        with loaded(saved, layout, **options) as llm:
            start_s = time.monotonic() - began_s
            decode = self._decode_one(llm, kind)
            offline = measure.offline(llm, SamplingParams, "8b", _REQUESTS, _LENGTH, _OUTPUT)
            metrics = llm.get_metrics()
        shown = {name: value for name, value in metrics.items() if name.startswith(("communication", "pipeline"))}
        return {"start_s": start_s, **decode, **offline, "num_steps": metrics["num_steps"], **shown}

    def _decode(self, saved: Path, kind: str, layout: Layout, **options: Any) -> dict[str, Any]:
        with loaded(saved, layout, max_model_len=4096, max_num_seqs=8, **options) as llm:
            return self._decode_one(llm, kind)

    def _decode_one(self, llm: LLM, kind: str) -> dict[str, Any]:
        copy = self._report.found["roof"]["copy_tb_s"]
        return measure.decode_one(llm, SamplingParams, "8b", copy, 1 if kind == "fp8" else 2)

    def _small(self) -> Path:
        return self._model("small", SMALL)

    def _shape(self, name: str) -> Path:
        return self._model(name, SHAPES[name])

    def _model(self, name: str, config: dict[str, Any]) -> Path:
        path = self._scratch / name
        path.mkdir(exist_ok=True)
        (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return path


def main() -> None:
    """Measure what is asked for."""
    names = {name_of(layout): layout for layout in LAYOUTS}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--layouts", nargs="*", choices=names, default=list(names))
    parser.add_argument("--seconds", type=float, default=540.0)
    parser.add_argument("--output", type=Path, default=Path("parallel.json"))
    options = parser.parse_args()
    report = Report(argparse.Namespace(engine="quire", output=options.output))
    report.found["device"] = f"{torch.cuda.device_count()} x {report.found['device']}"
    report.add("roof", measure.roof())
    with tempfile.TemporaryDirectory() as scratch:
        run = Run(report, Path(scratch), options.seconds, [names[name] for name in options.layouts])
        parts: dict[str, Callable[[], None]] = {
            "equal": run.equal,
            "bits": run.bits,
            "bf16": lambda: run.eight_billion("bf16"),
            "fp8": lambda: run.eight_billion("fp8"),
        }
        for name in options.only:
            parts[name]()


if __name__ == "__main__":
    main()
