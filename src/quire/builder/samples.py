"""Token ids to calibrate and evaluate a quantized network on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from quire.core.config import BuildConfig
from quire.core.errors import ConfigError
from quire.core.model_files import TOKENIZER_FILES
from quire.core.model_spec import ServingSpec
from quire.quantization.text import CalibrationSamples, hold_some_out, random_samples, read_samples


def calibration_samples(directory: Path | None, spec: ServingSpec, config: BuildConfig) -> CalibrationSamples:
    """Return samples of text; of random ids for a model without a tokenizer, unless a text was given.

    Args:
        directory: Where the tokenizer is, if there is one.
        spec: The model's numbers.
        config: Which text, how many samples, how long.

    Raises:
        ConfigError: The text cannot be read or is too short, or there is no tokenizer for it.
        PlanError: The tokenizer is damaged.
    """
    count, length = config.num_calibration_samples, min(config.calibration_length, spec.max_position_embeddings)
    has_tokenizer = directory is not None and any(next(directory.glob(pattern), None) for pattern in TOKENIZER_FILES)
    if not has_tokenizer and config.calibration is None:
        return random_samples(spec.vocab_size, num_samples=count, length=length, seed=config.seed)
    if directory is None:
        raise ConfigError(f"calibration: expected a tokenizer to read {config.calibration} with, got none.")
    from quire.tokenizer.tokenizer import Tokenizer  # late: only calibration needs one

    tokenizer = Tokenizer.from_directory(directory)
    opening = tokenizer.encode("")[:1]
    first_ids = opening if opening == [tokenizer.bos_token_id] else []

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    return read_samples(config.calibration, encode, num_samples=count, length=length, first_ids=first_ids)


def samples_of_ids(samples: Sequence[Sequence[int]], spec: ServingSpec, config: BuildConfig) -> CalibrationSamples:
    """Return samples that were given as token ids; every sixth, or the last of fewer, is held out.

    Args:
        samples: Token ids of each.
        spec: The model's numbers.
        config: How many to calibrate on at most.

    Raises:
        ConfigError: There are fewer than two, one is too short or too long, an id is not in the vocabulary, or a text
            was named, too.
    """
    if config.calibration is not None:
        raise ConfigError(f"calibration: expected None, since samples are given, got {config.calibration!r}.")
    if len(samples) < 2:
        raise ConfigError(f"samples: expected at least two, to calibrate and to evaluate on, got {len(samples)}.")
    for index, sample in enumerate(samples):
        if not 2 <= len(sample) <= spec.max_position_embeddings:
            raise ConfigError(f"samples[{index}]: expected 2 to {spec.max_position_embeddings} ids, got {len(sample)}.")
        wrong = next((token for token in sample if not is_token(token, spec.vocab_size)), None)
        if wrong is not None:
            raise ConfigError(f"samples[{index}]: expected ids in [0, {spec.vocab_size}), got {wrong!r}.")
    return hold_some_out(samples, config.num_calibration_samples, "token ids given")


def is_token(token: object, vocab_size: int) -> bool:
    """Return whether a value is an id in the vocabulary."""
    return isinstance(token, int) and not isinstance(token, bool) and 0 <= token < vocab_size
