"""What routes and tool parsers hand each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A function that the model may call.

    Attributes:
        name: Its name.
        description: What it is for, None if not said.
        parameters: JSON schema of its arguments, None if it takes none.
    """

    name: str
    description: str | None
    parameters: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class ContentDelta:
    """The next piece of an answer's text."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """The next piece of a tool call.

    Attributes:
        index: Which call of the answer.
        id: Its id, in its first piece only.
        name: The function, in its first piece only.
        arguments: The next characters of its JSON arguments.
    """

    index: int
    id: str | None
    name: str | None
    arguments: str
