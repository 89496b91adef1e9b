"""Model shapes to measure on, with dummy weights, and engines to drive: Quire, or one with the same interface."""

from __future__ import annotations

import gc
import importlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

_COMMON = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072, "rope_theta": 500000.0, "torch_dtype": "bfloat16", "hidden_act": "silu",
    "num_attention_heads": 32, "num_key_value_heads": 8,
    "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_type": "llama3",
                     "original_max_position_embeddings": 8192},
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "8b": {**_COMMON, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "head_dim": 128,
           "tie_word_embeddings": False},
    "1b": {**_COMMON, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64,
           "tie_word_embeddings": True},
}  # fmt: skip
"""Llama-3.1-8B and Llama-3.2-1B."""


def linear_parameters(shape: dict[str, Any]) -> int:
    """Return the elements of all matrices that decoding a token reads."""
    hidden, inner, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    heads, kv_heads = shape["num_attention_heads"], shape["num_key_value_heads"]
    attention = hidden * shape["head_dim"] * (2 * heads + 2 * kv_heads)
    return int(layers * (attention + 3 * hidden * inner) + shape["vocab_size"] * hidden)


def prefill_flops(shape: dict[str, Any], length: int) -> float:
    """Return the operations of a prompt whose last token alone gets logits: linear layers and causal attention."""
    body = linear_parameters(shape) - shape["vocab_size"] * shape["hidden_size"]
    width = shape["num_attention_heads"] * shape["head_dim"]
    return float(2 * body * length + 2 * length**2 * width * shape["num_hidden_layers"])


@contextmanager
def engine(name: str, shape: str, *, fp8: bool = False, **options: Any) -> Iterator[tuple[Any, Any]]:
    """Yield an `LLM` of an engine and its `SamplingParams`; give its memory back at the end.

    Args:
        name: The module that has both, for example "quire" or "vllm".
        shape: One of `SHAPES`.
        fp8: Weights, activations and KV cache in eight bits.
        options: Arguments of `LLM` that both know.
    """
    module = importlib.import_module(name)
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "config.json").write_text(json.dumps(SHAPES[shape]), encoding="utf-8")
        common = {"load_format": "dummy", "skip_tokenizer_init": True}
        if name != "quire":
            eight = {"quantization": "fp8", "kv_cache_dtype": "fp8"} if fp8 else {}
            llm = module.LLM(scratch, **common, **eight, **options)
        elif fp8:
            llm = module.LLM(fp8_plan(scratch), skip_tokenizer_init=True, **options)
        else:
            llm = module.LLM(scratch, **common, **options)
    try:
        yield llm, module.SamplingParams
    finally:
        if hasattr(llm, "close"):
            llm.close()
        del llm
        gc.collect()
        torch.cuda.empty_cache()


def fp8_plan(model: str) -> Any:
    """Return a plan in fp8 of dummy weights, which need no calibration: scales of 1 for the KV cache."""
    from quire.builder.estimate import estimate_quantized
    from quire.builder.open import open_plan
    from quire.core.config import BuildConfig
    from quire.plan.weight_source import TensorWeights

    plan = open_plan(model, BuildConfig(load_format="dummy"))
    quantized = estimate_quantized(plan, BuildConfig(quantization="fp8", kv_cache_dtype="fp8"))
    assert quantized is not None
    scales = {
        name: torch.ones([int(size) for size in spec.shape])
        for name, spec in quantized.network.weights.items()
        if name.startswith("kv_scales.")
    }
    return replace(quantized, weights=TensorWeights(scales, plan.weights))
