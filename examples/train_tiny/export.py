"""Write the trained model as a Hugging Face checkpoint folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from examples.train_tiny.model import TinyConfig, TinyLlama
from examples.train_tiny.text.chat_format import BOS, EOS, IM_END, PAD
from examples.train_tiny.tokenizer import write_json, write_tokenizer


def model_config(config: TinyConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """The contents of `config.json`, in the names that Llama checkpoints on the hub use."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": tokenizer.token_to_id(BOS),
        "eos_token_id": tokenizer.token_to_id(EOS),
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": config.initializer_range,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_kv_heads,
        "pad_token_id": tokenizer.token_to_id(PAD),
        "pretraining_tp": 1,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_scaling": None,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }


def generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """The contents of `generation_config.json`; a turn of a chat ends like a text does."""
    return {
        "bos_token_id": tokenizer.token_to_id(BOS),
        "eos_token_id": [tokenizer.token_to_id(EOS), tokenizer.token_to_id(IM_END)],
        "pad_token_id": tokenizer.token_to_id(PAD),
        "do_sample": True,
        "temperature": 0.8,
        "top_p": 0.95,
    }


def export(model: TinyLlama, tokenizer: Tokenizer, folder: Path) -> None:
    """Write weights in bfloat16, configuration and tokenizer into `folder`.

    The weights are replaced in one move, so a reader never sees half a file.

    Args:
        model: The model; its embedding is stored once and serves as output projection too.
        tokenizer: The tokenizer it was trained with.
        folder: An existing folder; files of the same names are replaced.
    """
    weights = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}
    unfinished = folder / "model.safetensors.new"
    save_file(weights, unfinished, metadata={"format": "pt"})
    unfinished.chmod(0o644)
    unfinished.replace(folder / "model.safetensors")
    write_json(folder / "config.json", model_config(model.config, tokenizer))
    write_json(folder / "generation_config.json", generation_config(tokenizer))
    write_tokenizer(tokenizer, folder, model.config.max_position_embeddings)
