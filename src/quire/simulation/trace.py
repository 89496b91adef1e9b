"""`read_trace`: requests that somebody else recorded, from JSON lines or a file of conversations."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from quire.core.errors import ConfigError
from quire.simulation.load import PlannedRequest, SyntheticLoad, arrivals

ARRIVAL = {"arrival_s": 1.0, "arrival_time": 1.0, "timestamp": 1e-3}
"""Names of the time of arrival, and its unit in seconds; Mooncake's traces have milliseconds."""
PROMPT = ("prompt_tokens", "num_prompt_tokens", "input_length", "prompt_len", "input_tokens")
OUTPUT = ("output_tokens", "num_output_tokens", "output_length", "output_len", "completion_tokens")
CONTENT, CONTENT_TOKENS = "hash_ids", 512
"""Mooncake's names of what a prompt consists of, each of so many tokens (https://arxiv.org/abs/2407.00079)."""

_MOST_CONTENT = 1 << 38  # with 2**24 tokens each, ids stay below 2**63

CountTokens = Callable[[str], int]


def read_trace(path: Path, load: SyntheticLoad, count_tokens: CountTokens) -> list[PlannedRequest]:
    """Return the requests of a file.

    Lines are JSON objects with an arrival (`ARRIVAL`), the tokens of prompt and output (`PROMPT`, `OUTPUT`), and
    perhaps `hash_ids`. A text may stand in place of tokens, as "prompt" or in "conversations" of [{"from", "value"},
    ...], whose first two turns are prompt and output: ShareGPT's form, also as one JSON list.

    Args:
        path: The file.
        load: When requests come, where the file does not say it.
        count_tokens: Returns how many tokens a text has.

    Raises:
        ConfigError: The file cannot be read, or a record lacks something; the message names it.
    """
    records = _records(path)
    given = [_arrival(record) for record in records]
    if any(when is None for when in given) and any(when is not None for when in given):
        missing = given.index(None) + 1
        raise ConfigError(f"{path}: expected an arrival in all records or in none, got none in record {missing}.")
    first_s = min((when for when in given if when is not None), default=0.0)
    drawn = arrivals(replace(load, num_requests=len(records), duration_s=None), random.Random(load.seed))
    planned = []
    for number, (record, when) in enumerate(zip(records, given, strict=True), 1):
        due_s = next(drawn) if when is None else when - first_s
        try:
            planned.append(_planned(record, due_s, count_tokens))
        except ValueError as error:
            raise ConfigError(f"{path}, record {number}: {error}") from None
    return planned


def _records(path: Path) -> list[Mapping[str, Any]]:
    try:
        data = path.read_bytes()
        if data.lstrip()[:1] == b"[":
            found = msgspec.json.decode(data)
        else:
            found = [msgspec.json.decode(line) for line in data.splitlines() if line.strip()]
    except OSError as error:
        raise ConfigError(f"trace: expected a file of JSON lines, got {path}: {error.strerror}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: expected JSON lines or one JSON list, got: {error}.") from None
    wrong = next((i for i, record in enumerate(found, 1) if not isinstance(record, dict)), None)
    if wrong is not None or not found:
        raise ConfigError(f"{path}: expected JSON objects, got {f'none in record {wrong}' if wrong else 'no record'}.")
    return list(found)


def _arrival(record: Mapping[str, Any]) -> float | None:
    for name, unit in ARRIVAL.items():
        if isinstance(when := record.get(name), (int, float)):
            return float(when) * unit
    return None


def _planned(record: Mapping[str, Any], due_s: float, count_tokens: CountTokens) -> PlannedRequest:
    """Return a record as a request; raises ValueError where something is missing."""
    texts = _texts(record)
    prompt, output = (
        _tokens(record, names, texts[i] if i < len(texts) else None, count_tokens)
        for i, names in enumerate((PROMPT, OUTPUT))
    )
    contents = record.get(CONTENT) or ()
    if not all(isinstance(each, int) and 0 <= each < _MOST_CONTENT for each in contents):
        raise ValueError(f"{CONTENT}: expected a list of numbers in [0, {_MOST_CONTENT}), got {contents!r}.")
    return PlannedRequest(due_s, prompt, output, tuple((content, CONTENT_TOKENS) for content in contents))


def _tokens(record: Mapping[str, Any], names: Sequence[str], text: str | None, count_tokens: CountTokens) -> int:
    found = next((record[name] for name in names if name in record), None)
    if found is None and text is not None:
        found = max(1, count_tokens(text))
    if not isinstance(found, int) or found < 1:
        raise ValueError(f"expected one of {', '.join(names)} of at least 1, got {found!r}.")
    return found


def _texts(record: Mapping[str, Any]) -> list[str]:
    """Return the texts of prompt and output, as far as there are some."""
    turns = record.get("conversations")
    if isinstance(turns, list):
        return [str(turn.get("value", "")) for turn in turns if isinstance(turn, dict)][:2]
    return [record["prompt"]] if isinstance(record.get("prompt"), str) else []
