"""The official client against a real server process."""

import base64
import struct

import openai
import pytest

from quire.core.sampling_params import SamplingParams
from quire.llm import LLM

MODEL = "quire-tiny"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def llm():
    with LLM(MODEL, max_model_len=512) as made:
        yield made


def test_models(client):
    (model,) = client.models.list().data
    assert model.id == MODEL and model.max_model_len == 512 and model.default_sampling_params["top_p"] == 0.95
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("another")
    assert caught.value.body["code"] == "model_not_found"


def test_completion_is_what_the_library_says(client, llm):
    prompts = ["The capital of France is", "Once upon a time"]
    made = client.completions.create(model=MODEL, prompt=prompts, max_tokens=24, temperature=0.9, seed=5)
    params = SamplingParams(max_tokens=24, temperature=0.9, seed=5, top_p=0.95)
    expected = [output.outputs[0] for output in llm.generate(prompts, params, use_tqdm=False)]
    assert [choice.text for choice in made.choices] == [output.text for output in expected]
    assert [choice.finish_reason for choice in made.choices] == [output.finish_reason for output in expected]
    assert made.usage.completion_tokens == sum(len(output.token_ids) for output in expected)
    assert made.usage.total_tokens == made.usage.prompt_tokens + made.usage.completion_tokens


def test_prompts_of_every_kind_are_the_same(client, server):
    ids = server.post("/tokenize", {"prompt": "Once upon a time"})[1]["tokens"]
    ask = {"model": MODEL, "max_tokens": 8, "temperature": 0}
    texts = {client.completions.create(prompt=prompt, **ask).choices[0].text
             for prompt in ("Once upon a time", ["Once upon a time"], ids, [ids])}  # fmt: skip
    assert len(texts) == 1 and texts.pop()


def test_n_and_seed(client):
    ask = {"model": MODEL, "prompt": "Once", "max_tokens": 12, "temperature": 1.5}
    three = client.completions.create(n=3, seed=7, **ask).choices
    alone = [client.completions.create(seed=7 + i, **ask).choices[0].text for i in range(3)]
    assert [choice.text for choice in three] == alone and [choice.index for choice in three] == [0, 1, 2]
    assert len(set(alone)) > 1


@pytest.mark.parametrize(
    "more", [{}, {"n": 3}, {"stop": [" the", "."]}, {"logprobs": 2}, {"echo": True, "logprobs": 1}]
)
def test_streamed_completions_are_the_whole_ones(client, more):
    ask = {"model": MODEL, "prompt": ["Once upon a time", "In the"], "max_tokens": 30, "temperature": 0.8, "seed": 3}
    whole = client.completions.create(**ask, **more)
    text, reasons, logprobs = {}, {}, {}
    usage = None
    for chunk in client.completions.create(**ask, **more, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            assert choice.index not in reasons, "a chunk after the last one"
            text[choice.index] = text.get(choice.index, "") + choice.text
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
            if choice.logprobs:
                for name, values in choice.logprobs.model_dump().items():
                    logprobs.setdefault(choice.index, {}).setdefault(name, []).extend(values)
    assert text == {choice.index: choice.text for choice in whole.choices}
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}
    if "logprobs" in more:
        assert logprobs == {choice.index: choice.logprobs.model_dump() for choice in whole.choices}
    assert usage.model_dump() == {
        **whole.usage.model_dump(),
        "prompt_tokens_details": usage.prompt_tokens_details.model_dump(),
    }


def test_stop_strings_do_not_leak(client):
    ask = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 40, "temperature": 0}
    full = client.completions.create(**ask).choices[0].text
    stop = full[10:14]
    cut = client.completions.create(stop=stop, **ask).choices[0]
    assert cut.text == full[: full.index(stop)] and cut.finish_reason == "stop" and cut.stop_reason == stop


def test_logprobs_with_echo_as_evaluations_ask(client, server):
    """lm-eval posts ids with `echo`, `logprobs` and one token, and reads the lists by position."""
    prompts = [
        server.post("/tokenize", {"prompt": text})[1]["tokens"] for text in ("The capital of France", "Once upon")
    ]
    extra = {"return_tokens_as_token_ids": False}
    made = client.completions.create(model=MODEL, prompt=prompts, echo=True, logprobs=1, max_tokens=1, temperature=0,
                                     seed=1234, extra_body=extra)  # fmt: skip
    for choice, ids in zip(made.choices, prompts, strict=True):
        found = choice.logprobs
        assert found.token_logprobs[0] is None and found.top_logprobs[0] is None
        assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == len(ids) + 1
        assert all(value <= 0 for value in found.token_logprobs[1:])
        for value, top in zip(found.token_logprobs[1:], found.top_logprobs[1:], strict=True):
            assert value in top.values() and 1 <= len(top) <= 2
    none = client.completions.create(model=MODEL, prompt=prompts, echo=True, logprobs=1, max_tokens=0, temperature=0)
    for choice, whole in zip(none.choices, made.choices, strict=True):
        assert choice.logprobs.token_logprobs == whole.logprobs.token_logprobs[:-1]
        assert whole.text.startswith(choice.text) and choice.finish_reason == "length"
    assert none.usage.completion_tokens == 0


def test_text_offsets_point_into_the_text(client):
    choice = client.completions.create(model=MODEL, prompt="Once upon a time", echo=True, logprobs=0, max_tokens=20,
                                       temperature=0).choices[0]  # fmt: skip
    found = choice.logprobs
    for token, offset in zip(found.tokens, found.text_offset, strict=True):
        assert token.startswith("<|") or choice.text[offset : offset + len(token)] == token


def test_token_ids_instead_of_texts(client):
    extra = {"return_tokens_as_token_ids": True, "return_token_ids": True}
    choice = client.completions.create(model=MODEL, prompt="Once", logprobs=1, max_tokens=4, extra_body=extra).choices[
        0
    ]
    assert choice.logprobs.tokens == [f"token_id:{token}" for token in choice.token_ids]


def test_logit_bias(client, server):
    token = server.post("/tokenize", {"prompt": "Paris", "add_special_tokens": False})[1]["tokens"][0]
    bias, extra = {str(token): 100}, {"return_token_ids": True}
    made = client.completions.create(model=MODEL, prompt="Once", max_tokens=3, temperature=0, logit_bias=bias,
                                     extra_body=extra)  # fmt: skip
    assert made.choices[0].token_ids == [token] * 3


def test_extras_of_other_servers(client):
    extra = {"top_k": 1, "min_tokens": 12, "ignore_eos": True, "priority": 3, "cache_salt": "mine", "min_p": 0.1,
             "repetition_penalty": 1.1, "prompt_logprobs": 1, "include_timing": True, "return_token_ids": True,
             "stop_token_ids": [5], "something_new": 1}  # fmt: skip
    made = client.completions.create(model=MODEL, prompt="Once upon", max_tokens=12, extra_body=extra)
    choice = made.choices[0]
    assert len(choice.token_ids) == 12 and choice.prompt_logprobs[0] is None
    assert len(choice.prompt_logprobs) == len(choice.prompt_token_ids)
    assert made.timing["total_s"] >= made.timing["time_to_first_token_s"] > 0 and "queue_s" in made.timing
    assert made.warnings == ["something_new: unknown field, ignored."]


def test_chat(client, llm):
    made = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=24, temperature=0)
    expected = llm.chat(QUESTION, SamplingParams(max_tokens=24, temperature=0), use_tqdm=False)[0].outputs[0]
    choice = made.choices[0]
    assert choice.message.content == expected.text and choice.message.role == "assistant"
    assert choice.finish_reason == expected.finish_reason and choice.logprobs is None
    assert made.usage.completion_tokens == len(expected.token_ids)


def test_a_chat_may_be_as_long_as_there_is_room(client):
    made = client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, extra_body={"ignore_eos": True}
    )
    assert made.usage.total_tokens == 512 and made.choices[0].finish_reason == "length"


def test_parts_and_roles(client, server):
    plain = [{"role": "system", "content": "Be kind."}, *QUESTION]
    parts = [{"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
             {"role": "user", "content": [{"type": "text", "text": QUESTION[0]["content"]}]}]  # fmt: skip
    ids = [server.post("/tokenize", {"messages": messages})[1]["tokens"] for messages in (plain, parts)]
    assert ids[0] == ids[1]
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    turn = [{"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "2"}]  # fmt: skip
    text = server.post(
        "/detokenize", {"tokens": server.post("/tokenize", {"messages": [*QUESTION, *turn]})[1]["tokens"]}
    )
    assert '{"name": "f", "arguments": {"x": 1}}' in text[1]["prompt"]
    made = client.chat.completions.create(model=MODEL, messages=[*QUESTION, *turn], max_tokens=4)
    assert made.choices[0].message.content


@pytest.mark.parametrize("more", [{}, {"n": 2}, {"stop": ["a"]}, {"logprobs": True, "top_logprobs": 3}])
def test_streamed_chats_are_the_whole_ones(client, more):
    ask = {"model": MODEL, "messages": QUESTION, "max_tokens": 30, "temperature": 0.9, "seed": 11}
    whole = client.chat.completions.create(**ask, **more)
    content, reasons, logprobs, roles = {}, {}, {}, {}
    chunks = list(client.chat.completions.create(**ask, **more, stream=True, stream_options={"include_usage": True}))
    for chunk in chunks[:-1]:
        (choice,) = chunk.choices
        assert choice.index not in reasons and chunk.usage is None
        if choice.index not in roles:
            roles[choice.index] = choice.delta.role
        content[choice.index] = content.get(choice.index, "") + (choice.delta.content or "")
        logprobs.setdefault(choice.index, []).extend(choice.logprobs.content if choice.logprobs else [])
        if choice.finish_reason:
            reasons[choice.index] = choice.finish_reason
            assert choice.delta.content is None
    assert set(roles.values()) == {"assistant"}
    assert content == {choice.index: choice.message.content for choice in whole.choices}
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}
    if "logprobs" in more:
        assert logprobs == {choice.index: choice.logprobs.content for choice in whole.choices}
        assert all(len(entry.top_logprobs) == 3 for entry in logprobs[0])
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_usage_in_every_chunk(client):
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=6, stream=True,
                                                 stream_options=options, extra_body={"ignore_eos": True}))  # fmt: skip
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts) and counts[-1] == 6


def test_cached_tokens_are_told(client):
    ask = {"model": MODEL, "prompt": "A prefix that two requests share. " * 8, "max_tokens": 2, "temperature": 0}
    first, second = (client.completions.create(**ask) for _ in range(2))
    assert second.usage.prompt_tokens_details.cached_tokens >= 16 > first.usage.prompt_tokens_details.cached_tokens
    assert first.choices[0].text == second.choices[0].text
    other = client.completions.create(**ask, extra_body={"cache_salt": "another"})
    assert other.usage.prompt_tokens_details.cached_tokens == 0


def test_responses(client):
    ask = {"model": MODEL, "input": QUESTION[0]["content"], "temperature": 0, "max_output_tokens": 24}
    made = client.responses.create(**ask)
    chat = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=24, temperature=0)
    assert made.output_text == chat.choices[0].message.content
    assert made.usage.output_tokens == chat.usage.completion_tokens
    with client.responses.stream(**ask) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    assert final.output_text == made.output_text and final.usage == made.usage
    short = client.responses.create(model=MODEL, input="Hi", max_output_tokens=1, extra_body={"ignore_eos": True})
    assert short.status == "incomplete" and short.incomplete_details.reason == "max_output_tokens"


def test_responses_take_whole_conversations(client):
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "How warm is it?"}]},
        {"type": "function_call", "call_id": "c1", "name": "warmth", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "20"},
    ]
    made = client.responses.create(model=MODEL, input=items, instructions="Be brief.", max_output_tokens=5)
    assert made.output_text and made.instructions == "Be brief."


def test_embeddings(client):
    made = client.embeddings.create(model=MODEL, input=["a", "b"], encoding_format="float")
    packed = client.with_options().post("/embeddings", cast_to=dict, body={"input": "a", "encoding_format": "base64"})
    data = base64.b64decode(packed["data"][0]["embedding"])
    assert struct.unpack(f"<{len(data) // 4}f", data) == pytest.approx(made.data[0].embedding)
    assert sum(x * x for x in made.data[1].embedding) == pytest.approx(1.0, abs=1e-3)
    assert made.data[0].embedding != made.data[1].embedding and made.usage.prompt_tokens == 4


@pytest.mark.parametrize(
    "body, param",
    [
        ({"prompt": "a", "max_tokens": -1}, "max_tokens"),
        ({"prompt": "a", "temperature": 3}, "temperature"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "logprobs": 21}, "logprobs"),
        ({"prompt": "a", "guided_json": {}}, "guided_json"),
        ({"prompt": "a", "logit_bias": {"99999999": 1}}, "logit_bias"),
        ({"prompt": "a", "stream_options": {"include_usage": True}}, "stream_options"),
        ({"prompt": [[4096]]}, "prompt_token_ids"),
        ({"prompt": "word " * 600}, "prompt"),
    ],
)
def test_errors_name_the_field(client, body, param):
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/completions", cast_to=object, body={"model": MODEL, **body})
    assert caught.value.body["param"] == param and caught.value.body["type"] == "invalid_request_error"
    assert caught.value.response.headers["x-should-retry"] == "false"


def test_errors_have_types(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="another", prompt="a")
    assert caught.value.body["param"] == "model"
    with pytest.raises(openai.NotFoundError):
        client.get("/nothing", cast_to=object)
    with pytest.raises(openai.APIStatusError) as caught:
        client.get("/completions", cast_to=object)
    assert caught.value.status_code == 405


@pytest.mark.anyio
async def test_the_asynchronous_client(server):
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        stream = await client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=8, stream=True)
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert "".join(pieces)


@pytest.fixture
def anyio_backend():
    return "asyncio"
