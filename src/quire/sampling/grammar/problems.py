"""What is wrong with a grammar, in our own words: the library's are for the log."""

from __future__ import annotations

import re

from quire.core.log import get_logger

_log = get_logger(__name__)
_KEYS = re.compile(r'Unimplemented keys: (\["[^\]]{1,200}\])')
_KNOWN = (
    ("Unknown format", 'a "format" that is known, such as date-time, email or uuid; leave it out or use a pattern'),
    ("retrieving it failed", 'each "$ref" to point into the schema itself (#/...)'),
    ("nsatisfiable", "something that fulfils it, but nothing can"),
    ("NoExtension", "something that fulfils it, but no token may come next"),
    ("look", r"a regular expression without look-around, \b, or ^ and $ inside"),
    ("backreferences", "a regular expression without backreferences"),
    ("unknown name", "every rule that is named to be defined"),
    ("regex parse error", "a regular expression"),
    ("recursion limit", "less nesting"),
    ("nested", "less nesting"),
    ("fuel", "something simpler: it exceeds what a step may cost"),
    ("max is", "something simpler: it exceeds what a step may cost"),
    ("too ", "something smaller or simpler"),
    ("limit", "something smaller or simpler"),
    ("json", "a JSON schema"),
    ("JSON", "a JSON schema"),
)


def explain(kind: str, report: str) -> str:
    """Return the message for a grammar that cannot be used.

    Args:
        kind: Field of `StructuredOutputsParams`.
        report: What the library says of it.
    """
    _log.debug("structured_outputs.%s: %s", kind, report)
    keys = _KEYS.search(report)
    if keys is not None:
        return f"structured_outputs.{kind}: expected keywords that are supported, got {keys[1]}; leave them out."
    expected = next((text for mark, text in _KNOWN if mark in report), "a grammar in Lark's syntax or GBNF")
    return f"structured_outputs.{kind}: expected {expected}."
