"""Tools: functions that a model may call, and its calls."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from quire.server.protocol.common import JsonObject

FunctionName = Annotated[str, Meta(min_length=1, max_length=64, pattern="^[a-zA-Z0-9_.-]+$")]


class FunctionDefinition(msgspec.Struct, kw_only=True):
    """A function: `parameters` is the JSON schema of its arguments."""

    name: FunctionName
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, kw_only=True):
    """A tool; only functions exist."""

    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(msgspec.Struct, kw_only=True):
    """The name of a function."""

    name: FunctionName


class NamedTool(msgspec.Struct, kw_only=True):
    """The one function that must be called."""

    type: Literal["function"]
    function: NamedFunction


ToolChoice = Literal["none", "auto", "required"] | NamedTool


class FunctionCall(msgspec.Struct, kw_only=True):
    """A call: `arguments` is JSON text, in a stream a piece of it."""

    name: str | UnsetType = UNSET
    arguments: str


class ToolCall(msgspec.Struct, kw_only=True):
    """A call of a tool; in a stream `id`, `type` and `name` come once, with the first piece, and `index` always."""

    function: FunctionCall
    index: Annotated[int, Meta(ge=0, le=1 << 16)] | UnsetType = UNSET
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
