"""Templates with choices and slots, expanded by a seeded draw.

A template is text in which `{a|b|c}` is a choice (choices nest, and a side may be empty), `$name` or `$NAME` (one
case, no digits) is a slot, and `^` makes the next letter a capital. "a" becomes "an" where the next word needs it. The
module knows no words of its own.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TypeVar

Scope = Mapping[str, str | Sequence[str]]
Item = TypeVar("Item")

_CAPITAL = re.compile(r"\^(.)")
_AN = re.compile(r"\b([Aa]) (?=(?:[aeioAEIO](?!ne\b|nce\b)|[uU](?!s|ni)|honest|hour)(?!uro))")
_TOKEN = re.compile(r"[{|}]|\$[A-Z_]+|\$[a-z_]+|[^{|}$]+")


class Draw:
    """Seeded choices that depend on nothing but the seed and the order of the calls.

    Example:
        >>> Draw(1).number(3, 3)
        3
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def one(self, items: Sequence[Item]) -> Item:
        """One of `items`, each equally likely."""
        return items[int(self._random.random() * len(items))]

    def several(self, items: Sequence[Item], count: int) -> list[Item]:
        """`count` of `items` at different positions, in drawn order; `count` is at most `len(items)`."""
        pool = list(items)
        return [pool.pop(int(self._random.random() * len(pool))) for _ in range(count)]

    def number(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        return low + int(self._random.random() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self._random.random() < probability


class _Slot(str):
    """The name of a slot, as a part of a parsed template."""


_Part = str | _Slot | tuple["_Parts", ...]
_Parts = tuple[_Part, ...]


def _parse_sequence(tokens: list[str], position: int) -> tuple[_Parts, int]:
    """Parts from `position` up to an unmatched `|`, `}` or the end, and where that is."""
    parts: list[_Part] = []
    while position < len(tokens) and tokens[position] not in "|}":
        token = tokens[position]
        position += 1
        if token == "{":
            choice, position = _parse_choice(tokens, position)
            parts.append(choice)
        else:
            parts.append(_Slot(token[1:]) if token.startswith("$") else token)
    return tuple(parts), position


def _parse_choice(tokens: list[str], position: int) -> tuple[tuple[_Parts, ...], int]:
    """The alternatives after a `{`, and the position after its `}`."""
    alternatives: list[_Parts] = []
    while True:
        parts, position = _parse_sequence(tokens, position)
        alternatives.append(parts)
        assert position < len(tokens), "a `{` in a template has no `}`"
        position += 1
        if tokens[position - 1] == "}":
            return tuple(alternatives), position


@cache
def _parse(template: str) -> _Parts:
    parts, position = _parse_sequence(_TOKEN.findall(template), 0)
    assert position == len(_TOKEN.findall(template)), f"unbalanced template: {template}"
    return parts


def _write(parts: _Parts, scope: Scope, draw: Draw, out: list[str]) -> None:
    for part in parts:
        if isinstance(part, tuple):
            _write(draw.one(part), scope, draw, out)
        elif isinstance(part, _Slot):
            value = scope[part]
            _write(_parse(value if isinstance(value, str) else draw.one(value)), scope, draw, out)
        else:
            out.append(part)


def expand(template: str, scope: Scope, draw: Draw) -> str:
    """Expand `template`; a slot whose value is a list draws one of it each time, and values may hold templates.

    Args:
        template: Text with `{a|b}`, `$slot` and `^`.
        scope: What each slot stands for.
        draw: Where choices come from. Mutated.

    Raises:
        KeyError: A slot is not in `scope`.

    Example:
        >>> expand("^$who saw a {owl|owl}.", {"who": "tom"}, Draw(0))
        'Tom saw an owl.'
    """
    out: list[str] = []
    _write(_parse(template), scope, draw, out)
    text = _AN.sub(r"\1n ", "".join(out))
    return _CAPITAL.sub(lambda match: match.group(1).upper(), text)
