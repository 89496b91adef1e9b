"""The smaller routes: embeddings, models, tokenizing, health, version."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from quire.server.protocol.chat import Message
from quire.server.protocol.common import MAX_MESSAGES, Hint, JsonObject, Prompt, TokenId, Warnings


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    """Turn texts into vectors of unit length.

    Attributes:
        input: Text, texts, token ids, or lists of token ids.
        model: Which model; None takes the one that is served.
        encoding_format: "float", or "base64" of little-endian float32.
        pooling: Which hidden states make the vector: the last token's, or the mean of all.
        user: Ignored.
    """

    input: Prompt
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    pooling: Literal["last", "mean"] = "last"
    user: Hint | None = None


class Embedding(msgspec.Struct, frozen=True):
    """One vector."""

    index: int
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"


class EmbeddingUsage(msgspec.Struct, frozen=True):
    """Tokens of an embedding request."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingResponse(msgspec.Struct, frozen=True):
    """Vectors in the order of the inputs."""

    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    warnings: Warnings = UNSET
    object: Literal["list"] = "list"


class ModelCard(msgspec.Struct, frozen=True):
    """A name under which the model is served.

    Attributes:
        id: The name.
        created: Unix time in seconds when the model was loaded.
        max_model_len: Longest prompt plus output, in tokens.
        root: The first of its names.
        default_sampling_params: What the model's generation_config.json asks for, where a request does not say.
    """

    id: str
    created: int
    max_model_len: int
    root: str
    default_sampling_params: dict[str, float]
    owned_by: str = "quire"
    object: Literal["model"] = "model"


class ModelList(msgspec.Struct, frozen=True):
    """All names."""

    data: list[ModelCard]
    object: Literal["list"] = "list"


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """Turn a text, or a conversation as the model's template renders it, into token ids.

    Attributes:
        prompt: Text; either this or `messages`.
        messages: Conversation.
        model: Which model; None takes the one that is served.
        add_special_tokens: Add BOS and EOS as the model asks for; None: for a text, not for a conversation.
        add_generation_prompt: Open the assistant's turn.
        continue_final_message: End inside the last message.
        chat_template_kwargs: More variables for the template.
        tools: Functions for the template.
        return_token_strs: Return the tokens' texts, too.
    """

    prompt: str | None = None
    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)] | None = None
    model: str | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    chat_template_kwargs: JsonObject | None = None
    tools: list[JsonObject] | None = None
    return_token_strs: bool = False


class TokenizeResponse(msgspec.Struct, frozen=True):
    """Token ids."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None
    warnings: Warnings = UNSET


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """Turn token ids into text."""

    tokens: Annotated[list[TokenId], Meta(max_length=1 << 20)]
    model: str | None = None


class DetokenizeResponse(msgspec.Struct, frozen=True):
    """Text."""

    prompt: str
    warnings: Warnings = UNSET


class TokenizerInfo(msgspec.Struct, frozen=True):
    """What a client must know to count and render as the server does."""

    vocab_size: int
    max_model_len: int
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    chat_template: str | None
    tokenizer_class: str = "Tokenizer"


class Health(msgspec.Struct, frozen=True):
    """Whether requests are served now, and why not.

    Attributes:
        status: Of the server; of several engines one must be ready.
        reason: A sentence.
        engines: The same of each engine, if there are several.
    """

    status: Literal["ready", "live", "not ready"]
    reason: str | UnsetType = UNSET
    engines: list[Health] | UnsetType = UNSET


class Version(msgspec.Struct, frozen=True):
    """The version of Quire."""

    version: str
