"""Engines with vLLM's offline API beside each other, in turns: where a machine's speed drifts, ratios stay.

python -m benchmarks.cpu.in_turns quire ENGINE python vllm MODEL vllm/bin/python [--only prefill offline]

Of each engine its module, a model and the Python that has it, or a script that sets an environment and calls one. Every
engine is a process of its own, which loads its model once and then waits for its turn. Prints tokens/s (of the prompt
in `prefill`) and each engine's ratio to the first, the median of turns.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks import workloads
from benchmarks.workloads import Requests

WORKLOADS = {
    "decode": (workloads.decode_requests, 5),
    "prefill": (workloads.prefill_requests, 10),
    "offline": (workloads.offline_requests, 2),
    "shared": (workloads.shared_requests, 2),
}
"""What to do, and how often."""

SETTINGS = {"max_model_len": 2048, "max_num_seqs": 64, "max_num_batched_tokens": 2048, "enable_prefix_caching": True}
"""The same of all engines."""


def serve(module: str, model: str) -> None:
    """Load an engine, then answer each workload's name and number with tokens/s."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what engines print is no answer
    engine = importlib.import_module(module)
    llm = engine.LLM(model=model, skip_tokenizer_init=True, **SETTINGS)

    def seconds(requests: Requests) -> float:
        params = [
            engine.SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True, detokenize=False)
            for _, count in requests
        ]
        start = time.perf_counter()
        outputs = llm.generate([{"prompt_token_ids": ids} for ids, _ in requests], params, use_tqdm=False)
        taken = time.perf_counter() - start
        assert [len(output.outputs[0].token_ids) for output in outputs] == [count for _, count in requests]
        return taken

    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        name, repeat = line.split()
        requests = WORKLOADS[name][0](int(repeat))
        tokens = len(requests[0][0]) if name == "prefill" else sum(count for _, count in requests)
        print(tokens / seconds(requests), file=answers, flush=True)


class Engine:
    """An engine in a process of its own."""

    def __init__(self, module: str, model: str, python: str) -> None:
        root = str(Path(__file__).parents[2])
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.cpu.in_turns", "--serve", module, model],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root, env=os.environ | {"PYTHONPATH": root},
        )  # fmt: skip
        self._line()

    def rate(self, workload: str, repeat: int) -> float:
        """Return the tokens/s of a workload."""
        assert self._process.stdin is not None
        print(workload, repeat, file=self._process.stdin, flush=True)
        return float(self._line())

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()

    def _line(self) -> str:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise RuntimeError(f"engine: expected an answer, but it ended with status {self._process.wait()}.")
        return line


def compare(engines: Sequence[Engine], names: Sequence[str], workload: str) -> None:
    """Let engines do a workload in turns, and print what they reach."""
    _, repeats = WORKLOADS[workload]
    turns = []
    for repeat in range(repeats):
        order = range(len(engines)) if repeat % 2 == 0 else reversed(range(len(engines)))
        rates = {place: engines[place].rate(workload, repeat) for place in order}
        turns.append([rates[place] for place in range(len(engines))])
    for place, name in enumerate(names):
        ratio = median(turn[place] / turn[0] for turn in turns)
        every = " ".join(f"{turn[place]:,.1f}" for turn in turns)
        print(f"{workload:8} {name:12} {median(turn[place] for turn in turns):10,.1f} tokens/s, {ratio:5.2f} ({every})",
              flush=True)  # fmt: skip


def main() -> None:
    """Parse the command line and run all workloads."""
    if sys.argv[1:2] == ["--serve"]:
        serve(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", nargs="+", metavar="MODULE MODEL PYTHON")
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    options = parser.parse_args()
    words = options.engines
    if len(words) % 3:
        parser.error(f"expected a module, a model and a Python of each engine, got {len(words)} words")
    engines = [Engine(*words[place : place + 3]) for place in range(0, len(words), 3)]
    for engine in engines:
        engine.rate("prefill", -1)  # warms up
    for workload in options.only:
        compare(engines, words[::3], workload)
    for engine in engines:
        engine.close()


if __name__ == "__main__":
    main()
