"""Where the time of a whole step goes: seconds by kernel, of a prompt, of many rows decoding and of one.

OMP_NUM_THREADS=2 python -m benchmarks.cpu.bench_program MODEL [--quantization w8a8]

Widths that follow a kernel's name are those of its first argument and its first result.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from benchmarks.workloads import prompt
from quire import LLM, SamplingParams
from quire.ops.native.library import library

PROMPT_TOKENS, CONTEXT_TOKENS, NEW_TOKENS = 1024, 128, 32


def measure(llm: LLM, prompts: list[list[int]], num_tokens: int) -> tuple[float, dict[str, tuple[int, float]]]:
    """Return the seconds that generating takes, and calls and seconds by kernel."""
    params = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True, detokenize=False)
    inputs: list[Any] = [{"prompt_token_ids": ids} for ids in prompts]
    library().start_recording()
    start = time.perf_counter()
    llm.generate(inputs, params)
    return time.perf_counter() - start, library().stop_recording()


def report(title: str, seconds: float, num_tokens: int, kernels: dict[str, tuple[int, float]]) -> None:
    """Print a line for each kernel, the longest first, and one for what happens outside of programs."""
    print(
        f"{title}: {seconds * 1e3:.1f} ms, {num_tokens / seconds:.1f} tokens/s with {torch.get_num_threads()} threads"
    )
    rest = seconds - sum(took for _, took in kernels.values())
    rows = [*((name, calls, took) for name, (calls, took) in kernels.items()), ("outside of programs", 1, rest)]
    for name, calls, took in sorted(rows, key=lambda row: -row[2]):
        print(f"  {name:36} {calls:6} calls {took / calls * 1e6:10.1f} us each {took / seconds:6.1%}")


def main() -> None:
    """Parse the command line and print a table for each kind of step."""
    parser = argparse.ArgumentParser(description="Seconds by kernel of whole steps.")
    parser.add_argument("model")
    parser.add_argument("--quantization", default=None)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 64], help="sequences that decode together")
    args = parser.parse_args()
    llm = LLM(args.model, skip_tokenizer_init=True, quantization=args.quantization, max_model_len=2 * PROMPT_TOKENS)
    measure(llm, [prompt("warm-up", PROMPT_TOKENS)], 2)
    report("prompt", *_with_tokens(measure(llm, [prompt("prompt", PROMPT_TOKENS)], 1), PROMPT_TOKENS))
    for rows in args.rows:
        prompts = [prompt(f"decode {i}", CONTEXT_TOKENS) for i in range(rows)]
        measure(llm, prompts, 1)  # from now on their blocks are in the cache
        report(f"{rows} rows", *_with_tokens(measure(llm, prompts, NEW_TOKENS), rows * NEW_TOKENS))


def _with_tokens(
    measured: tuple[float, dict[str, tuple[int, float]]], num_tokens: int
) -> tuple[float, int, dict[str, tuple[int, float]]]:
    seconds, kernels = measured
    return seconds, num_tokens, kernels


if __name__ == "__main__":
    main()
