"""Requests that must hurt nobody: each is refused with a 4xx, whatever else runs, and the server lives on."""

import json
from dataclasses import dataclass

from tests.support.server_process import request

COMPLETIONS, CHAT, RESPONSES = "/v1/completions", "/v1/chat/completions", "/v1/responses"
EMBEDDINGS, TOKENIZE, DETOKENIZE = "/v1/embeddings", "/tokenize", "/detokenize"
_USER = [{"role": "user", "content": "Hi"}]


@dataclass(frozen=True)
class Poison:
    """A request as bytes, and the statuses that are right for it."""

    name: str
    data: bytes
    statuses: tuple[int, ...] = (400,)


def _raw(name: str, path: str, body: bytes, *statuses: int, **headers: str) -> Poison:
    return Poison(name, request("POST", path, body, headers), statuses or (400,))


def _json(name: str, path: str, body: object, *statuses: int) -> Poison:
    return _raw(name, path, json.dumps(body).encode(), *statuses)


def _completion(name: str, *statuses: int, **fields: object) -> Poison:
    return _json(f"completion: {name}", COMPLETIONS, {"prompt": "Hi", "max_tokens": 4, **fields}, *statuses)


def _chat(name: str, *statuses: int, **fields: object) -> Poison:
    return _json(f"chat: {name}", CHAT, {"messages": _USER, "max_tokens": 4, **fields}, *statuses)


def poisons() -> list[Poison]:
    """Return all of them."""
    return [*_bodies(), *_completions(), *_lengths(), *_chats(), *_others(), *_connections()]


def _fields(count: int) -> bytes:
    return b"{" + b"".join(b'"%d":1,' % index for index in range(count)) + b'"prompt": "Hi"}'


def _bodies() -> list[Poison]:
    """What is no JSON, or more of it than fits."""
    return [
        _raw("empty body", COMPLETIONS, b""),
        _raw("half an object", COMPLETIONS, b'{"prompt": "Hi"'),
        _raw("two objects", COMPLETIONS, b'{"prompt": "Hi"}{"prompt": "Hi"}'),
        _raw("a list", COMPLETIONS, b"[]"),
        _raw("a number", CHAT, b"1"),
        _raw("null", RESPONSES, b"null"),
        _raw("bytes that are no UTF-8", COMPLETIONS, b'{"prompt": "\xff\xfe"}'),
        _raw("half a surrogate pair", COMPLETIONS, b'{"prompt": "\\ud800"}'),
        _raw("the other half", COMPLETIONS, b'{"prompt": "\\udc00 and on"}'),
        _raw("half a surrogate pair as a key", COMPLETIONS, b'{"prompt": "Hi", "\\ud800": 1}'),
        _raw("overlong UTF-8", COMPLETIONS, b'{"prompt": "\xc0\xaf"}'),
        _raw("a byte order mark", COMPLETIONS, b'\xef\xbb\xbf{"prompt": "Hi"}'),
        _raw("UTF-16", COMPLETIONS, '{"prompt": "Hi"}'.encode("utf-16")),
        _raw("not a number", COMPLETIONS, b'{"prompt": "Hi", "temperature": NaN}'),
        _raw("infinity", COMPLETIONS, b'{"prompt": "Hi", "temperature": 1e999}'),
        _raw("lists in lists", COMPLETIONS, b"[" * 100_000),
        _raw("objects in objects", CHAT, b'{"a":' * 10_000 + b"1" + b"}" * 10_000),
        _raw("lists in an unknown field", COMPLETIONS, b'{"prompt": "Hi", "x": ' + b"[" * 500 + b"]" * 500 + b"}"),
        _raw("two million lists", COMPLETIONS, b'{"prompt": "Hi", "x": [' + b"[]," * (2 << 20) + b"[]]}"),
        _raw("a quarter of a million fields", COMPLETIONS, _fields(1 << 18)),
        _raw("a number of 100,000 digits", COMPLETIONS, b'{"prompt": "Hi", "seed": ' + b"9" * 100_000 + b"}"),
        _raw("compressed", COMPLETIONS, b"\x1f\x8b\x08\x00" + b"\x00" * 100),
        _raw("a form", COMPLETIONS, b"prompt=Hi&max_tokens=4"),
        _raw("more than the server takes", COMPLETIONS, b'{"prompt": "' + b"a" * (9 << 20) + b'"}', 413),
    ]


def _completions() -> list[Poison]:
    return [
        _completion("n of zero", n=0),
        _completion("n of a billion", n=10**9),
        _completion("n beyond 64 bits", n=2**70),
        _completion("n as text", n="2"),
        _completion("n as a fraction", n=1.5),
        _completion("n as a truth", n=True),
        _completion("max_tokens below zero", max_tokens=-1),
        _completion("max_tokens beyond 64 bits", max_tokens=10**30),
        _completion("temperature of a thousand", temperature=1000),
        _completion("temperature below zero", temperature=-0.1),
        _completion("top_p of zero", top_p=0),
        _completion("top_k below -1", top_k=-2),
        _completion("min_p of two", min_p=2),
        _completion("repetition_penalty of zero", repetition_penalty=0),
        _completion("repetition_penalty that makes logits infinite", repetition_penalty=5e-324),
        _completion("presence_penalty of three", presence_penalty=3),
        _completion("seed beyond 64 bits", seed=2**64),
        _completion("seed as a list", seed=[1]),
        _completion("an empty stop string", stop=""),
        _completion("a thousand stop strings", stop=["a"] * 1000),
        _completion("stop as a number", stop=3),
        _completion("stop with a number in it", stop=["a", 3]),
        _completion("logprobs of a million", logprobs=10**6),
        _completion("all logprobs", logprobs=-1),
        _completion("prompt_logprobs of a million", prompt_logprobs=10**6),
        _completion("prompt_logprobs in a stream", prompt_logprobs=1, stream=True),
        _completion("logit_bias of words", logit_bias={"Paris": 1}),
        _completion("logit_bias outside the vocabulary", logit_bias={"99999999": 1}),
        _completion("logit_bias below the vocabulary", logit_bias={"-1": 1}),
        _completion("logit_bias too strong", logit_bias={"5": 1000}),
        _completion("logit_bias as a list", logit_bias=[1, 2]),
        _completion("stop token outside the vocabulary", stop_token_ids=[4096]),
        _completion("stop token below zero", stop_token_ids=[-1]),
        _completion("no token allowed", allowed_token_ids=[]),
        _completion("a token allowed that does not exist", allowed_token_ids=[10**6]),
        _completion("min_tokens above max_tokens", min_tokens=5),
        _completion("priority beyond 32 bits", priority=2**40),
        _completion("a salt of a megabyte", cache_salt="s" * (1 << 20)),
        _completion("a grammar without end", structured_outputs={"regex": "(" * 30_000}),
        _completion("two grammars at once", structured_outputs={"regex": "a", "choice": ["b"]}),
        _completion("stream as text", stream="yes"),
        _completion("stream_options without a stream", stream_options={"include_usage": True}),
        _completion("best_of", best_of=4),
        _completion("a suffix", suffix="end"),
        _completion("a model that is not served", 404, model="gpt-4"),
        _completion("a model that is a path", 404, model="../../etc/passwd"),
        _completion("a model that is a number", model=4),
    ]


def _lengths() -> list[Poison]:
    return [
        _completion("no prompt at all", prompt=None),
        _completion("an empty list", prompt=[]),
        _completion("an empty list of ids", prompt=[[]]),
        _completion("ids and texts", prompt=["Hi", 5]),
        _completion("ids outside the vocabulary", prompt=[4096]),
        _completion("ids beyond 32 bits", prompt=[2**40]),
        _completion("ids below zero", prompt=[-1]),
        _completion("ids as fractions", prompt=[1.5]),
        _completion("an object", prompt={"text": "Hi"}),
        _completion("lists too deep", prompt=[[[5]]]),
        _completion("one that is longer than the model", prompt="word " * 5000),
        _completion("ids that are more than the model takes", prompt=[5] * 5000),
        _completion("three thousand prompts", prompt=["Hi"] * 3000),
        _completion("many prompts times many samples", prompt=["Hi"] * 1000, n=128),
        _completion("one long prompt among short ones", prompt=["Hi", "word " * 5000, "Hi"]),
    ]


def _chats() -> list[Poison]:
    picture = [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest/meta-data"}}]
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "[" * 5000}}
    return [
        _chat("no messages", messages=[]),
        _chat("messages as text", messages="Hi"),
        _chat("a message as text", messages=["Hi"]),
        _chat("a role that does not exist", messages=[{"role": "king", "content": "Hi"}]),
        _chat("no role", messages=[{"content": "Hi"}]),
        _chat("content as a number", messages=[{"role": "user", "content": 5}]),
        _chat("a picture to fetch", messages=[{"role": "user", "content": picture}]),
        _chat("a template from outside", chat_template="{{ ''.__class__.__mro__ }}"),
        _chat("a template through the back door", chat_template_kwargs={"chat_template": "{{ 1 }}"}),
        _chat("messages through the back door", chat_template_kwargs={"messages": []}),
        _chat("arguments that are no JSON", messages=[*_USER, {"role": "assistant", "tool_calls": [call]}]),
        _chat("top_logprobs without logprobs", top_logprobs=2),
        _chat("top_logprobs of a thousand", logprobs=True, top_logprobs=1000),
        _chat("logprobs as a number", logprobs=5),
        _chat("an unknown response_format", response_format={"type": "xml"}),
        _chat("a schema that is a number", response_format={"type": "json_schema", "json_schema": 5}),
        _chat("a tool without a name", tools=[{"type": "function", "function": {}}]),
        _chat("a tool that is none", tools=[{"type": "code_interpreter"}]),
        _chat("a tool_choice without tools", tool_choice="required"),
        _chat("sound", modalities=["audio"]),
        _chat("a conversation longer than the model", messages=[{"role": "user", "content": "word " * 5000}]),
        _chat("continue and begin at once", continue_final_message=True, add_generation_prompt=True),
    ]


def _others() -> list[Poison]:
    return [
        _json("responses: nothing to go on with", RESPONSES, {"input": []}),
        _json("responses: a stored one", RESPONSES, {"input": "Hi", "previous_response_id": "resp_1"}),
        _json("responses: a call without a name", RESPONSES, {"input": [{"type": "function_call", "call_id": "c"}]}),
        _json("responses: in the background", RESPONSES, {"input": "Hi", "background": True}),
        _json("embeddings: another size", EMBEDDINGS, {"input": "Hi", "dimensions": 8}),
        _json("embeddings: another pooling", EMBEDDINGS, {"input": "Hi", "pooling": "max"}),
        _json("embeddings: nothing", EMBEDDINGS, {"input": []}),
        _json("tokenize: nothing", TOKENIZE, {}),
        _json("tokenize: both", TOKENIZE, {"prompt": "Hi", "messages": _USER}),
        _json("detokenize: ids beyond 32 bits", DETOKENIZE, {"tokens": [2**31]}),
        _json("detokenize: text", DETOKENIZE, {"tokens": ["Hi"]}),
        Poison("a path that does not exist", request("POST", "/v1/nothing", b"{}"), (404,)),
        Poison("a path out of the server", request("GET", "/../../etc/passwd"), (404,)),
        Poison("a path with a null", request("GET", "/v1/models/%00"), (404,)),
        Poison("a method that does not exist", request("BREW", "/v1/models"), (400, 405)),
        Poison("the wrong method", request("DELETE", COMPLETIONS, b"{}"), (405,)),
    ]


def _connections() -> list[Poison]:
    """What is hardly HTTP."""
    huge = "a" * (64 << 10)
    many = {f"x-{index}": "1" for index in range(500)}
    return [
        Poison("no HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello\r\n\r\n"),
        Poison("a header of 64 KiB", request("GET", "/v1/models", headers={"x-long": huge}), (431,)),
        Poison("500 headers", request("GET", "/v1/models", headers=many), (431,)),
        Poison("a path of 64 KiB", request("GET", f"/{huge}"), (431,)),
        Poison("a length of words", request("POST", COMPLETIONS, b"{}", {"content-length": "two"})),
        Poison("a length below zero", request("POST", COMPLETIONS, b"{}", {"content-length": "-2"})),
        Poison("a length of a terabyte", request("POST", COMPLETIONS, b"{}", {"content-length": str(1 << 40)}), (413,)),
        Poison(
            "two lengths",
            b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}",
        ),
        Poison(
            "a length and chunks",
            b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n"
            b"2\r\n{}\r\n0\r\n\r\n",
        ),
        Poison(
            "a chunk of no size",
            b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n{}\r\n0\r\n\r\n",
        ),
    ]
