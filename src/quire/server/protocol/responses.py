"""`/v1/responses`: text and function calls. Nothing is stored, so every request holds its whole conversation."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from quire.server.protocol.chat import JsonObjectFormat, ReasoningEffort, TextFormat
from quire.server.protocol.common import (
    MAX_MESSAGES,
    MAX_TOOLS,
    Hint,
    JsonObject,
    MaxTokens,
    Metadata,
    SamplingFields,
    Timing,
    Warnings,
)
from quire.server.protocol.tools import FunctionName


class InputPart(msgspec.Struct, kw_only=True):
    """A part of a message; only text exists."""

    type: Literal["input_text", "output_text", "text"]
    text: str


class InputItem(msgspec.Struct, kw_only=True):
    """A message, a call that the model made, or what the call returned."""

    type: Literal["message", "function_call", "function_call_output"] = "message"
    id: str | None = None
    status: str | None = None
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[InputPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[InputPart] | None = None


class FunctionTool(msgspec.Struct, kw_only=True):
    """A function that may be called."""

    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class NamedFunctionTool(msgspec.Struct, kw_only=True):
    """The one function that must be called."""

    type: Literal["function"]
    name: FunctionName


class JsonSchemaTextFormat(msgspec.Struct, kw_only=True, tag_field="type", tag="json_schema"):
    """JSON that fits a schema."""

    name: Annotated[str, Meta(min_length=1, max_length=64)]
    schema: JsonObject
    description: str | None = None
    strict: bool | None = None


class TextConfig(msgspec.Struct, kw_only=True):
    """The form that the text must have."""

    format: TextFormat | JsonObjectFormat | JsonSchemaTextFormat | None = None


class Reasoning(msgspec.Struct, kw_only=True):
    """How much to think; handed to the model's template."""

    effort: ReasoningEffort | None = None


class ResponsesRequest(SamplingFields, kw_only=True):
    """Go on with a conversation.

    Attributes:
        input: Text of the user, or all items of the conversation.
        instructions: System message before them.
        max_output_tokens: Most tokens to generate.
        tools: Functions that may be called.
        tool_choice: Whether, or which one.
        parallel_tool_calls: Whether several may be called.
        text: The form that the text must have.
        reasoning: How much to think.
    """

    input: str | Annotated[list[InputItem], Meta(min_length=1, max_length=MAX_MESSAGES)]
    instructions: str | None = None
    max_output_tokens: MaxTokens | None = None
    tools: Annotated[list[FunctionTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedFunctionTool | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    metadata: Metadata | None = None
    prompt_cache_key: Hint | None = None
    safety_identifier: Hint | None = None


class OutputText(msgspec.Struct, kw_only=True):
    """Text of the answer."""

    text: str = ""
    annotations: list[str] = []
    logprobs: list[str] = []
    type: Literal["output_text"] = "output_text"


Status = Literal["in_progress", "completed", "incomplete"]


class OutputMessage(msgspec.Struct, kw_only=True, tag_field="type", tag="message"):
    """A message of the answer."""

    id: str
    content: list[OutputText]
    status: Status = "in_progress"
    role: Literal["assistant"] = "assistant"


class OutputFunctionCall(msgspec.Struct, kw_only=True, tag_field="type", tag="function_call"):
    """A call that the model makes."""

    id: str
    call_id: str
    name: str
    arguments: str = ""
    status: Status = "in_progress"


class InputTokensDetails(msgspec.Struct, frozen=True):
    """Where input tokens came from."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(msgspec.Struct, frozen=True):
    """What output tokens were used for."""

    reasoning_tokens: int = 0


class ResponsesUsage(msgspec.Struct, frozen=True):
    """Tokens of a request."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()


class IncompleteDetails(msgspec.Struct, frozen=True):
    """Why an answer is not complete."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class Response(msgspec.Struct, kw_only=True):
    """The answer."""

    id: str
    created_at: int
    model: str
    output: list[OutputMessage | OutputFunctionCall]
    status: Status
    usage: ResponsesUsage | None = None
    incomplete_details: IncompleteDetails | None = None
    error: None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    metadata: Metadata | None = None
    parallel_tool_calls: bool = True
    temperature: float | None = None
    top_p: float | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedFunctionTool = "auto"
    tools: list[FunctionTool] = []
    store: bool = False
    timing: Timing | UnsetType = UNSET
    warnings: Warnings = UNSET
    object: Literal["response"] = "response"
