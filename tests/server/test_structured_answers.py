"""Structured outputs and forced calls through the whole server: what comes is of the form asked for, or 400."""

import json
import re
import threading
import time
from itertools import pairwise
from typing import Literal

import openai
import pydantic
import pytest

MODEL = "quire-tiny"
QUESTION = [{"role": "user", "content": "Where is the Eiffel tower, and how high is it?"}]
LARGE = {"type": "object", "properties": {"s": {"type": "string", "maxLength": 400}}, "required": ["s"]}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {"place": {"enum": ["Paris", "Rosé"]}, "days": {"type": "integer", "maximum": 9}},
                "required": ["place", "days"],
                "additionalProperties": False,
            },
        },
    }
    for name in ("weather", "traffic")
]


class Tower(pydantic.BaseModel, extra="forbid"):
    """What a client wants to know."""

    city: Literal["Paris", "Rome"]
    metres: int = pydantic.Field(ge=0, le=999)
    open: bool


@pytest.mark.parametrize("seed", range(3))
def test_a_model_of_the_client_is_filled(client, seed):
    made = client.chat.completions.parse(model=MODEL, messages=QUESTION, response_format=Tower, seed=seed)
    assert made.choices[0].finish_reason == "stop" and isinstance(made.choices[0].message.parsed, Tower)
    text = "".join(
        chunk.choices[0].delta.content or ""
        for chunk in client.chat.completions.create(
            model=MODEL, messages=QUESTION, seed=seed, stream=True,
            response_format={"type": "json_schema", "json_schema": {"name": "t", "schema": Tower.model_json_schema()}},
        )
    )  # fmt: skip
    assert Tower.model_validate_json(text)


def test_any_object(client):
    made = client.chat.completions.create(
        model=MODEL, messages=QUESTION, response_format={"type": "json_object"}, max_tokens=100, temperature=0
    ).choices[0]
    assert made.message.content.startswith("{")
    if made.finish_reason == "stop":
        assert isinstance(json.loads(made.message.content), dict)


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ({"regex": r"\d{3}-[a-c]{1,9}x"}, r"\d{3}-[a-c]{1,9}x"),
        ({"choice": ["yes", "no", "never"]}, "yes|no|never"),
        ({"grammar": 'start: "a" B\nB: /[01]{4}/'}, "a[01]{4}"),
        ({"json": {"type": "array", "items": {"enum": [0, 1]}, "minItems": 1, "maxItems": 1}}, r"\[ ?[01] ?\]"),
    ],
)  # fmt: skip
def test_every_sample_of_a_completion_has_the_form(client, form, pattern):
    made = client.completions.create(
        model=MODEL, prompt=["Once", "Twice"], n=3, max_tokens=64, extra_body={"structured_outputs": form}
    )
    assert len(made.choices) == 6
    for choice in made.choices:
        assert choice.finish_reason == "stop" and re.fullmatch(pattern, choice.text), choice


@pytest.mark.parametrize(
    "form",
    [
        {"regex": "(?=a)b"},
        {"grammar": "start: nobody"},
        {"json": {"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1/x"}}}},
        {"grammar": "start: A\nA: " + " & ".join(f"/(.|\\n)*a.{{{i}}}(.|\\n)*/" for i in range(20))},
    ],
)
def test_what_cannot_be_compiled_is_refused_before_it_runs(client, form):
    with pytest.raises(openai.BadRequestError, match="structured_outputs"):
        client.completions.create(model=MODEL, prompt="Once", extra_body={"structured_outputs": form})


def test_hostile_grammars_hold_up_no_stream(client):
    """Each check takes the second that it may; a stream beside them goes on."""
    hostile = ["start: A\nA: " + " & ".join(f"/(.|\\n)*{c}.{{{i}}}(.|\\n)*/" for i in range(20)) for c in "bcd"]
    refused = []

    def ask(grammar):
        try:
            client.completions.create(
                model=MODEL, prompt="x", max_tokens=4, extra_body={"structured_outputs": {"grammar": grammar}}
            )
        except openai.BadRequestError as error:
            refused.append(error)

    threads = [threading.Thread(target=ask, args=(grammar,)) for grammar in hostile]
    times = []
    stream = client.completions.create(
        model=MODEL, prompt="Once", max_tokens=300, stream=True, extra_body={"ignore_eos": True}
    )
    for number, _ in enumerate(stream):
        times.append(time.monotonic())
        if number == 5:
            for thread in threads:
                thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 3
    assert max(late - early for early, late in pairwise(times)) < 0.9


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "traffic"}}])
@pytest.mark.parametrize("seed", range(3))
def test_forced_calls_streamed_are_the_whole_ones(client, choice, seed):
    ask = {"model": MODEL, "messages": QUESTION, "tools": TOOLS, "tool_choice": choice, "seed": seed,
           "parallel_tool_calls": seed == 1, "max_tokens": 400}  # fmt: skip
    whole = client.chat.completions.create(**ask).choices[0]
    assert whole.finish_reason == "tool_calls" and not whole.message.content
    expected = [(call.function.name, call.function.arguments) for call in whole.message.tool_calls]
    assert expected and ((seed == 1 and choice == "required") or len(expected) == 1)
    for name, arguments in expected:
        assert name in (("weather", "traffic") if choice == "required" else ("traffic",))
        given = json.loads(arguments)
        assert given["place"] in ("Paris", "Rosé") and given["days"] <= 9
    pieces = {}
    for chunk in client.chat.completions.create(**ask, stream=True):
        for call in chunk.choices[0].delta.tool_calls or ():
            name, arguments = pieces.get(call.index, ("", ""))
            pieces[call.index] = (name + (call.function.name or ""), arguments + call.function.arguments)
        reason = chunk.choices[0].finish_reason
    assert [pieces[index] for index in sorted(pieces)] == expected and reason == "tool_calls"


def test_a_forced_call_in_a_response(client):
    tools = [{"type": "function", **tool["function"]} for tool in TOOLS]
    made = client.responses.create(model=MODEL, input="Weather?", tools=tools, tool_choice="required",
                                   parallel_tool_calls=False, max_output_tokens=200)  # fmt: skip
    (call,) = [item for item in made.output if item.type == "function_call"]
    assert call.name in ("weather", "traffic") and json.loads(call.arguments)["place"] in ("Paris", "Rosé")


def test_a_form_beside_a_forced_call_is_refused(client):
    with pytest.raises(openai.BadRequestError, match="tool_choice"):
        client.chat.completions.create(model=MODEL, messages=QUESTION, tools=TOOLS, tool_choice="required",
                                       response_format={"type": "json_object"})  # fmt: skip
