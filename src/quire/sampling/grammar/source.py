"""What is asked for, written down as one grammar in llguidance's dialect of Lark."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from quire.core.errors import RequestError
from quire.core.structured_outputs import StructuredOutputsParams

# With forcing, a stretch of text that has no alternative would be encoded by a tokenizer, and a mask would have one
# token; without, a mask has every token that may begin it, and the model chooses how to spell it.
_HEADER = '%llguidance {"no_forcing": true}\n'
_DIRECTIVE = "%llguidance"
# At most one space between two tokens of JSON: models write "a": 1 or "a":1, weak ones write spaces without end.
_JSON_OPTIONS = {"whitespace_flexible": False, "whitespace_pattern": " ?"}
_ESCAPED = frozenset("\\.+*?()|[]{}^$#&-~")


def json_rule(schema: Mapping[str, Any]) -> str:
    """Return what stands in a grammar for JSON that a schema describes."""
    return "%json " + json.dumps({**schema, "x-guidance": _JSON_OPTIONS}, ensure_ascii=False)


def grammar_of(outputs: StructuredOutputsParams) -> str:
    """Return the whole grammar.

    Raises:
        RequestError: It is GBNF with an error, or sets what only the engine may set.
    """
    if outputs.grammar is not None:
        return _HEADER + _users(outputs.grammar)
    if outputs.regex is not None:
        return _HEADER + "start: " + _regex_rule(outputs.regex)
    if outputs.choice is not None:
        return _HEADER + "start: " + _regex_rule("|".join(map(_escape, outputs.choice)))
    schema = {"type": "object"} if outputs.json is None else json.loads(str(outputs.json))
    return f"{_HEADER}start: {json_rule(schema)}"


def _users(grammar: str) -> str:
    """Return a user's grammar in Lark's syntax."""
    if _DIRECTIVE in grammar:
        raise RequestError(f"structured_outputs.grammar: expected no {_DIRECTIVE} directive, got one; leave it out.")
    if "::=" not in grammar:
        return grammar
    from llguidance.gbnf_to_lark import GbnfToLarkError, any_to_lark

    try:
        return str(any_to_lark(grammar)).replace(_DIRECTIVE + " {}\n", "")
    except (GbnfToLarkError, RecursionError) as error:
        place = getattr(getattr(error, "pos", None), "pos", None)
        where = "" if place is None else f" at character {place}"
        raise RequestError(f"structured_outputs.grammar: expected GBNF, got an error{where}.") from None


def _regex_rule(regex: str) -> str:
    from llguidance import regex_to_lark

    return f"/{regex_to_lark(regex, use_ascii='d')}/"  # \d is a digit that a number is written with


def _escape(text: str) -> str:
    return "".join("\\" + character if character in _ESCAPED else character for character in text)
