"""Llama 1, 2 and 3 (Touvron et al. 2023, https://arxiv.org/abs/2302.13971): the plain gated decoder.

`attention_bias` gives q, k, v and o a bias, `mlp_bias` the MLP; heads may have a width of their own (`head_dim`).
"""

from __future__ import annotations

from dataclasses import replace

from quire.core.model_spec import ModelSpec
from quire.models.config_reader import ConfigReader
from quire.models.gated_config import read_gated_spec, read_windows


def read_spec(reader: ConfigReader, architecture: str, dtype: str) -> ModelSpec:
    """Read a `LlamaForCausalLM` config.

    Raises:
        ConfigError: A field cannot be honoured.
    """
    spec = read_gated_spec(reader, "llama", architecture, dtype)
    reader.expect("pretraining_tp", 1, ", since sliced projections only emulate an old rounding")
    read_windows(reader, spec.num_layers, None, 0)
    bias = reader.boolean("attention_bias", False)
    return replace(spec, qkv_bias=bias, o_bias=bias, mlp_bias=reader.boolean("mlp_bias", False))
