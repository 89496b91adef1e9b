"""Files of their own beside a plan, which may come and go without it: JSON that carries its format and its hash."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TypeVar

import msgspec

from quire.core.errors import PlanError

T = TypeVar("T", bound=msgspec.Struct)


class _File(msgspec.Struct, forbid_unknown_fields=True):
    quire_format: int
    hash: str
    content: msgspec.Raw


def write_hashed(path: Path, content: msgspec.Struct, file_format: int) -> None:
    """Write a file, and the directory that it is in."""
    body = msgspec.json.encode(content)
    file = _File(file_format, _hash(body), msgspec.Raw(body))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(file), indent=1))


def read_hashed(path: Path, kind: type[T], file_format: int, what: str, hint: str) -> T:
    """Read what `write_hashed` wrote.

    Args:
        path: The file.
        kind: Of its content.
        file_format: Version that is understood.
        what: What the file should hold, for errors.
        hint: How to make it again.

    Raises:
        PlanError: It is missing, damaged, or of another format version.
    """
    try:
        file = msgspec.json.decode(path.read_bytes(), type=_File)
        content = msgspec.json.decode(file.content, type=kind)
    except OSError as error:
        raise PlanError(f"{path}: expected {what}, got: {error.strerror}. {hint}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PlanError(f"{path}: expected {what}, got damaged text: {error}. {hint}") from None
    if file.quire_format != file_format:
        raise PlanError(f"{path}: expected format {file_format}, got {file.quire_format}. {hint}")
    if (got := _hash(msgspec.json.encode(content))) != file.hash:
        raise PlanError(f"{path}: expected hash {file.hash}, got {got}: it was changed or damaged. {hint}")
    return content


def _hash(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
