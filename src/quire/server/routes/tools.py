"""Tools of a request, and its answer read for calls of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from quire.core.request import CompletionOutput
from quire.server.errors import invalid
from quire.server.protocol.tools import FunctionCall, Tool, ToolCall, ToolChoice
from quire.server.tools.types import ContentDelta, ToolCallDelta

Delta = ContentDelta | ToolCallDelta


class Reader(Protocol):
    """Finds tool calls in an answer; the pieces joined are the same however the text was cut."""

    def feed(self, text: str) -> list[Delta]:
        """Take the next text; return what is certain now."""
        ...

    def finish(self) -> list[Delta]:
        """Return what was held back, at the end of the text."""
        ...


class PlainText:
    """Reads an answer that cannot hold calls."""

    def feed(self, text: str) -> list[Delta]:
        """Return the text."""
        return [ContentDelta(text)] if text else []

    def finish(self) -> list[Delta]:
        """Return nothing: nothing is held back."""
        return []


def make_reader(tools: Sequence[Tool] | None, tool_choice: ToolChoice | None) -> Reader:
    """Return what reads an answer.

    Raises:
        ApiError: The tools cannot be honoured.
    """
    if tools and tool_choice != "none":
        raise invalid("tools: expected none, because this server cannot read tool calls, got some.")
    if not tools and tool_choice not in (None, "none", "auto"):
        raise invalid("tool_choice: expected tools beside it, got none.")
    return PlainText()


@dataclass(slots=True)
class Answer:
    """One answer as it grows.

    Attributes:
        reader: Finds its calls.
        text: Its content so far.
        calls: Its calls so far, whole.
    """

    reader: Reader
    text: str = ""
    calls: list[ToolCall] = field(default_factory=list)

    def add(self, completion: CompletionOutput) -> list[Delta]:
        """Take the next piece of the engine's text; return what of it is certain."""
        deltas = self.reader.feed(completion.text)
        if completion.finish_reason is not None:
            deltas = [*deltas, *self.reader.finish()]
        for delta in deltas:
            if isinstance(delta, ContentDelta):
                self.text += delta.text
            else:
                self._add_call(delta)
        return deltas

    def _add_call(self, delta: ToolCallDelta) -> None:
        if delta.index == len(self.calls):
            function = FunctionCall(name=delta.name or "", arguments="")
            self.calls.append(ToolCall(function=function, id=delta.id or "", type="function"))
        self.calls[delta.index].function.arguments += delta.arguments
