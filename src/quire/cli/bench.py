"""`quire bench`: latency of one stream, throughput of many, or start-up, beside the machine's roof; or a server."""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import msgspec

from quire.cli.load import command as load
from quire.cli.options import add_model, open_model, require, table
from quire.core.sampling_params import SamplingParams

if TYPE_CHECKING:
    from quire.llm import LLM

KINDS = {
    "latency": "time one stream: to the first token, and between tokens",
    "throughput": "time a batch of requests that are all there at the start",
    "startup": "time whole processes from start to first token",
    "serve": "put an open-loop load on a server",
}
_FIRST_TOKEN = (
    "import json, sys; from quire import LLM, SamplingParams; "
    "LLM(sys.argv[1], **json.loads(sys.argv[2])).generate("
    "{'prompt_token_ids': [1]}, SamplingParams(max_tokens=1, ignore_eos=True), use_tqdm=False)"
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    for kind, summary in KINDS.items():
        description = summary[0].upper() + summary[1:] + "."
        child = kinds.add_parser(kind, help=summary, description=description, allow_abbrev=False)
        if kind == "serve":
            load.configure(child)
        else:
            _configure_model(child)


def _configure_model(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--input-len", type=int, default=128, metavar="N", help="prompt tokens (default: 128)")
    parser.add_argument("--output-len", type=int, default=128, metavar="N", help="generated tokens (default: 128)")
    parser.add_argument("--min-len", type=int, metavar="N", help="throughput: draw both lengths from here upwards")
    parser.add_argument("--num-prompts", type=int, default=64, metavar="N", help="throughput: requests (default: 64)")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="measurements (default: 5)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Measure and print."""
    for name in ("input_len", "output_len", "num_prompts", "repeat"):
        require(getattr(options, name) >= 1, f"--{name.replace('_', '-')}", "at least 1", getattr(options, name))
    result = _startup(options) if options.kind == "startup" else _with_model(options)
    if options.json:
        print(msgspec.json.encode(result).decode())
    else:
        print(
            table([(key, f"{value:,.2f}" if isinstance(value, float) else str(value)) for key, value in result.items()])
        )


def _startup(options: argparse.Namespace) -> dict[str, Any]:
    """Time whole processes from start to first token."""
    settings = {"dtype": options.dtype, "load_format": options.load_format, "skip_tokenizer_init": False}
    command = [sys.executable, "-c", _FIRST_TOKEN, options.model, msgspec.json.encode(settings).decode()]
    seconds = []
    for _ in range(options.repeat):
        start = time.perf_counter()
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    return {
        "kind": "startup",
        "model": options.model,
        "first_token_s": statistics.median(seconds),
        "best_s": min(seconds),
    }


def _with_model(options: argparse.Namespace) -> dict[str, Any]:
    from quire.plan.memory import bytes_read_per_token, flops_per_token
    from quire.runner.device import measure_roof

    with open_model(options, skip_tokenizer_init=True) as llm:
        roof = measure_roof(llm.plan.spec.dtype)
        measured = _latency(llm, options) if options.kind == "latency" else _throughput(llm, options)
        flops = flops_per_token(llm.plan.network) * measured["tokens_per_s"]
        read = bytes_read_per_token(llm.plan.network) * measured["steps_per_s"]
    return {
        "kind": options.kind,
        "model": options.model,
        "dtype": llm.plan.spec.dtype,
        **{key: value for key, value in measured.items() if key != "steps_per_s"},
        "weights_read_gb_per_s": read / 1e9,
        "roof_gb_per_s": roof.read_bytes_per_s / 1e9,
        "matmul_gflop_per_s": flops / 1e9,
        "roof_gflop_per_s": roof.flops / 1e9,
    }


def _latency(llm: LLM, options: argparse.Namespace) -> dict[str, float]:
    """Time one stream: to the first token, and between tokens after it."""
    first, between = [], []
    for prompt in _prompts(llm, options, options.repeat + 1):
        params = SamplingParams(temperature=0, max_tokens=options.output_len, ignore_eos=True, detokenize=False)
        start = time.perf_counter()
        times = [time.perf_counter() for _ in llm.stream(prompt, params)]
        first.append(times[0] - start)
        between.append((times[-1] - times[0]) / max(1, len(times) - 1))
    per_token = statistics.median(between[1:]) or float("nan")
    return {
        "first_token_ms": statistics.median(first[1:]) * 1e3,
        "per_token_ms": per_token * 1e3,
        "tokens_per_s": 1 / per_token,
        "steps_per_s": 1 / per_token,
    }


def _throughput(llm: LLM, options: argparse.Namespace) -> dict[str, float]:
    """Time a batch of requests that are all there at the start."""
    rng = random.Random(0)
    lengths = [_length(rng, options, options.output_len) for _ in range(options.num_prompts)]
    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True, detokenize=False) for n in lengths]
    rates = []
    for repeat in range(options.repeat):
        prompts = _prompts(llm, options, options.num_prompts, seed=repeat)
        before, start = llm.get_metrics()["num_steps"], time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - start
        num_in = sum(len(p["prompt_token_ids"]) for p in prompts)
        rates.append((sum(lengths) / seconds, num_in / seconds, (llm.get_metrics()["num_steps"] - before) / seconds))
    out, into, steps = (statistics.median(column) for column in zip(*rates, strict=True))
    return {"output_tokens_per_s": out, "prompt_tokens_per_s": into, "tokens_per_s": out + into, "steps_per_s": steps}


def _prompts(llm: LLM, options: argparse.Namespace, count: int, seed: int = 0) -> list[dict[str, list[int]]]:
    """Return random prompts, new for every seed, so that no prefix is cached."""
    rng = random.Random(1000 + seed)
    vocab_size = llm.plan.spec.vocab_size
    return [
        {"prompt_token_ids": [rng.randrange(vocab_size) for _ in range(_length(rng, options, options.input_len))]}
        for _ in range(count)
    ]


def _length(rng: random.Random, options: argparse.Namespace, most: int) -> int:
    return most if options.min_len is None else rng.randint(min(options.min_len, most), most)
