"""A body's bytes become a typed request, with a list of what was ignored; or an answer that says what is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from quire.server.errors import invalid, not_honoured
from quire.server.http.limits import Limits

T = TypeVar("T", bound=msgspec.Struct)

_MAX_FIELDS = 1000
_MAX_WARNINGS = 20
_MAX_NAME_CHARS = 64

# msgspec's texts that are turned into ours; anything else becomes the last sentence of `_wrong`.
_PATH = re.compile(r" - at `\$\.?([^`]*)`$")
_TYPES = re.compile(r"Expected `([a-z |]+)`, got `([a-z]+)`$")
_BOUND = re.compile(r"Expected `(int|float)` (<=|>=|<|>) (-?[\d.e+]+)$")
_LENGTH = re.compile(r"Expected `(str|array|object)` of length (<=|>=|==) (\d+)$")
_MISSING = re.compile(r"Object missing required field `(\w+)`$")
_WORDS = {"str": "text", "int": "an integer", "float": "a number", "bool": "true or false", "array": "a list",
          "object": "an object", "null": "null"}  # fmt: skip


def decode(body: bytes, kind: type[T], ignored: Mapping[str, tuple[Any, ...]], limits: Limits) -> tuple[T, list[str]]:
    """Decode a JSON body.

    Args:
        body: JSON.
        kind: Its type.
        ignored: Known fields that are not honoured: the values under which that makes no difference.
        limits: Of JSON.

    Returns:
        The request, and a sentence for each field that was not known.

    Raises:
        ApiError: 400.
    """
    raw = parse(body, limits)
    if not isinstance(raw, dict):
        raise invalid(f"body: expected a JSON object, got {_word(raw)}.", "body")
    if len(raw) > _MAX_FIELDS:
        raise invalid(f"body: expected at most {_MAX_FIELDS} fields, got {len(raw)}.", "body")
    for name, values in ignored.items():
        if name in raw and not any(raw[name] == value and type(raw[name]) is type(value) for value in values):
            raise not_honoured(name, " or ".join(_shown(value) for value in values))
    try:
        request = msgspec.convert({k: v for k, v in raw.items() if k not in ignored}, kind)
    except (msgspec.ValidationError, OverflowError, RecursionError) as error:
        raise _wrong(str(error)) from None
    known = {*kind.__struct_encode_fields__, *ignored}
    unknown = [name for name in raw if name not in known]
    return request, _warnings([*unknown, *_nested(raw, request)])


def parse(body: bytes, limits: Limits) -> Any:
    """Return JSON as plain values.

    Args:
        body: JSON.
        limits: Of JSON.

    Raises:
        ApiError: It is not JSON, holds a number that no field could hold, or is nested too deep.
    """
    max_depth, num_brackets = limits.max_json_depth, body.count(b"[") + body.count(b"{")
    if num_brackets > limits.max_json_brackets:
        raise invalid(
            f"body: expected at most {limits.max_json_brackets} opening brackets, got {num_brackets}.", "body"
        )
    try:
        value = msgspec.json.decode(body)
    except RecursionError:
        raise _too_deep(max_depth) from None
    except UnicodeDecodeError:
        raise invalid("body: expected UTF-8, got other bytes.", "body", "invalid_json") from None
    except msgspec.ValidationError:
        raise invalid("body: expected numbers in the range of 64 bits, got a larger one.", "body") from None
    except (msgspec.DecodeError, ValueError):
        raise invalid("body: expected JSON, got something else or a part of it.", "body", "invalid_json") from None
    if num_brackets > max_depth and _is_deeper(value, max_depth):
        raise _too_deep(max_depth)
    return value


def _too_deep(max_depth: int) -> Exception:
    return invalid(f"body: expected JSON nested at most {max_depth} deep, got more.", "body", "invalid_json")


def _is_deeper(value: Any, max_depth: int) -> bool:
    level = [value]
    for _ in range(max_depth):
        level = [item for parent in level for item in _children(parent)]
        if not level:
            return False
    return any(isinstance(item, (dict, list)) for item in level)


def _children(value: Any) -> list[Any]:
    """Return the lists and objects in a list or object."""
    items: Iterable[Any] = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [item for item in items if isinstance(item, (dict, list))]


def _wrong(text: str) -> Exception:
    """Return our own words for a ValidationError of msgspec."""
    found = _PATH.search(text)
    path = re.sub(r"\[\.\.\.\]", "", found[1])[:200] if found else ""
    text = _PATH.sub("", text)
    if match := _MISSING.match(text):
        name = f"{path}.{match[1]}" if path else match[1]
        return invalid(f"{name}: expected a value, got none; it is required.", name, "missing_required_parameter")
    name = path or "body"
    if match := _TYPES.match(text):
        kinds = " or ".join(_WORDS.get(kind, kind) for kind in match[1].split(" | "))
        return invalid(f"{name}: expected {kinds}, got {_WORDS.get(match[2], match[2])}.", name, "invalid_type")
    if match := _BOUND.match(text):
        return invalid(f"{name}: expected a number {match[2]} {match[3]}, got another.", name, "invalid_value")
    if match := _LENGTH.match(text):
        return invalid(f"{name}: expected a length {match[2]} {match[3]}, got another.", name, "invalid_value")
    return invalid(f"{name}: expected a value that /docs lists, got another.", name, "invalid_value")


def _nested(raw: Any, made: Any, path: str = "") -> list[str]:
    """Return the names of unknown fields below the first level."""
    found: list[str] = []
    if isinstance(made, msgspec.Struct) and isinstance(raw, dict):
        known = made.__struct_encode_fields__
        tag = made.__struct_config__.tag_field
        if path:
            found += [f"{path}.{name}" for name in raw if name not in known and name != tag]
        for name in known:
            if isinstance(raw.get(name), (dict, list)):
                found += _nested(raw[name], getattr(made, name), f"{path}.{name}" if path else name)
    elif isinstance(made, list) and made and isinstance(made[0], msgspec.Struct):
        for index, (item, converted) in enumerate(zip(raw, made, strict=True)):
            found += _nested(item, converted, f"{path}[{index}]")
    return found


def _warnings(names: list[str]) -> list[str]:
    shown = [f"{_printable(name)}: unknown field, ignored." for name in names[:_MAX_WARNINGS]]
    return shown + (
        [f"{len(names) - _MAX_WARNINGS} more unknown fields, ignored."] if len(names) > _MAX_WARNINGS else []
    )


def _printable(name: str) -> str:
    return "".join(c if c.isprintable() else "\ufffd" for c in name[:_MAX_NAME_CHARS])


def _word(value: Any) -> str:
    kind = {dict: "object", list: "array", str: "str", bool: "bool", int: "int", float: "float"}.get(
        type(value), "null"
    )
    return _WORDS[kind]


def _shown(value: Any) -> str:
    return "nothing" if value is None else msgspec.json.encode(value).decode()
