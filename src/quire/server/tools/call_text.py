"""`CallText`: the JSON object of one call, read character by character, its arguments handed on as they are written."""

from __future__ import annotations

from collections.abc import Container
from enum import Enum, auto

import msgspec

_SPACE = frozenset(" \t\r\n")
_KNOWN = frozenset({"name", "arguments", "parameters", "id", "type"})
_ARGUMENTS = frozenset({"arguments", "parameters"})
_OPEN, _CLOSE = frozenset("{["), frozenset("}]")


class Place(Enum):
    """Where in the object the next character is."""

    START = auto()
    KEY = auto()
    COLON = auto()
    VALUE = auto()
    COMMA = auto()
    DONE = auto()
    BROKEN = auto()


class JSONValue:
    """Finds the end of one JSON value; what is inside is not checked."""

    __slots__ = ("_depth", "_in_string", "_is_escaped", "_is_scalar", "is_whole")

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._is_escaped = self._is_scalar = False
        self.is_whole = False

    def takes(self, character: str) -> bool:
        """Return whether a character belongs to the value; `is_whole` says whether it was the last that can."""
        if self._in_string:
            self._take_in_string(character)
        elif self._is_scalar:
            return character not in _SPACE and character not in ",}]"
        elif character == '"':
            self._in_string = True
        elif character in _OPEN:
            self._depth += 1
        elif character in _CLOSE:
            self._depth -= 1
            self.is_whole = self._depth == 0
        elif self._depth == 0:
            self._is_scalar = True
        return True

    def _take_in_string(self, character: str) -> None:
        if self._is_escaped:
            self._is_escaped = False
        elif character == "\\":
            self._is_escaped = True
        elif character == '"':
            self._in_string = False
            self.is_whole = self._depth == 0


class CallText:
    """Reads one call.

    Args:
        names: Functions that may be called; a call of another is broken.

    Attributes:
        place: Where it is; `DONE` after the closing brace, `BROKEN` after a character that cannot follow.
        text: All characters so far.
        name: The function, None before it is known.
        arguments: Their text so far.
    """

    __slots__ = ("_key", "_names", "_piece", "_value", "arguments", "name", "place", "text")

    def __init__(self, names: Container[str]) -> None:
        self._names = names
        self._key: str | None = None
        self._piece: list[str] = []
        self._value = JSONValue()
        self.place = Place.START
        self.text: list[str] = []
        self.name: str | None = None
        self.arguments: list[str] = []

    def take(self, character: str) -> None:
        """Take the next character; one that makes it `BROKEN` is not part of its text."""
        if self.place in (Place.KEY, Place.VALUE) and (self._piece or character not in _SPACE):
            self._take_piece(character)
        elif character not in _SPACE:
            self._take_mark(character)
        if self.place is not Place.BROKEN:
            self.text.append(character)

    def _take_mark(self, character: str) -> None:
        if self.place is Place.START and character == "{":
            self.place = Place.KEY
        elif self.place is Place.COLON and character == ":":
            self.place, self._value = Place.VALUE, JSONValue()
        elif self.place is Place.COMMA and character == ",":
            self.place = Place.KEY
        elif self.place is Place.COMMA and character == "}" and self.name is not None:
            self.place = Place.DONE
        else:
            self.place = Place.BROKEN

    def _take_piece(self, character: str) -> None:
        """Take a character of a key or of a value."""
        if not self._piece:
            self._value = JSONValue()
            if character in ",}]:" or (self.place is Place.KEY and character != '"'):
                self.place = Place.BROKEN
                return
        if not self._value.takes(character):  # a number or a word ends with what follows it
            self._end_piece()
            if self.place is not Place.BROKEN and character not in _SPACE:
                self._take_mark(character)
            return
        self._piece.append(character)
        if self.place is Place.VALUE and self._key in _ARGUMENTS:
            self.arguments.append(character)
        if self._value.is_whole:
            self._end_piece()

    def _end_piece(self) -> None:
        text, self._piece = "".join(self._piece), []
        if self.place is Place.KEY:
            self._key = _string(text)
            self.place = Place.COLON if self.name is not None or self._key in _KNOWN else Place.BROKEN
            if (self._key == "name" and self.name is not None) or (self._key in _ARGUMENTS and self.arguments):
                self._key = None  # the first one counts
            return
        self.place = Place.COMMA
        if self._key == "name":
            self.name = _string(text)
            if self.name is None or self.name not in self._names:
                self.name, self.place = None, Place.BROKEN


def _string(text: str) -> str | None:
    """Return what a JSON string says, None if it is none."""
    try:
        return msgspec.json.decode(text, type=str)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return None
