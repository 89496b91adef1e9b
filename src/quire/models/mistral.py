"""Mistral 7B and its kin (Jiang et al. 2023, https://arxiv.org/abs/2310.06825): a gated decoder without biases.

With a `sliding_window`, every layer has it; null switches it off, and a config without the key means 4096.
"""

from __future__ import annotations

from dataclasses import replace

from quire.core.model_spec import ModelSpec
from quire.models.config_reader import MAX_POSITIONS, ConfigReader
from quire.models.gated_config import read_gated_spec, read_windows

_DEFAULT_WINDOW = 4096


def read_spec(reader: ConfigReader, architecture: str, dtype: str) -> ModelSpec:
    """Read a `MistralForCausalLM` config.

    Raises:
        ConfigError: A field cannot be honoured.
    """
    spec = read_gated_spec(reader, "mistral", architecture, dtype)
    has_window = reader.has("sliding_window")
    window = reader.optional_integer("sliding_window", MAX_POSITIONS) if has_window else _DEFAULT_WINDOW
    windows = read_windows(reader, spec.num_layers, window, 0)
    if windows != ((window,) * spec.num_layers if window else ()):
        reader.fail("layer_types", "one type for all layers, as sliding_window says")
    return replace(spec, sliding_windows=windows)
