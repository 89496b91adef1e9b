"""What a step costs beside its kernels: microseconds of each stage, with a stand-in for compiled programs.

    scripts/bench host_overhead [--rows 1 64] [--text] [--sampled]

The engine is whole but for `quire._native.Program.run`, which returns at once; logits are the same in every step.
Stages: `schedule` and `update` of the scheduler; `lay_out`, all that the runner does but for the next three; `call`,
the executor with a program that does nothing; `sample` without `kernel`, the kernels of sampling themselves; `text`,
the output processor; `loop`, all else up to `LLM.generate`. `all` is their sum without `kernel`. Each is recorded as
host.step_us.<stage>.<rows>.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.record import record
from quire import LLM, SamplingParams
from quire.ops.native import library
from quire.runner import cpu_runner
from quire.runner.execution.native_program import NativeProgram
from quire.sampling.sampler import Sampler

PROMPT_TOKENS = 16
STEPS = 400
WARM_STEPS = 20
STAGES = ("schedule", "lay_out", "call", "sample", "kernel", "update", "text", "loop", "all")


class Stopwatch:
    """Times stages, step by step.

    Attributes:
        steps: Of each step the microseconds of every stage, those of stages inside it included.
    """

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self._step: dict[str, float] = defaultdict(float)

    def around(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function whose time counts for a stage; a step ends with the stage "all"."""
        clock = time.perf_counter

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = clock()
            result = function(*args, **kwargs)
            self._step[stage] += (clock() - start) * 1e6
            if stage == "all":
                self.steps.append(self._step)
                self._step = defaultdict(float)
            return result

        return timed

    def own_times(self) -> dict[str, list[float]]:
        """Return the microseconds of each stage without those that are stages of their own, in warm steps."""
        steps = self.steps[WARM_STEPS:]
        for step in steps:
            step["loop"] = step["all"] - sum(step[stage] for stage in ("schedule", "execute", "update", "text"))
            step["lay_out"] = step["execute"] - step["call"] - step["sample"]
            step["sample"] -= step["kernel"]
            step["all"] -= step["kernel"]
        return {stage: [step[stage] for step in steps] for stage in STAGES}


class NoProgram:
    """Stands in for a program."""

    def run(self, *_: object) -> None:
        """Do nothing."""


def stand_in(llm: LLM, watch: Stopwatch, max_rows: int) -> None:
    """Replace the programs of an engine, and time its stages."""
    engine = llm._engine
    loop, runner = engine.loop, engine.loop.runner
    assert isinstance(runner, cpu_runner.CPURunner), "expected an engine on a CPU"
    executor = runner._loaded.executor
    for call in executor._calls:
        program = getattr(call.run, "__self__", None)
        if isinstance(program, NativeProgram):
            program._program = NoProgram()
    logits = torch.randn(max_rows, llm.plan.spec.vocab_size, dtype=torch.bfloat16)
    logits_of = {num_rows: logits[:num_rows] for num_rows in range(max_rows + 1)}
    run = watch.around("call", executor.run)

    def with_logits(inputs: Any) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = run(inputs)
        found["logits"] = logits_of[len(found["logits"])]
        return found

    native = SimpleNamespace(call=watch.around("kernel", library.library().call))
    library.library = lambda: native  # type: ignore[assignment]
    executor.run = with_logits  # type: ignore[method-assign]
    Sampler.sample = watch.around("sample", Sampler.sample)  # type: ignore[method-assign]
    runner.execute = watch.around("execute", runner.execute)  # type: ignore[method-assign]
    loop.scheduler.schedule = watch.around("schedule", loop.scheduler.schedule)  # type: ignore[method-assign]
    loop.scheduler.update = watch.around("update", loop.scheduler.update)  # type: ignore[method-assign]
    engine.outputs.process = watch.around("text", engine.outputs.process)  # type: ignore[method-assign]
    llm._step = watch.around("all", llm._step)  # type: ignore[method-assign]


def main() -> None:
    """Parse the command line, run, record."""
    parser = argparse.ArgumentParser(description="What a step costs beside its kernels.")
    parser.add_argument("--model", default="quire-tiny")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--text", action="store_true", help="detokenize")
    parser.add_argument("--sampled", action="store_true", help="temperature and top_p instead of the largest")
    parser.add_argument("--logprobs", type=int, help="ask for logprobs, too")
    parser.add_argument("--dry", action="store_true", help="do not append to the table")
    args = parser.parse_args()
    llm, watch = LLM(args.model, max_num_seqs=max(args.rows)), Stopwatch()
    stand_in(llm, watch, max(args.rows))
    kind = {"temperature": 0.8, "top_p": 0.95, "seed": 1} if args.sampled else {"temperature": 0.0}
    params = SamplingParams(**kind, max_tokens=STEPS, ignore_eos=True, detokenize=args.text, logprobs=args.logprobs)  # type: ignore[arg-type]
    for num_rows in args.rows:
        watch.steps.clear()
        llm.generate([[5 + i] * PROMPT_TOKENS for i in range(num_rows)], params, use_tqdm=False)
        stages = watch.own_times()
        for stage in STAGES:
            record(f"host.step_us.{stage}.{num_rows}", "us", stages[stage], save=not args.dry)


if __name__ == "__main__":
    main()
