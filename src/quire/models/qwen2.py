"""Qwen 1.5, 2 and 2.5 (https://arxiv.org/abs/2407.10671): a gated decoder whose q, k and v have biases.

A sliding window counts only with `use_sliding_window`, and then for the layers from `max_window_layers` on, unless
`layer_types` says which.
"""

from __future__ import annotations

from dataclasses import replace

from quire.core.model_spec import ModelSpec
from quire.models.config_reader import MAX_LAYERS, MAX_POSITIONS, ConfigReader
from quire.models.gated_config import read_gated_spec, read_windows

_DEFAULT_WINDOW = 4096
_DEFAULT_FIRST = 28


def read_spec(reader: ConfigReader, architecture: str, dtype: str) -> ModelSpec:
    """Read a `Qwen2ForCausalLM` config.

    Raises:
        ConfigError: A field cannot be honoured.
    """
    spec = read_gated_spec(reader, "qwen2", architecture, dtype)
    return replace(spec, qkv_bias=True, sliding_windows=read_qwen_windows(reader, spec.num_layers))


def read_qwen_windows(reader: ConfigReader, num_layers: int) -> tuple[int | None, ...]:
    """Read the windows of a Qwen config; see `read_windows`. The defaults are those of transformers."""
    has_window = reader.has("sliding_window")
    window = reader.optional_integer("sliding_window", MAX_POSITIONS) if has_window else _DEFAULT_WINDOW
    first = reader.integer("max_window_layers", MAX_LAYERS, low=0, default=_DEFAULT_FIRST)
    return read_windows(reader, num_layers, window if reader.boolean("use_sliding_window", False) else None, first)
