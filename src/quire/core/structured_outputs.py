"""`StructuredOutputsParams`: what a generated text must look like, checked as far as its size and form go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from quire.core.errors import RequestError

MAX_CHARS = 1 << 16
"""Of a schema, a regular expression, a grammar, or all choices together."""
MAX_DEPTH = 64
"""Of objects and arrays inside each other in a schema."""
_KINDS = ("json", "regex", "choice", "grammar", "json_object")


@dataclass(frozen=True, slots=True)
class StructuredOutputsParams:
    """The form of a generated text: exactly one field is given. Names are vLLM's.

    Args:
        json: A JSON schema, as an object or as text; afterwards its text.
        regex: A regular expression that the whole text matches; linear-time syntax, without look-around.
        choice: Texts of which one is generated.
        grammar: A grammar in Lark's syntax, or in GBNF (`root ::= ...`), for the whole text.
        json_object: True asks for any JSON object.

    Raises:
        RequestError: Not exactly one is given, or it is too large, too deep or not of its type.
    """

    json: str | Mapping[str, Any] | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None

    def __post_init__(self) -> None:
        given = [name for name in _KINDS if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            raise RequestError(
                f"structured_outputs: expected exactly one of {', '.join(_KINDS)}, got {', '.join(given) or 'none'}."
            )
        if self.json is not None:
            object.__setattr__(self, "json", _schema_text(self.json))
        if self.choice is not None:
            object.__setattr__(self, "choice", _choices(self.choice))
        for name in ("regex", "grammar"):
            if getattr(self, name) is not None:
                _check_text(name, getattr(self, name))
        if self.json_object not in (None, True, False):
            raise _unexpected("json_object", "true or false", self.json_object)

    @property
    def kind(self) -> str:
        """The name of the field that is given."""
        return next(name for name in _KINDS if getattr(self, name) not in (None, False))


def _unexpected(name: str, expected: str, got: object) -> RequestError:
    return RequestError(f"structured_outputs.{name}: expected {expected}, got {str(got)[:80]!r}.")


def _check_text(name: str, text: object) -> None:
    if not isinstance(text, str) or not text:
        raise _unexpected(name, "non-empty text", text)
    if len(text) > MAX_CHARS:
        raise _unexpected(name, f"at most {MAX_CHARS} characters", f"{len(text)} characters")


def _choices(choices: object) -> tuple[str, ...]:
    if isinstance(choices, str) or not isinstance(choices, Sequence) or not choices:
        raise _unexpected("choice", "a list of texts", choices)
    for choice in choices:
        _check_text("choice", choice)
    _check_text("choice", "".join(choices))
    return tuple(dict.fromkeys(choices))


def _schema_text(schema: object) -> str:
    """Return a schema as compact JSON."""
    try:
        value = msgspec.json.decode(schema) if isinstance(schema, str) else schema
        text = msgspec.json.encode(value).decode()
    except (msgspec.DecodeError, RecursionError, TypeError, UnicodeEncodeError):
        raise _unexpected("json", "a JSON schema", schema) from None
    _check_text("json", text)
    if not isinstance(value, Mapping):
        raise _unexpected("json", "a JSON schema that is an object", value)
    _check_depth(value)
    return text


def _check_depth(schema: object) -> None:
    level: list[object] = [schema]
    for _ in range(MAX_DEPTH):
        values = [list(item.values()) if isinstance(item, Mapping) else item for item in level]
        level = [v for items in values if isinstance(items, list) for v in items if isinstance(v, (Mapping, list))]
        if not level:
            return
    raise _unexpected("json", f"a schema at most {MAX_DEPTH} levels deep", "more")
