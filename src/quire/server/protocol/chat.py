"""`/v1/chat/completions`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from quire.server.protocol.common import (
    MAX_MESSAGES,
    MAX_TOOLS,
    FinishReason,
    Hint,
    JsonObject,
    MaxTokens,
    Metadata,
    NumLogprobs,
    PromptLogprobs,
    SamplingFields,
    Timing,
    Usage,
    Warnings,
)
from quire.server.protocol.tools import Tool, ToolCall, ToolChoice


class TextPart(msgspec.Struct, kw_only=True):
    """A part of a message; only text exists."""

    type: Literal["text"]
    text: str


class Message(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A message of a conversation; "developer" is another word for "system"."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Meta(max_length=MAX_TOOLS)] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None


class JsonSchemaFormat(msgspec.Struct, kw_only=True):
    """A named JSON schema."""

    name: Annotated[str, Meta(min_length=1, max_length=64)]
    schema: JsonObject | None = None
    description: str | None = None
    strict: bool | None = None


class TextFormat(msgspec.Struct, kw_only=True, tag_field="type", tag="text"):
    """Any text."""


class JsonObjectFormat(msgspec.Struct, kw_only=True, tag_field="type", tag="json_object"):
    """Any JSON object."""


class JsonSchemaResponseFormat(msgspec.Struct, kw_only=True, tag_field="type", tag="json_schema"):
    """JSON that fits a schema."""

    json_schema: JsonSchemaFormat


ResponseFormat = TextFormat | JsonObjectFormat | JsonSchemaResponseFormat
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]


class ChatRequest(SamplingFields, kw_only=True):
    """Answer a conversation.

    Attributes:
        messages: The conversation.
        max_completion_tokens: Most tokens to generate; `max_tokens` is its old name.
        logprobs: Report the logprob of every token of the answer.
        top_logprobs: And of this many most likely ones.
        tools: Functions that may be called.
        tool_choice: Whether, or which one; "auto" if there are tools.
        parallel_tool_calls: Whether several may be called.
        response_format: The form that the answer must have.
        reasoning_effort: Handed to the model's template.
        add_generation_prompt: Open the assistant's turn.
        continue_final_message: Continue the last message instead of answering it.
        chat_template_kwargs: More variables for the model's template.
    """

    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: MaxTokens | None = None
    max_tokens: MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: NumLogprobs | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: ReasoningEffort | None = None
    metadata: Metadata | None = None
    prompt_cache_key: Hint | None = None
    safety_identifier: Hint | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None


class TopLogprob(msgspec.Struct, frozen=True):
    """One of the most likely tokens at a position."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct, frozen=True):
    """A token of the answer, and the most likely ones at its place."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    """Logprobs of the answer's tokens."""

    content: list[TokenLogprob]
    refusal: None = None


class ChatMessage(msgspec.Struct, frozen=True):
    """The answer."""

    content: str | None
    tool_calls: list[ToolCall] | UnsetType = UNSET
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class ChatDelta(msgspec.Struct, frozen=True):
    """The next piece of an answer."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(msgspec.Struct, frozen=True):
    """One answer."""

    index: int
    message: ChatMessage
    finish_reason: FinishReason
    logprobs: ChatLogprobs | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct, frozen=True):
    """A piece of one answer."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(msgspec.Struct, frozen=True):
    """The answers to a conversation."""

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    timing: Timing | UnsetType = UNSET
    warnings: Warnings = UNSET
    object: Literal["chat.completion"] = "chat.completion"


class ChatChunk(msgspec.Struct, frozen=True):
    """A chunk of a stream."""

    id: str
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    timing: Timing | UnsetType = UNSET
    warnings: Warnings = UNSET
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
