"""`/tokenize`, `/detokenize`, `/tokenizer_info`."""

from __future__ import annotations

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


async def tokenize(call: Call, body: TokenizeRequest) -> Answer:
    """Return the ids of a text or a conversation."""
    call.model(body.model)
    ids = await _ids(call, body)
    texts = [call.tokenizer().token_text(token) for token in ids] if body.return_token_strs else None
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
    text = call.tokenizer().decode(body.tokens, skip_special_tokens=False)
    return JsonAnswer(DetokenizeResponse(text, call.warnings or UNSET))


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
