"""Plans of small models of every family whose heads and layers can be dealt out, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quire.builder.build import build
from quire.core.config import BuildConfig
from quire.plan.plan import Plan
from tests.support.dummy_models import GPT2, LLAMA, OPT, write_model

_GATED = {**LLAMA, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 8,
          "num_key_value_heads": 4, "head_dim": 8, "max_position_embeddings": 64}  # fmt: skip
_OPT = {**OPT, "hidden_size": 64, "ffn_dim": 104, "num_attention_heads": 8, "num_hidden_layers": 4,
        "word_embed_proj_dim": 64, "max_position_embeddings": 64}  # fmt: skip

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {**_GATED, "tie_word_embeddings": False},
    "llama-biases": {**_GATED, "attention_bias": True, "mlp_bias": True},
    "mistral": {**_GATED, "architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 5},
    "qwen2": {**_GATED, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "num_key_value_heads": 2},
    "qwen3": {**_GATED, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "num_key_value_heads": 8},
    "gelu": {**_GATED, "hidden_act": "gelu", "num_key_value_heads": 1},
    "gpt2": {**GPT2, "n_embd": 64, "n_layer": 4, "n_head": 8, "n_positions": 64},
    "opt": _OPT,
    "opt-350m": {**_OPT, "word_embed_proj_dim": 40, "do_layer_norm_before": False},
}


def family_plan(directory: Path, family: str, **settings: Any) -> Plan:
    """Build the plan of a family, in float32 unless told otherwise."""
    options = {"load_format": "dummy", "dtype": "float32", "seed": 5, **settings}
    return build(write_model(directory / family, FAMILIES[family]), BuildConfig(**options))
