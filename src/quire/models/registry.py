"""The one table of architectures, and the room's door: config -> `ModelSpec` -> `Network`, checkpoint names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from quire.core.config import DTYPES, choice
from quire.core.errors import ConfigError, did_you_mean
from quire.core.model_spec import DTYPE_BYTES, ModelSpec
from quire.graph.network import Network
from quire.models import gated_decoder, gpt2, llama, mistral, opt, qwen2, qwen3
from quire.models.config_reader import ConfigReader
from quire.models.quantized import read_quantization


@dataclass(frozen=True, slots=True)
class CheckpointNames:
    """How the tensors of a family's checkpoints are named.

    Attributes:
        prefixes: (prefix in a checkpoint, prefix in the network); the first that fits is replaced.
        ignored: Regular expressions of whole canonical names of tensors that the network does not need.
    """

    prefixes: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()

    def canonical(self, stored: str) -> str | None:
        """Return the network's name of a tensor by its name in a checkpoint, None if it is to be ignored."""
        found = next((pair for pair in self.prefixes if stored.startswith(pair[0])), ("", ""))
        name = found[1] + stored[len(found[0]) :]
        return None if any(re.fullmatch(pattern, name) for pattern in self.ignored) else name


@dataclass(frozen=True, slots=True)
class Family:
    """One file of this room.

    Attributes:
        read_spec: (reader, architecture, dtype) to the model's numbers.
        define_network: Numbers to network.
        names: Names in its checkpoints.
    """

    read_spec: Callable[[ConfigReader, str, str], ModelSpec]
    define_network: Callable[[ModelSpec], Network]
    names: CheckpointNames


_GATED = CheckpointNames(gated_decoder.PREFIXES, gated_decoder.IGNORED)

FAMILIES: dict[str, Family] = {
    "gpt2": Family(gpt2.read_spec, gpt2.define_network, CheckpointNames(gpt2.PREFIXES, gpt2.IGNORED)),
    "llama": Family(llama.read_spec, gated_decoder.define_network, _GATED),
    "mistral": Family(mistral.read_spec, gated_decoder.define_network, _GATED),
    "opt": Family(opt.read_spec, opt.define_network, CheckpointNames(opt.PREFIXES, opt.IGNORED)),
    "qwen2": Family(qwen2.read_spec, gated_decoder.define_network, _GATED),
    "qwen3": Family(qwen3.read_spec, gated_decoder.define_network, _GATED),
}

ARCHITECTURES: dict[str, str] = {
    "GPT2LMHeadModel": "gpt2",
    "LLaMAForCausalLM": "llama",
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "OPTForCausalLM": "opt",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
"""Name in `config.json` to family."""


def read_spec(config: Mapping[str, Any], dtype: str = "auto") -> ModelSpec:
    """Read a Hugging Face `config.json`, written by transformers 4 or 5.

    Args:
        config: Its JSON object.
        dtype: Of weights, activations and KV cache. "auto" takes the config's own, and float32 where it has none:
            float32 checkpoints are not rounded unless asked for.

    Returns:
        The model's numbers.

    Raises:
        ConfigError: The architecture is unknown, a field is missing or cannot be honoured, or a key is not understood.
    """
    reader = ConfigReader(config)
    architecture = _architecture(reader)
    read_quantization(reader)
    family = FAMILIES[ARCHITECTURES[architecture]]
    spec = family.read_spec(reader, architecture, _dtype(reader, dtype))
    reader.finish()
    return spec


def _architecture(reader: ConfigReader) -> str:
    names = reader.strings("architectures") or ()
    if not names or names[0] not in ARCHITECTURES:
        hint = did_you_mean(names[0], ARCHITECTURES) if names else ""
        reader.fail("architectures", f"one of {', '.join(ARCHITECTURES)}", hint)
    return names[0]


def _dtype(reader: ConfigReader, wanted: str) -> str:
    """Return the dtype to use; the config's is called `dtype` in transformers 5 and `torch_dtype` in 4."""
    choice("dtype", wanted, DTYPES)
    if wanted != "auto":
        reader.ignore("dtype", "torch_dtype")
        return wanted
    names = {name: name for name in DTYPE_BYTES}
    legacy = reader.choice("torch_dtype", names, "float32")
    return reader.choice("dtype", names, legacy)


def define_network(spec: ModelSpec) -> Network:
    """Define the network of a model.

    Inputs, in order: `input_ids`, `positions`, `slot_mapping`, `block_table`, `seq_lens`, `query_start_loc`, and
    `kv_cache.<layer>` of every layer. Output: `logits` [num_tokens, vocab_size], dtype `spec.dtype`.

    Raises:
        ConfigError: The family is not known here.
    """
    return _family(spec).define_network(spec)


def checkpoint_names(spec: ModelSpec) -> CheckpointNames:
    """Return how the tensors of a model's checkpoint are named; with tied embeddings, a stored copy is ignored.

    Raises:
        ConfigError: The family is not known here.
    """
    names = _family(spec).names
    return replace(names, ignored=(*names.ignored, r"lm_head\.weight")) if spec.tie_word_embeddings else names


def _family(spec: ModelSpec) -> Family:
    if spec.family not in FAMILIES:
        hint = did_you_mean(spec.family, FAMILIES)
        raise ConfigError(f"model family: expected one of {', '.join(FAMILIES)}, got {spec.family!r}.{hint}")
    return FAMILIES[spec.family]
