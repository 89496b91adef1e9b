"""Answers with tool calls, as chats and responses show them: the pieces joined are the whole, however they were cut."""

from itertools import pairwise

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.core.request import CompletionOutput
from quire.server.routes.responses import _Output
from quire.server.routes.tools import GrowingAnswer, PlainText
from quire.server.tools.parser import make_tool_parser
from quire.server.tools.types import ContentDelta, ToolSpec

WEATHER = ToolSpec(
    "weather", "The weather of a place.", {"type": "object", "properties": {"place": {"type": "string"}}}
)
TWO_CALLS = (
    'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"place": "Paris"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "weather", "arguments": {"place": "Ros\u00e9"}}\n</tool_call>'
)
TOOLS = [{"type": "function", "function": {"name": "weather", "description": WEATHER.description,
                                           "parameters": WEATHER.parameters}}]  # fmt: skip
MESSAGES = [{"role": "user", "content": "What is the weather in Paris?"}]


def pieces(text: str, cuts: list[int]) -> list[CompletionOutput]:
    """A text in pieces; the last one ends it."""
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    parts = [text[start:end] for start, end in pairwise(places)]
    return [
        CompletionOutput(0, part, [], finish_reason="stop" if number == len(parts) else None)
        for number, part in enumerate(parts, 1)
    ]


@given(st.lists(st.integers(0, 300), max_size=40))
def test_answers_grow_to_the_same_calls(cuts):
    answer = GrowingAnswer(make_tool_parser("hermes", [WEATHER]))
    for piece in pieces(TWO_CALLS, cuts):
        answer.add(piece)
    assert answer.text == "Let me see."
    assert [(call.function.name, call.function.arguments) for call in answer.calls] == [
        ("weather", '{"place": "Paris"}'),
        ("weather", '{"place": "Ros\u00e9"}'),
    ]
    assert len({call.id for call in answer.calls}) == 2


@given(st.lists(st.integers(0, 300), max_size=40))
def test_events_of_a_response_tell_its_items(cuts):
    answer, output = GrowingAnswer(make_tool_parser("hermes", [WEATHER])), _Output([])
    events = [event for piece in pieces(TWO_CALLS, cuts) for delta in answer.add(piece) for event in output.add(delta)]
    events += output.close("completed")
    assert [item.status for item in output.items] == ["completed"] * 3
    text, arguments, added, done = "", {}, [], []
    for name, fields in events:
        if name == "response.output_text.delta":
            text += fields["delta"]
        elif name == "response.function_call_arguments.delta":
            arguments[fields["output_index"]] = arguments.get(fields["output_index"], "") + fields["delta"]
        elif name == "response.output_item.added":
            added.append(fields["item"]["id"])
        elif name == "response.output_item.done":
            done.append(fields["item"]["id"])
    message, *calls = output.items
    assert text == message.content[0].text == "Let me see."
    assert arguments == {index + 1: call.arguments for index, call in enumerate(calls)}
    assert added == done == [item.id for item in output.items]


def test_an_answer_without_tools_is_text_as_it_is():
    answer = GrowingAnswer(PlainText())
    for piece in pieces(TWO_CALLS, [5, 50]):
        assert all(isinstance(delta, ContentDelta) for delta in answer.add(piece))
    assert answer.text == TWO_CALLS and not answer.calls


@pytest.mark.parametrize("seed", range(3))
def test_streamed_calls_are_the_whole_ones(client, seed):
    ask = {
        "model": "quire-tiny",
        "messages": MESSAGES,
        "tools": TOOLS,
        "max_tokens": 48,
        "seed": seed,
        "temperature": 0.8,
    }
    whole = client.chat.completions.create(**ask).choices[0]
    content, calls, reason = "", {}, None
    for chunk in client.chat.completions.create(**ask, stream=True):
        choice = chunk.choices[0]
        content += choice.delta.content or ""
        reason = choice.finish_reason or reason
        for call in choice.delta.tool_calls or ():
            name, arguments = calls.get(call.index, ("", ""))
            calls[call.index] = (name + (call.function.name or ""), arguments + call.function.arguments)
    assert content == (whole.message.content or "") and reason == whole.finish_reason
    expected = [(call.function.name, call.function.arguments) for call in whole.message.tool_calls or ()]
    assert [calls[index] for index in sorted(calls)] == expected
    assert (reason == "tool_calls") == bool(calls and whole.finish_reason != "length")


def test_tools_that_may_not_be_called_do_not_change_the_text(client):
    ask = {"model": "quire-tiny", "messages": MESSAGES, "max_tokens": 16, "temperature": 0}
    assert client.chat.completions.create(tools=TOOLS, tool_choice="none", **ask).choices[0].message.content == (
        client.chat.completions.create(**ask).choices[0].message.content
    )


def test_a_choice_of_a_tool_that_is_not_there_is_refused(client):
    choice = {"type": "function", "function": {"name": "another"}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="quire-tiny", messages=MESSAGES, tools=TOOLS, tool_choice=choice)
    assert caught.value.body["param"] == "tool_choice"
