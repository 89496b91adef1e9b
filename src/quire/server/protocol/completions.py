"""`/v1/completions`."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from quire.core.sampling_params import MAX_TOKENS
from quire.server.protocol.common import (
    NumLogprobs,
    Prompt,
    PromptLogprobs,
    SamplingFields,
    Timing,
    Usage,
    Warnings,
)


class CompletionRequest(SamplingFields, kw_only=True):
    """Continue prompts.

    Attributes:
        prompt: Text, texts, token ids, or lists of token ids.
        echo: Put the prompt before the continuation, in its text and its logprobs.
        logprobs: Report this many most likely tokens at each position.
        max_tokens: Most tokens to generate; 0 with `echo` only reads the prompt.
        add_special_tokens: Add BOS as the model asks for.
        return_tokens_as_token_ids: In `logprobs`, write tokens as "token_id:N".
    """

    prompt: Prompt
    echo: bool | None = None
    logprobs: NumLogprobs | None = None
    max_tokens: Annotated[int, Meta(ge=0, le=MAX_TOKENS)] | None = None
    add_special_tokens: bool = True
    return_tokens_as_token_ids: bool | None = None


class CompletionLogprobs(msgspec.Struct, frozen=True):
    """Parallel lists, an entry per token; the first logprob of an echoed prompt is null.

    Attributes:
        tokens: Texts; what is no valid UTF-8 as "bytes:\\xNN...".
        token_logprobs: Natural logarithms.
        top_logprobs: Text to logprob of the most likely tokens and of the token itself.
        text_offset: Where the token starts in the choice's text, in characters.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(msgspec.Struct, frozen=True):
    """One continuation, or the next piece of it in a stream."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None
    stop_reason: int | str | None = None
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class Completion(msgspec.Struct, frozen=True):
    """The answer; in a stream, a chunk of it."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET
    timing: Timing | UnsetType = UNSET
    warnings: Warnings = UNSET
    object: Literal["text_completion"] = "text_completion"
