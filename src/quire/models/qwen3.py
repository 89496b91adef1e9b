"""Qwen 3, dense (https://arxiv.org/abs/2505.09388): a gated decoder with RMS norms on each head's queries and keys.

`attention_bias` gives q, k, v and o a bias; windows are Qwen 2's; heads are 128 wide unless `head_dim` says otherwise.
"""

from __future__ import annotations

from dataclasses import replace

from quire.core.model_spec import ModelSpec
from quire.models.config_reader import ConfigReader
from quire.models.gated_config import read_gated_spec
from quire.models.qwen2 import read_qwen_windows

_DEFAULT_HEAD_DIM = 128


def read_spec(reader: ConfigReader, architecture: str, dtype: str) -> ModelSpec:
    """Read a `Qwen3ForCausalLM` config.

    Raises:
        ConfigError: A field cannot be honoured.
    """
    spec = read_gated_spec(reader, "qwen3", architecture, dtype, default_head_dim=_DEFAULT_HEAD_DIM)
    bias = reader.boolean("attention_bias", False)
    windows = read_qwen_windows(reader, spec.num_layers)
    return replace(spec, has_qk_norm=True, qkv_bias=bias, o_bias=bias, sliding_windows=windows)
