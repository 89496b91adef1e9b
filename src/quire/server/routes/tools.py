"""Tools of a request, and its answer read for calls of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from quire.core.request import CompletionOutput
from quire.server.errors import invalid
from quire.server.protocol.tools import FunctionCall, Tool, ToolCall, ToolChoice
from quire.server.routes.endpoint import Call
from quire.server.tools.formats import detect_format
from quire.server.tools.grammar import structured_outputs_for
from quire.server.tools.parser import make_tool_parser
from quire.server.tools.types import ContentDelta, ToolCallDelta, ToolSpec

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


class Tools:
    """The tools of a request, and how the model that is asked writes calls of them.

    Args:
        call: The request.
        tools: Functions that may be called.
        choice: Whether, or which one; None is "auto" if there are any.
        parallel: Whether several may be called.

    Attributes:
        grammar: What forces an answer to be a call, None if the model may choose.

    Raises:
        ApiError: A choice without tools.
        RequestError: A choice that names none of them.
    """

    def __init__(self, call: Call, tools: Sequence[Tool] | None, choice: ToolChoice | None, *, parallel: bool) -> None:
        self._specs = [ToolSpec(tool.function.name, tool.function.description, tool.function.parameters)
                       for tool in (tools or () if choice != "none" else ())]  # fmt: skip
        if not self._specs and choice not in (None, "none", "auto"):
            raise invalid("tool_choice: expected tools beside it, got none.")
        served = call.served
        template = served.chat_template or (served.tokenizer.chat_template if served.tokenizer else None)
        special = set(served.tokenizer.special_tokens.values()) if served.tokenizer else ()
        self._format = detect_format(template, special)
        named = choice if choice is None or isinstance(choice, str) else msgspec.to_builtins(choice)
        self.grammar = structured_outputs_for(self._specs, named, self._format, parallel_tool_calls=parallel)

    def reader(self) -> Reader:
        """Return what reads one answer."""
        return make_tool_parser(self._format, self._specs) if self._specs else PlainText()


@dataclass(slots=True)
class GrowingAnswer:
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
