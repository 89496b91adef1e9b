"""What the text side of an engine reads from a model's directory: tokenizer, ids that end a text, sampling defaults."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from quire.core.errors import ConfigError, PlanError
from quire.core.model_files import GENERATION_CONFIG
from quire.core.sampling_params import SamplingParams
from quire.tokenizer.tokenizer import Tokenizer

_SAMPLING_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True, slots=True)
class ModelText:
    """The text side of a model.

    Attributes:
        tokenizer: None if the engine runs on ids alone.
        eos_token_ids: Ids that end a sample.
        default_params: From the model's generation_config.json.
    """

    tokenizer: Tokenizer | None
    eos_token_ids: frozenset[int]
    default_params: SamplingParams


def load_model_text(
    directory: Path | None,
    eos_token_ids: Iterable[int],
    tokenizer: str | Path | None = None,
    *,
    skip_tokenizer_init: bool = False,
) -> ModelText:
    """Read the text side of a model.

    Args:
        directory: Where the model's tokenizer and generation defaults are, if anywhere.
        eos_token_ids: Those that the model's config names.
        tokenizer: Directory of another tokenizer.
        skip_tokenizer_init: Run on token ids alone.

    Raises:
        ConfigError: There is no tokenizer.
        PlanError: The tokenizer or the generation config is missing or damaged.
    """
    words = None if skip_tokenizer_init else Tokenizer.from_directory(_tokenizer_directory(directory, tokenizer))
    generation = {} if directory is None else _generation_config(directory / GENERATION_CONFIG)
    eos = {*eos_token_ids, *_eos_ids(generation)}
    if words is not None and words.eos_token_id is not None:
        eos.add(words.eos_token_id)
    return ModelText(words, frozenset(eos), _default_params(generation))


def _tokenizer_directory(directory: Path | None, given: str | Path | None) -> Path:
    found = given or directory
    if found is None:
        raise ConfigError(
            "tokenizer: expected a directory, since the plan was built without one, got None. "
            "Give one, or skip_tokenizer_init=True to work with token ids."
        )
    return Path(found)


def _generation_config(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PlanError(f"{path}: expected a JSON object, got: {error}.") from None


def _eos_ids(generation: Mapping[str, Any]) -> list[int]:
    eos = generation.get("eos_token_id")
    return [eos] if isinstance(eos, int) else [token for token in eos or () if isinstance(token, int)]


def _default_params(generation: Mapping[str, Any]) -> SamplingParams:
    """Return the model's own sampling defaults, as vLLM reads them; greedy if it says not to sample."""
    found = {name: generation[name] for name in _SAMPLING_DEFAULTS if generation.get(name) is not None}
    if generation.get("do_sample") is False:
        found["temperature"] = 0.0
    if isinstance(generation.get("max_new_tokens"), int):
        found["max_tokens"] = generation["max_new_tokens"]
    return SamplingParams(**found)
