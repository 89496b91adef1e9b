"""How models write tool calls, as a table; parser and grammar follow it."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from quire.core.errors import ConfigError, did_you_mean


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """One way to write calls, each a JSON object with a name and arguments.

    Attributes:
        name: Its name.
        opening: What announces calls.
        closing: What follows each call.
        separator: What may stand between calls without another `opening`, empty if nothing may.
        is_list: The calls are elements of a JSON array.
        is_bare: At the very beginning of an answer `opening` may be missing; some models leave it out, and where it is
            a special token it is no text.
        arguments_key: Name of the arguments in the object.
    """

    name: str
    opening: str
    closing: str
    separator: str
    is_list: bool
    is_bare: bool
    arguments_key: str


FORMATS = {
    each.name: each
    for each in (
        ToolFormat("hermes", "<tool_call>", "</tool_call>", "", False, False, "arguments"),
        ToolFormat("llama3_json", "<|python_tag|>", "", ";", False, True, "parameters"),
        ToolFormat("mistral", "[TOOL_CALLS]", "", ",", True, True, "arguments"),
    )
}
"""The formats by name; that of Qwen is "hermes"."""
_OTHER_NAMES = {"qwen": "hermes"}


def format_named(name: str) -> ToolFormat:
    """Return a format.

    Raises:
        ConfigError: There is none of that name.
    """
    found = FORMATS.get(_OTHER_NAMES.get(name, name))
    if found is None:
        known = [*FORMATS, *_OTHER_NAMES]
        raise ConfigError(
            f"tool call format: expected one of {', '.join(known)}, got {name!r}.{did_you_mean(name, known)}"
        )
    return found


def detect_format(chat_template: str | None, vocabulary: Container[str] = ()) -> str:
    """Return the name of the format that a model writes.

    Args:
        chat_template: The model's template, which shows how calls are written.
        vocabulary: Its special tokens, by text; what is known of a model without a template.
    """
    text = chat_template or ""
    for each in FORMATS.values():
        if each.opening in text:
            return each.name
    if '"parameters":' in text and "<|start_header_id|>" in text:
        return "llama3_json"
    return next((each.name for each in FORMATS.values() if each.opening in vocabulary), "hermes")
