"""Calls of litellm, as its users write them: python litellm_suite.py BASE_URL MODEL."""

import asyncio
import json
import sys

import litellm

BASE_URL, MODEL = sys.argv[1], f"openai/{sys.argv[2]}"
MESSAGES = [{"role": "user", "content": "Once upon a time"}]
COMMON = {"model": MODEL, "api_base": BASE_URL, "api_key": "any", "num_retries": 0}
PLAIN = {**COMMON, "messages": MESSAGES, "max_tokens": 16, "temperature": 0}
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": WEATHER}}


def text_of(chunks: list) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def chat() -> str:
    whole = litellm.completion(**PLAIN)
    assert 0 < whole.usage.completion_tokens <= 16
    text = whole.choices[0].message.content
    assert text_of(list(litellm.completion(**PLAIN, stream=True))) == text
    return text


async def chat_async() -> str:
    whole = await litellm.acompletion(**PLAIN)
    chunks = [chunk async for chunk in await litellm.acompletion(**PLAIN, stream=True)]
    text = whole.choices[0].message.content
    assert text_of(chunks) == text
    return text


def tools() -> None:
    asked = {**PLAIN, "max_tokens": 64, "tools": [TOOL], "tool_choice": "required"}
    (call,) = litellm.completion(**asked).choices[0].message.tool_calls
    assert list(json.loads(call.function.arguments)) == ["city"]
    rebuilt = litellm.stream_chunk_builder(list(litellm.completion(**asked, stream=True)), messages=MESSAGES)
    assert rebuilt.choices[0].message.tool_calls[0].function.arguments == call.function.arguments


def structured() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "weather", "schema": WEATHER, "strict": True}}
    made = litellm.completion(**{**PLAIN, "max_tokens": 64}, response_format=form)
    assert list(json.loads(made.choices[0].message.content)) == ["city"]


def text_completion() -> None:
    asked = {**COMMON, "model": MODEL.replace("openai/", "text-completion-openai/")}
    made = litellm.text_completion(**asked, prompt="Once upon", max_tokens=8, temperature=0)
    assert made.choices[0].text


def embedding() -> None:
    made = litellm.embedding(**COMMON, input=["one", "two"], encoding_format="float")
    assert len(made.data) == 2 and abs(sum(x * x for x in made.data[0]["embedding"]) - 1) < 1e-3


def errors() -> None:
    for changes, kind in (
        ({"model": "openai/another"}, litellm.NotFoundError),
        ({"max_tokens": -1}, litellm.BadRequestError),
    ):
        try:
            litellm.completion(**{**PLAIN, **changes})
        except kind:
            continue
        raise AssertionError(f"expected {kind.__name__}")


if __name__ == "__main__":
    assert chat() == asyncio.run(chat_async())
    for test in (tools, structured, text_completion, embedding, errors):
        test()
        print("ok", test.__name__)
