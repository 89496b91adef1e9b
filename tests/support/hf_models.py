"""Small Hugging Face models with odd sizes and random weights: the golden reference of every family."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()

MAX_POSITION = 96
_GATED: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 42,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_POSITION,
    "vocab_size": 61,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_OPT: dict[str, Any] = {
    "hidden_size": 28,
    "ffn_dim": 50,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": MAX_POSITION,
    "vocab_size": 59,
}
_GPT2: dict[str, Any] = {
    "n_embd": 30,
    "n_layer": 3,
    "n_head": 3,
    "n_positions": MAX_POSITION,
    "vocab_size": 53,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_STRETCHED = {"factor": 4.0, "rope_theta": 5000.0, "original_max_position_embeddings": 24}
_CLASSES: dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel], dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, _GATED),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, _GATED),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {**_GATED, "head_dim": 14}),
    "mistral": (MistralConfig, MistralForCausalLM, {**_GATED, "sliding_window": None}),
    "opt": (OPTConfig, OPTForCausalLM, _OPT),
    "gpt2": (GPT2Config, GPT2LMHeadModel, _GPT2),
}
_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"num_key_value_heads": 4}),
    "llama-tied-head-dim": ("llama", {"head_dim": 10, "tie_word_embeddings": True, "hidden_act": "gelu"}),
    "llama-biases": (
        "llama",
        {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True, "rms_norm_eps": 0.1},
    ),
    "llama-linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 700.0}}),
    "llama-llama3": (
        "llama",
        {
            "head_dim": 16,
            "rope_parameters": {
                **_STRETCHED,
                "rope_type": "llama3",
                "rope_theta": 50.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
            },
        },
    ),
    "llama-yarn": ("llama", {"rope_parameters": {**_STRETCHED, "rope_type": "yarn"}}),
    "llama-yarn-mscale": (
        "llama",
        {
            "head_dim": 16,
            "rope_parameters": {
                **_STRETCHED,
                "rope_type": "yarn",
                "mscale": 2.0,
                "mscale_all_dim": 0.5,
                "beta_fast": 0.5,
                "beta_slow": 0.02,
            },
        },
    ),
    "llama-yarn-attention-factor": (
        "llama",
        {"rope_parameters": {**_STRETCHED, "rope_type": "yarn", "attention_factor": 1.4}},
    ),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-window-off": ("qwen2", {"use_sliding_window": False, "sliding_window": 5, "max_window_layers": 0}),
    "qwen2-window": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1, "num_hidden_layers": 3},
    ),
    "qwen2-layer-types": (
        "qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 3,
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "qwen3": ("qwen3", {"num_key_value_heads": 1}),
    "qwen3-biases": ("qwen3", {"attention_bias": True, "tie_word_embeddings": True, "num_key_value_heads": 4}),
    "qwen3-window": ("qwen3", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "mistral": ("mistral", {"head_dim": 8}),
    "mistral-window": ("mistral", {"sliding_window": 5, "num_key_value_heads": 1, "head_dim": 12}),
    "mistral-window-1": ("mistral", {"sliding_window": 1}),
    "opt": ("opt", {}),
    "opt-post-norm": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 18}),
    "opt-no-bias": ("opt", {"enable_bias": False, "tie_word_embeddings": False, "activation_function": "gelu"}),
    "opt-no-final-norm": ("opt", {"_remove_final_layer_norm": True}),
    "gpt2": ("gpt2", {}),
    "gpt2-options": (
        "gpt2",
        {
            "n_inner": 41,
            "tie_word_embeddings": False,
            "activation_function": "gelu",
            "scale_attn_by_inverse_layer_idx": True,
            "reorder_and_upcast_attn": True,
            "layer_norm_epsilon": 0.01,
        },
    ),
    "gpt2-unscaled": ("gpt2", {"scale_attn_weights": False, "activation_function": "relu"}),
}
CASE_NAMES = tuple(_CASES)


@dataclass(frozen=True, slots=True)
class Case:
    """One model: its name, family, and Hugging Face config."""

    name: str
    family: str
    config: PreTrainedConfig


def case(name: str, **more: Any) -> Case:
    """Return the case of a name in `CASE_NAMES`, with more changes of its config."""
    family, changes = _CASES[name]
    make, _, sizes = _CLASSES[family]
    return Case(name, family, make(**{**sizes, **changes, **more}))


def cases() -> Iterator[tuple[str, PreTrainedConfig]]:
    """Yield (name, Hugging Face config) of every case."""
    for name in CASE_NAMES:
        yield name, case(name).config


def hf_model(name: str, seed: int = 0, **more: Any) -> PreTrainedModel:
    """Return the model of a case in float32 with weights so large that every part of it shows in the logits."""
    found = case(name, **more)
    found.config._attn_implementation = "eager"
    model = _CLASSES[found.family][1](found.config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if any(word in key for word in ("embed", "wte", "wpe", "lm_head")):
                parameter.copy_(0.4 * noise)
            elif parameter.dim() > 1:
                fan_in = parameter.shape[0 if ".c_" in key else -1]  # GPT-2 stores its projections transposed
                parameter.copy_(1.5 * noise / math.sqrt(fan_in))
            else:
                parameter.copy_(0.3 * noise + (0.0 if key.endswith("bias") else 1.0))
    return model


def save_checkpoint(name: str, directory: Path, **options: Any) -> PreTrainedModel:
    """Write a case's `config.json` and safetensors weights; options go to `save_pretrained`. Returns the model."""
    model = hf_model(name)
    model.save_pretrained(directory, **options)
    return model
