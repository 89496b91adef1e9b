"""A Plan and the text side of its model become an `LLMEngine`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from quire.core.config import EngineConfig
from quire.core.sampling_params import SamplingParams
from quire.engine.llm_engine import LLMEngine
from quire.engine.model_text import load_model_text
from quire.plan.plan import Plan
from quire.tokenizer.tokenizer import Tokenizer


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
    text = load_model_text(plan.directory, plan.spec.eos_token_ids, tokenizer, skip_tokenizer_init=skip_tokenizer_init)
    engine = LLMEngine(plan, config, text.tokenizer, text.eos_token_ids, on_progress)
    return LoadedEngine(engine, text.tokenizer, text.default_params)
