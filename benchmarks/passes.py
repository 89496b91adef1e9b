"""What each pass gains: steps of a plan with all passes, without one of them, and with none.

    scripts/bench passes [--families llama mistral ...] [--rows 1 16 256] [--quantization w8a8]

A step of `rows` tokens is one prompt of that many; one token is decoding without a past. All variants of a family take
turns in one process, so that noise strikes all alike; the figure is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import record
from quire.builder.open import open_plan
from quire.builder.pipeline import FUSE, FUSE_QUANTIZED
from quire.core.config import BuildConfig
from quire.quantization.step import kv_cache, step_inputs
from quire.runner.execution.executor import Executor

_SIZES: dict[str, Any] = {
    "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 4, "num_attention_heads": 16,
    "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 2048, "vocab_size": 8192, "hidden_act": "silu",
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {**_SIZES, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "rms_norm_eps": 1e-5},
    "qwen2": {**_SIZES, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "rms_norm_eps": 1e-6},
    "qwen3": {**_SIZES, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "rms_norm_eps": 1e-6},
    "mistral": {**_SIZES, "architectures": ["MistralForCausalLM"], "model_type": "mistral", "rms_norm_eps": 1e-5,
                "sliding_window": 1024},
    "gpt2": {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 8192, "n_embd": 1024,
             "n_layer": 4, "n_head": 16, "n_positions": 2048},
    "opt": {"architectures": ["OPTForCausalLM"], "model_type": "opt", "vocab_size": 8192, "hidden_size": 1024,
            "ffn_dim": 4096, "num_hidden_layers": 4, "num_attention_heads": 16, "max_position_embeddings": 2048,
            "word_embed_proj_dim": 1024},
}  # fmt: skip
_ROUNDS = 15


def variants(quantization: str | None) -> dict[str, tuple[str, ...]]:
    """Return the passes that each variant leaves out."""
    fusions = [run.__name__ for run in (*FUSE, *(FUSE_QUANTIZED if quantization else ()))]
    single = {name: (name,) for name in (*fusions, "gather_last_token")}
    return {"all": (), **single, "none": (*fusions, "gather_last_token")}


def step(family: str, quantization: str | None, without: tuple[str, ...], directory: Path) -> Callable[[int], float]:
    """Bind a variant; returns what times one step of some rows, in seconds."""
    (directory / "config.json").write_text(json.dumps(FAMILIES[family]), encoding="utf-8")
    settings: dict[str, Any] = {"load_format": "dummy", "dtype": "bfloat16", "without_passes": without}
    if quantization:
        settings |= {
            "quantization": quantization,
            "max_kl": 1e9,
            "num_calibration_samples": 2,
            "calibration_length": 16,
        }
    plan = open_plan(directory, BuildConfig(**settings))
    executor = Executor(plan.network, plan.weights)

    def run(rows: int) -> float:
        given = step_inputs(plan.network, [[token % 8192 for token in range(rows)]])
        inputs = {str(node.target): value for node, value in given.items()}
        if "logits_indices" in inputs:
            inputs["logits_indices"] = torch.tensor([rows - 1], dtype=torch.int32)
        caches = {str(n.target): kv_cache(n, given) for n in plan.network.graph.nodes
                  if n.op == "placeholder" and n not in given}  # fmt: skip
        start = time.perf_counter()
        executor.run({**inputs, **caches})
        return time.perf_counter() - start

    return run


def main() -> None:
    """Time all variants of some families, and record what each pass gains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="*", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 16, 256])
    parser.add_argument("--quantization")
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args()
    for family in options.families:
        with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
            wanted = variants(options.quantization)
            runs = {name: step(family, options.quantization, left, Path(scratch)) for name, left in wanted.items()}
            for rows in options.rows:
                measure(f"{family}{'.' + options.quantization if options.quantization else ''}", rows, runs, options)


def measure(label: str, rows: int, runs: dict[str, Callable[[int], float]], options: argparse.Namespace) -> None:
    """Take turns, and print each variant's time beside that of the plan with all passes."""
    for run in runs.values():
        run(rows)
    rounds = [{name: run(rows) for name, run in runs.items()} for _ in range(options.rounds)]
    print(f"{label}, {rows} rows: {statistics.median(r['all'] for r in rounds) * 1e3:.2f} ms with all passes")
    for name in runs:
        if name != "all":
            ratios = [each[name] / each["all"] for each in rounds]
            left = "with_none" if name == "none" else f"without_{name}"
            record(f"passes.{label}.{rows}_rows.{left}", "x", ratios, save=not options.no_save)


if __name__ == "__main__":
    main()
