"""Small model directories with a config only; weights come from `load_format="dummy"`."""

import json
from pathlib import Path

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 211,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "rope_theta": 10000.0,
}
MISTRAL = {
    **LLAMA,
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "sliding_window": 20,
    "tie_word_embeddings": False,
}
GPT2 = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "vocab_size": 211,
    "n_embd": 36,
    "n_layer": 2,
    "n_head": 3,
    "n_positions": 512,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
}
OPT = {
    "architectures": ["OPTForCausalLM"],
    "model_type": "opt",
    "vocab_size": 211,
    "hidden_size": 36,
    "word_embed_proj_dim": 36,
    "ffn_dim": 52,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 512,
    "activation_function": "relu",
    "do_layer_norm_before": True,
}
FAMILIES = {"llama": LLAMA, "mistral": MISTRAL, "gpt2": GPT2, "opt": OPT}


def write_model(directory: Path, config: dict) -> Path:
    """Write `config.json` and return the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    return directory
