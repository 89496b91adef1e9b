"""Types and fields that several bodies share: bounded numbers, how to sample, usage, timing."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, UnsetType

from quire.core.sampling_params import MAX_LIST, MAX_LOGPROBS, MAX_N, MAX_STOPS, MAX_TOKENS

MAX_PROMPTS = 2048
"""Most prompts or inputs of one request; OpenAI's bound for embeddings."""

MAX_TOOLS = 128
"""Most tools of one request; OpenAI's bound."""

MAX_MESSAGES = 4096
MAX_HINT_CHARS = 512

TokenId = Annotated[int, Meta(ge=0, le=(1 << 31) - 1)]
MaxTokens = Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
NumLogprobs = Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
TopP = Annotated[float, Meta(gt=0, le=1)]
# It divides logits: far smaller ones would make them infinite, and the request fail while it runs.
RepetitionPenalty = Annotated[float, Meta(ge=0.01, le=2)]
Hint = Annotated[str, Meta(max_length=MAX_HINT_CHARS)]
Metadata = Annotated[dict[str, str], Meta(max_length=64)]
Prompt = str | Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1)]
Stops = str | Annotated[list[str], Meta(max_length=MAX_STOPS)]
JsonObject = dict[str, Any]


class StreamOptions(msgspec.Struct, kw_only=True):
    """What a stream carries beside its pieces.

    Attributes:
        include_usage: A last chunk without choices holds the usage.
        continuous_usage_stats: Every chunk holds the usage so far.
    """

    include_usage: bool = False
    continuous_usage_stats: bool = False


class StructuredOutputs(msgspec.Struct, kw_only=True):
    """Exactly one form that the text must have.

    Attributes:
        json: JSON schema, as an object or as text.
        regex: Regular expression for all of the text.
        choice: One of these texts.
        grammar: Lark or GBNF grammar.
        json_object: Any JSON object.
    """

    json: str | JsonObject | None = None
    regex: str | None = None
    choice: Annotated[list[str], Meta(min_length=1, max_length=MAX_LIST)] | None = None
    grammar: str | None = None
    json_object: bool | None = None


class SamplingFields(msgspec.Struct, kw_only=True):
    """How to sample: OpenAI's fields, then vLLM's. None takes the model's own default."""

    model: str | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=MAX_LIST)] | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_N)] | None = None
    seed: Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None
    stop: Stops | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    user: Hint | None = None

    top_k: Annotated[int, Meta(ge=-1, le=MAX_TOKENS)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: RepetitionPenalty | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=MAX_TOKENS)] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=MAX_LIST)] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    allowed_token_ids: Annotated[list[TokenId], Meta(max_length=MAX_LIST)] | None = None
    bad_words: Annotated[list[str], Meta(max_length=MAX_LIST)] | None = None
    prompt_logprobs: NumLogprobs | None = None
    priority: Annotated[int, Meta(ge=-(1 << 31), le=(1 << 31) - 1)] | None = None
    cache_salt: Hint | None = None
    structured_outputs: StructuredOutputs | None = None
    return_token_ids: bool | None = None
    include_timing: bool | None = None


class PromptTokensDetails(msgspec.Struct, frozen=True):
    """Where prompt tokens came from."""

    cached_tokens: int = 0


class Usage(msgspec.Struct, frozen=True):
    """Tokens of a request. Each prompt counts once, whatever `n`; an end-of-sequence token counts as generated."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails = PromptTokensDetails()


class Timing(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a request's time went, in seconds.

    Attributes:
        total_s: From its arrival to its end.
        queue_s: Until its first step was scheduled.
        prefill_s: From there to the first token.
        decode_s: From the first token to the last.
        time_to_first_token_s: From arrival to the first token.
        num_preemptions: How often it had to give its blocks back.
        cached_tokens: Prompt tokens that came from the prefix cache.
    """

    total_s: float | None
    time_to_first_token_s: float | None
    queue_s: float | None = None
    prefill_s: float | None = None
    decode_s: float | None = None
    num_preemptions: int = 0
    cached_tokens: int = 0


class PromptLogprob(msgspec.Struct, frozen=True):
    """Logprob of one token at one prompt position."""

    logprob: float
    rank: int | None
    decoded_token: str | None


PromptLogprobs = list[dict[str, PromptLogprob] | None]
Warnings = list[str] | UnsetType
FinishReason = Literal["stop", "length", "tool_calls"]
