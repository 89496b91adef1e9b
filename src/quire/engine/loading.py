"""A Plan, its tokenizer and its generation defaults become an `LLMEngine`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from quire.core.config import EngineConfig
from quire.core.errors import ConfigError, PlanError
from quire.core.model_files import GENERATION_CONFIG
from quire.core.sampling_params import SamplingParams
from quire.engine.llm_engine import LLMEngine
from quire.plan.plan import Plan
from quire.tokenizer.tokenizer import Tokenizer

_SAMPLING_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """An engine and what the doors need beside it.

    Attributes:
        engine: Ready for requests.
        tokenizer: None if the engine runs on ids alone.
        default_params: From the model's generation_config.json.
    """

    engine: LLMEngine
    tokenizer: Tokenizer | None
    default_params: SamplingParams


def load_engine(
    plan: Plan,
    config: EngineConfig,
    tokenizer: str | Path | None = None,
    *,
    skip_tokenizer_init: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> LoadedEngine:
    """Load a Plan.

    Args:
        plan: What to execute.
        config: How.
        tokenizer: Directory of another tokenizer; None takes the Plan's own.
        skip_tokenizer_init: Run on token ids alone.
        on_progress: Called with the number of weights loaded so far.

    Raises:
        ConfigError: There is no tokenizer.
        PlanError: The tokenizer, the generation config or a weight is missing or damaged.
    """
    words = None if skip_tokenizer_init else Tokenizer.from_directory(_tokenizer_directory(plan, tokenizer))
    generation = {} if plan.directory is None else _generation_config(plan.directory / GENERATION_CONFIG)
    eos = {*plan.spec.eos_token_ids, *_eos_ids(generation)}
    if words is not None and words.eos_token_id is not None:
        eos.add(words.eos_token_id)
    engine = LLMEngine(plan, config, words, frozenset(eos), on_progress)
    return LoadedEngine(engine, words, _default_params(generation))


def _tokenizer_directory(plan: Plan, given: str | Path | None) -> Path:
    if given is None and plan.directory is None:
        raise ConfigError(
            "tokenizer: expected a directory, since the plan was built without one, got None. "
            "Give one, or skip_tokenizer_init=True to work with token ids."
        )
    return Path(given or plan.directory)  # type: ignore[arg-type]


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
