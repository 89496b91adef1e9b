"""`ToolParser`: an answer, piece by piece, becomes content and tool calls; what comes out does not depend on the cuts.

Every character is taken by itself, and is held back only while it is not certain what it belongs to: a part of an
opening, spaces before one, a call whose function is not yet known. A call that breaks before its function is known was
content. One that breaks later keeps the arguments it had, and what follows is content again.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from enum import Enum, auto

from quire.server.tools.call_text import CallText, Place
from quire.server.tools.formats import ToolFormat, format_named
from quire.server.tools.types import ContentDelta, ToolCallDelta, ToolSpec

Delta = ContentDelta | ToolCallDelta
_SPACES = " \t\r\n"


class _State(Enum):
    """What the next character is expected to be a part of."""

    CONTENT = auto()
    LIST = auto()  # the bracket of a list of calls
    CALL = auto()
    AFTER = auto()  # what closes or separates calls


class ToolParser:
    """Reads one answer: `feed` every piece of its text, then `finish`. Nothing that a model writes makes it raise.

    Args:
        tool_format: How calls are written.
        tools: Functions that may be called; what looks like a call of another is content.
        new_id: Returns an id for a call.
    """

    def __init__(self, tool_format: ToolFormat, tools: Sequence[ToolSpec], new_id: Callable[[], str]) -> None:
        self._format = tool_format
        self._names = frozenset(tool.name for tool in tools)
        self._new_id = new_id
        self._state = _State.CONTENT
        self._held = ""  # characters that are not handed on yet, beside those of the call
        self._call = CallText(self._names)
        self._index = -1
        self._num_sent = 0  # characters of the call's arguments
        self._is_named = False  # whether the call has been announced
        self._has_content = False
        self._deltas: list[Delta] = []

    def feed(self, text: str) -> list[Delta]:
        """Take the next text; return what is certain now."""
        for character in text:
            self._take(character)
        return self._flush()

    def finish(self) -> list[Delta]:
        """Return what was held back, at the end of the answer."""
        if self._state is _State.CALL and not self._is_named:
            self._say(self._held + "".join(self._call.text))
        elif self._state in (_State.CONTENT, _State.LIST) and (self._held.strip(_SPACES) or self._index < 0):
            self._say(self._held)
        self._state, self._held, self._call = _State.CONTENT, "", CallText(self._names)
        return self._flush()

    def _flush(self) -> list[Delta]:
        """Return the deltas so far, neighbours joined."""
        joined: list[Delta] = []
        for delta in self._deltas:
            last = joined[-1] if joined else None
            if isinstance(last, ContentDelta) and isinstance(delta, ContentDelta):
                joined[-1] = ContentDelta(last.text + delta.text)
            elif isinstance(last, ToolCallDelta) and isinstance(delta, ToolCallDelta) and delta.index == last.index:
                joined[-1] = ToolCallDelta(last.index, last.id, last.name, last.arguments + delta.arguments)
            else:
                joined.append(delta)
        self._deltas = []
        return joined

    def _say(self, text: str) -> None:
        if text:
            self._has_content = True
            self._deltas.append(ContentDelta(text))

    def _take(self, character: str) -> None:
        if self._state is _State.CONTENT:
            self._take_content(character)
        elif self._state is _State.LIST:
            self._take_list(character)
        elif self._state is _State.CALL:
            self._take_call(character)
        else:
            self._take_after(character)

    def _take_content(self, character: str) -> None:
        """Hold back spaces and what may be the beginning of an opening; hand on the rest."""
        self._held += character
        begun, opening = self._held.lstrip(_SPACES), self._format.opening
        if begun == opening:
            self._begin_call()
        elif opening.startswith(begun):
            return
        elif self._may_be_bare(begun):
            self._held = self._held[: len(self._held) - len(begun)]
            self._begin_call()
            for each in begun:
                self._take(each)
        else:
            keep = _overlap(self._held, opening)
            self._say(self._held[: len(self._held) - keep])
            self._held = self._held[len(self._held) - keep :]

    def _may_be_bare(self, begun: str) -> bool:
        """Return whether an answer that begins so may begin with calls that nothing announces."""
        first = "[" if self._format.is_list else "{"
        return self._format.is_bare and self._index < 0 and not self._has_content and begun.startswith(first)

    def _begin_call(self, is_first: bool = True) -> None:
        self._state = _State.LIST if self._format.is_list and is_first else _State.CALL
        self._call, self._num_sent, self._is_named = CallText(self._names), 0, False

    def _take_list(self, character: str) -> None:
        self._held += character
        if character == "[":
            self._state = _State.CALL
        elif character not in _SPACES:
            self._give_up(self._held[:-1], character)

    def _take_call(self, character: str) -> None:
        call = self._call
        call.take(character)
        if call.name is not None and not self._is_named:
            self._is_named, self._index, self._held = True, self._index + 1, ""
            self._deltas.append(ToolCallDelta(self._index, self._new_id(), call.name, ""))
        if self._is_named:
            self._send_arguments()
        if call.place is Place.DONE:
            if not call.arguments:
                self._deltas.append(ToolCallDelta(self._index, None, None, "{}"))
            self._state, self._held = _State.AFTER, ""
        elif call.place is Place.BROKEN and self._is_named:
            self._state, self._held = _State.AFTER, ""
            self._take(character)
        elif call.place is Place.BROKEN:
            self._give_up(self._held + "".join(call.text), character)

    def _send_arguments(self) -> None:
        piece = "".join(self._call.arguments[self._num_sent :])
        self._num_sent += len(piece)
        if piece:
            self._deltas.append(ToolCallDelta(self._index, None, None, piece))

    def _take_after(self, character: str) -> None:
        """Take what may stand after a call: its closing, or a separator and the next call."""
        self._held += character
        begun, form = self._held.strip(_SPACES), self._format
        if not begun:
            return
        if begun == form.separator:
            self._begin_call(is_first=False)
        elif begun == form.closing or (form.is_list and begun == "]"):
            self._state, self._held = _State.CONTENT, ""
        elif not form.closing.startswith(begun):
            held, self._held, self._state = self._held, "", _State.CONTENT
            for each in held:
                self._take(each)

    def _give_up(self, text: str, character: str) -> None:
        """Take what looked like a call for content, and go on with the character that broke it."""
        self._state, self._held = _State.CONTENT, ""
        self._say(text)
        self._take(character)


def _overlap(text: str, opening: str) -> int:
    """Return how many of the last characters may belong to what follows: spaces, then the start of an opening."""
    for length in range(min(len(text), len(opening) - 1), 0, -1):
        if opening.startswith(text[len(text) - length :]):
            before = text[: len(text) - length]
            return length + len(before) - len(before.rstrip(_SPACES))
    return len(text) - len(text.rstrip(_SPACES))


def make_tool_parser(format_name: str, tools: Sequence[ToolSpec]) -> ToolParser:
    """Return a parser for one answer.

    Args:
        format_name: A name from `formats.FORMATS`, for example from `detect_format`.
        tools: Functions that may be called.

    Raises:
        ConfigError: There is no such format.
    """
    form = format_named(format_name)
    # Mistral's templates insist on ids of nine characters and digits.
    return ToolParser(form, tools, lambda: uuid.uuid4().hex[:9] if form.is_list else f"call_{uuid.uuid4().hex[:24]}")
