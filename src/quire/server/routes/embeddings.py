"""`/v1/embeddings`."""

from __future__ import annotations

import asyncio
import base64
import struct
import uuid

from msgspec import UNSET

from quire.server.http.answers import Answer, JsonAnswer
from quire.server.protocol.others import Embedding, EmbeddingRequest, EmbeddingResponse, EmbeddingUsage
from quire.server.routes.endpoint import Call, Endpoint
from quire.server.routes.generation import PromptIds, read_prompts


async def embed(call: Call, body: EmbeddingRequest) -> Answer:
    """Return a vector for each input."""
    model = call.model(body.model)
    prompts = await read_prompts(call, body.input, name="input")
    vectors = await _vectors(call, prompts, body.pooling)
    num_tokens = sum(len(prompt.token_ids) for prompt in prompts)
    call.exchange.notes["prompt_tokens"] = num_tokens
    data = [Embedding(i, vector if body.encoding_format == "float" else _base64(vector))
            for i, vector in enumerate(vectors)]  # fmt: skip
    return JsonAnswer(EmbeddingResponse(data, model, EmbeddingUsage(num_tokens, num_tokens), call.warnings or UNSET))


async def _vectors(call: Call, prompts: list[PromptIds], pooling: str) -> list[list[float]]:
    """Return all vectors; the first error ends all."""
    request_id = f"embd-{uuid.uuid4().hex}"
    engine, salt = call.context.engine, call.salt(None)
    tasks = [
        asyncio.ensure_future(engine.embed(f"{request_id}-{i}", prompt.token_ids, pooling, cache_salt=salt))
        for i, prompt in enumerate(prompts)
    ]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def _base64(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


ENDPOINT = Endpoint(
    "POST",
    "/v1/embeddings",
    embed,
    "Turn texts into vectors.",
    body=EmbeddingRequest,
    answer=EmbeddingResponse,
    ignored={"dimensions": (None,), "truncate_prompt_tokens": (None,)},
    is_work=True,
)
