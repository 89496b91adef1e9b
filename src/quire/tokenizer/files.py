"""Readers of a tokenizer's files that say what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from quire.core.errors import PlanError
from quire.core.model_files import MERGES_TXT, SENTENCEPIECE_MODEL, TOKENIZER_JSON, VOCAB_JSON

_NEXT_STEP = "Download or copy the checkpoint's tokenizer files again."


def file_error(path: Path, expected: str, got: str) -> PlanError:
    """Return the error for a tokenizer file that is missing or damaged, to be raised by the caller."""
    return PlanError(f"{path}: expected {expected}, got {got}. {_NEXT_STEP}")


def vocabulary_of(directory: Path) -> str:
    """Return which vocabulary file is used: `TOKENIZER_JSON`, `VOCAB_JSON` or `SENTENCEPIECE_MODEL`, in that order.

    Raises:
        PlanError: The directory does not exist, or none is there, or `vocab.json` lacks its merges.
    """
    if not directory.is_dir():
        raise file_error(directory, "a local directory with tokenizer files", "no such directory")
    for name in (TOKENIZER_JSON, VOCAB_JSON, SENTENCEPIECE_MODEL):
        if (directory / name).is_file():
            if name == VOCAB_JSON and not (directory / MERGES_TXT).is_file():
                raise file_error(directory / MERGES_TXT, f"the merges that belong to {VOCAB_JSON}", "no such file")
            return name
    wanted = f"{TOKENIZER_JSON}, {VOCAB_JSON} with {MERGES_TXT}, or {SENTENCEPIECE_MODEL}"
    raise file_error(directory, wanted, "none of them")


def read_bytes(path: Path) -> bytes:
    """Return a file's bytes.

    Raises:
        PlanError: It cannot be read, or is empty.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise file_error(path, "a readable file", f"the system's error {error.errno}") from error
    if not data:
        raise file_error(path, "a tokenizer file", "an empty file")
    return data


def read_text(path: Path) -> str:
    """Return a file's UTF-8 text.

    Raises:
        PlanError: It cannot be read, is empty, or is not UTF-8.
    """
    data = read_bytes(path)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise file_error(path, "UTF-8 text", f"an invalid byte at offset {error.start}") from error


def read_json(path: Path, *, missing_ok: bool = False) -> dict[str, Any]:
    """Return the JSON object in a file, `{}` for a missing file if `missing_ok`.

    Raises:
        PlanError: It cannot be read, is not JSON, or is not an object.
    """
    if missing_ok and not path.is_file():
        return {}
    text = read_text(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise file_error(path, "a JSON object", f"text that is not JSON{where}") from error
    if not isinstance(value, dict):
        raise file_error(path, "a JSON object", f"a JSON {type(value).__name__}")
    return value
