"""Calibration text: the user's file or the built-in one, cut into samples of token ids, some of them held out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

import quire
from quire.core.errors import ConfigError
from quire.quantization.walk import Samples

BUILT_IN = Path(quire.__file__).parent / "assets" / "calibration.txt"
"""Stories, essays, letters and facts in plain English, made for this package: about 160,000 characters."""

_HELD_OUT_ONE_IN = 6
_MOST_HELD_OUT_TOKENS = 8192
_MOST_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class CalibrationSamples:
    """Token ids to calibrate and to evaluate on; no sample is in both.

    Attributes:
        calibration: Token ids per sample.
        held_out: Token ids per sample.
        origin: Where they are from, for the report.
    """

    calibration: Samples
    held_out: Samples
    origin: str


def read_samples(
    path: str | None,
    encode: Callable[[str], Sequence[int]],
    *,
    num_samples: int,
    length: int,
    first_ids: Sequence[int] = (),
) -> CalibrationSamples:
    """Cut a text into samples.

    Args:
        path: A text file, or a JSONL file whose lines hold their text under "text"; None is the built-in text.
        encode: Text to token ids, without special tokens.
        num_samples: Most calibration samples, spread evenly over the text.
        length: Tokens in a sample; shorter where the text does not hold a dozen of that length.
        first_ids: What every sample starts with, usually the id that opens a text.

    Raises:
        ConfigError: The file cannot be read, or holds too little text.
    """
    ids = [token for document in _documents(path) for token in encode(document)]
    size = min(length, len(ids) // (2 * _HELD_OUT_ONE_IN)) - len(first_ids)
    if size < 2:
        raise ConfigError(f"calibration: expected at least a few hundred tokens of text in {path}, got {len(ids)}.")
    pieces = [[*first_ids, *ids[i : i + size]] for i in range(0, len(ids) - size + 1, size)]
    return hold_some_out(pieces, num_samples, path or "built-in text")


def hold_some_out(pieces: Samples, num_samples: int, origin: str) -> CalibrationSamples:
    """Return samples with every sixth, or the last of fewer, held out for the evaluation.

    Args:
        pieces: At least two samples.
        num_samples: Most calibration samples, spread evenly.
        origin: Where they are from.
    """
    chosen = set(range(_HELD_OUT_ONE_IN - 1, len(pieces), _HELD_OUT_ONE_IN)) or {len(pieces) - 1}
    held_out = [piece for i, piece in enumerate(pieces) if i in chosen]
    rest = [piece for i, piece in enumerate(pieces) if i not in chosen]
    most = max(1, _MOST_HELD_OUT_TOKENS // max(map(len, pieces)))
    return CalibrationSamples(_spread(rest, num_samples), _spread(held_out, most), origin)


def random_samples(vocab_size: int, *, num_samples: int, length: int, seed: int) -> CalibrationSamples:
    """Return samples of random ids, for a model without a tokenizer."""
    state, samples = seed & 0xFFFFFFFF, []
    num_held_out = max(1, min(_MOST_HELD_OUT_TOKENS // length, num_samples))
    for _ in range(num_samples + num_held_out):
        sample = []
        for _ in range(length):
            state = (1664525 * state + 1013904223) & 0xFFFFFFFF  # Numerical Recipes' linear congruential generator
            sample.append((state >> 8) % vocab_size)
        samples.append(sample)
    return CalibrationSamples(samples[:num_samples], samples[num_samples:], "random token ids (no tokenizer)")


def _spread(samples: Samples, count: int) -> Samples:
    """Return at most `count` samples, evenly spread."""
    if len(samples) <= count:
        return samples
    return [samples[i * len(samples) // count] for i in range(count)]


def _documents(path: str | None) -> list[str]:
    file = Path(path) if path else BUILT_IN
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise ConfigError(f"calibration: expected at most {_MOST_BYTES} bytes of text, got {file.stat().st_size}.")
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"calibration: expected a readable text file, got {path}: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"calibration: expected UTF-8 text in {path}, got {error.reason} at {error.start}.") from None
    if file.suffix.lower() not in (".jsonl", ".ndjson"):
        return [text]
    return [_text_of(line, i, file) for i, line in enumerate(text.splitlines(), 1) if line.strip()]


class _Line(msgspec.Struct):
    text: str


def _text_of(line: str, number: int, file: Path) -> str:
    try:
        return msgspec.json.decode(line, type=_Line).text
    except msgspec.DecodeError as error:
        raise ConfigError(f'calibration: expected {{"text": ...}} in line {number} of {file}, got: {error}.') from None
