"""`/tokenize`, `/detokenize`, `/tokenizer_info`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from msgspec import UNSET

from quire.server.errors import invalid
from quire.server.http.answers import Answer, JsonAnswer
from quire.server.protocol.others import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
    TokenizerInfo,
)
from quire.server.routes.conversation import read_conversation
from quire.server.routes.endpoint import Call, Endpoint
from quire.tokenizer.tokenizer import Tokenizer

T = TypeVar("T")

# A thousand tokens take about a millisecond.
_MANY_TOKENS = 1024


async def tokenize(call: Call, body: TokenizeRequest) -> Answer:
    """Return the ids of a text or a conversation."""
    call.model(body.model)
    ids = await _ids(call, body)
    texts = await _beside(len(ids), partial(_texts, call.tokenizer(), ids)) if body.return_token_strs else None
    return JsonAnswer(TokenizeResponse(len(ids), call.served.max_model_len, ids, texts, call.warnings or UNSET))


async def _ids(call: Call, body: TokenizeRequest) -> list[int]:
    call.tokenizer()
    if (body.prompt is None) == (body.messages is None):
        raise invalid("prompt: expected either prompt or messages, got both or none.", "prompt")
    if body.prompt is not None:
        special = body.add_special_tokens is not False
        return await call.context.engine.tokenize(body.prompt, add_special_tokens=special)
    read = await read_conversation(
        call,
        body.messages or [],
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        tools=body.tools,
        variables=body.chat_template_kwargs or {},
    )
    if body.add_special_tokens and read.text is not None:
        return await call.context.engine.tokenize(read.text, add_special_tokens=True)
    return read.token_ids


async def detokenize(call: Call, body: DetokenizeRequest) -> Answer:
    """Return the text of ids, special tokens included."""
    call.model(body.model)
    decode = partial(call.tokenizer().decode, body.tokens, skip_special_tokens=False)
    text = await _beside(len(body.tokens), decode)
    return JsonAnswer(DetokenizeResponse(text, call.warnings or UNSET))


def _texts(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    return [tokenizer.token_text(token) for token in ids]


async def _beside(size: int, work: Callable[[], T]) -> T:
    """Return what `work` does, done beside the event loop if it is for many tokens."""
    return await asyncio.to_thread(work) if size > _MANY_TOKENS else work()


async def tokenizer_info(call: Call, _body: None) -> Answer:
    """Return the special tokens and the chat template."""
    tokenizer, served = call.tokenizer(), call.served
    named = tokenizer.special_tokens
    return JsonAnswer(
        TokenizerInfo(
            tokenizer.vocab_size,
            served.max_model_len,
            named.get("bos_token"),
            named.get("eos_token"),
            named.get("pad_token"),
            served.chat_template or tokenizer.chat_template,
        )
    )


TOKENIZE = Endpoint(
    "POST",
    "/tokenize",
    tokenize,
    "Turn a text or a conversation into token ids.",
    body=TokenizeRequest,
    answer=TokenizeResponse,
    ignored={"chat_template": (None,)},
)
DETOKENIZE = Endpoint(
    "POST", "/detokenize", detokenize, "Turn token ids into text.", body=DetokenizeRequest, answer=DetokenizeResponse
)
INFO = Endpoint("GET", "/tokenizer_info", tokenizer_info, "Show the tokenizer.", answer=TokenizerInfo)
