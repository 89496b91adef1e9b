"""Tool calls as models write them: every way to cut a text into pieces gives the same, and nothing makes it raise."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.core.errors import ConfigError
from quire.server.tools.formats import FORMATS, detect_format
from quire.server.tools.parser import make_tool_parser
from quire.server.tools.types import ContentDelta, ToolCallDelta, ToolSpec

NAMES = ("get_weather", "f", "ищи", 'say "hi"')
TOOLS = [ToolSpec(name, None, {"type": "object"}) for name in NAMES]


def read(form, pieces, tools=TOOLS):
    """Return content and calls (name, arguments) of an answer in pieces."""
    parser = make_tool_parser(form, tools)
    deltas = [delta for piece in pieces for delta in parser.feed(piece)] + parser.finish()
    content, calls, ids = "", [], []
    for delta in deltas:
        if isinstance(delta, ContentDelta):
            assert delta.text
            content += delta.text
            continue
        assert isinstance(delta, ToolCallDelta)
        if delta.id is None:
            assert delta.name is None and delta.index == len(calls) - 1 and delta.arguments
        else:
            assert delta.index == len(calls) and delta.name
            calls.append([delta.name, ""])
            ids.append(delta.id)
        calls[delta.index][1] += delta.arguments
    assert len(set(ids)) == len(ids)
    return content, [tuple(call) for call in calls]


def call_text(form, name, arguments):
    key = FORMATS[form].arguments_key
    return f'{{"name": {json.dumps(name, ensure_ascii=False)}, "{key}": {arguments}}}'


def answer_text(form, content, calls):
    """Return an answer as a model of this format writes it."""
    texts = [call_text(form, *call) for call in calls]
    if form == "hermes":
        return content + "".join(f"\n<tool_call>\n{text}\n</tool_call>" for text in texts)
    if form == "mistral":
        return content + "[TOOL_CALLS] [" + ", ".join(texts) + "]"
    return content + "<|python_tag|>" + "; ".join(texts)


MARKERS = (
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    "<|python_tag|>",
    "]",
    "}",
    "{",
    ";",
    '"',
    "\\",
    "é🙂",
    "\u2028",
)
strings = st.lists(st.sampled_from(MARKERS) | st.text(max_size=3), max_size=4).map("".join)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | strings,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(strings, inner, max_size=3),
    max_leaves=6,
)
arguments = st.builds(
    lambda value, ascii, indent: json.dumps(value, ensure_ascii=ascii, indent=indent),
    st.dictionaries(strings, values, max_size=3),
    st.booleans(),
    st.sampled_from([None, 1]),
)
calls = st.lists(st.tuples(st.sampled_from(NAMES), arguments), min_size=1, max_size=3)
forms = st.sampled_from(sorted(FORMATS))


def cut(text, places):
    marks = sorted({place % (len(text) + 1) for place in places})
    return [text[a:b] for a, b in zip([0, *marks], [*marks, len(text)], strict=True)]


@settings(deadline=None, max_examples=100)
@given(forms, st.sampled_from(["", "Let me see.", "a < b [x]"]), calls)
def test_calls_come_out_byte_for_byte(form, content, wanted):
    found = read(form, answer_text(form, content, wanted))
    assert found == (content, wanted)


@settings(deadline=None, max_examples=100)
@given(forms, calls, st.lists(st.integers(0, 10_000), max_size=12), st.integers(0, 10_000))
def test_every_cut_of_a_truncated_answer_gives_the_same(form, wanted, places, end):
    text = answer_text(form, "Well:", wanted)
    text = text[: end % (len(text) + 1)]
    whole = read(form, [text])
    assert read(form, cut(text, places)) == whole
    for found, expected in zip(whole[1], wanted, strict=False):
        assert found[0] == expected[0] and expected[1].startswith(found[1])


PARTS = ('{"name": "f", ', '"arguments": {', '{"name": "f"}', "[", ",", ":", " ", "\n", "1", '"name"')
fragments = st.lists(
    st.sampled_from(
        [*MARKERS, '{"name": "f", ', '"arguments": {', '{"name": "f"}', "[", ",", ":", " ", "\n", "1", '"name"']
    )
    | st.text(max_size=2),
    max_size=16,
).map("".join)


@settings(deadline=None, max_examples=200)
@given(forms, fragments, st.lists(st.integers(0, 10_000), max_size=8))
def test_anything_may_be_written(form, text, places):
    whole = read(form, [text])
    assert read(form, cut(text, places)) == whole
    assert read(form, text) == whole
    if not whole[1]:
        assert whole[0] == text, "without a call all of it is content"
    assert read(form, [text], tools=[]) == (text, []), "without tools as well"


@pytest.mark.parametrize(
    ("form", "text", "content", "found"),
    [
        ("hermes", 'Hi\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', "Hi", [("f", '{"a": 1}')]),
        ("hermes", '<tool_call>{"name": "f"}</tool_call>', "", [("f", "{}")]),
        ("hermes", '<tool_call>{"arguments": {"a": 1} , "name": "f"}</tool_call>', "", [("f", '{"a": 1}')]),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1}</tool_call>', "", [("f", '{"a": 1}')]),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": tr', "", [("f", '{"a": tr')]),
        ("hermes", '<tool_call>{"name": "nobody", "arguments": {}}</tool_call>', None, []),
        ("hermes", '<tool_call>{"name": 7}</tool_call>', None, []),
        ("hermes", "<tool_call>sorry</tool_call>", None, []),
        ("hermes", '<tool_call>{"name": "f", "arguments": 3, "x": [1]}</tool_call>\nBye', "\nBye", [("f", "3")]),
        ("llama3_json", '{"name": "f", "parameters": {"a": "}"}}', "", [("f", '{"a": "}"}')]),
        ("llama3_json", '{"id": 3, "name": "f", "parameters": {}}; {"name": "f", "parameters": {"b": 2}}', "",
         [("f", "{}"), ("f", '{"b": 2}')]),
        ("llama3_json", '{"answer": 42}', None, []),
        ("llama3_json", 'See: {"name": "f", "parameters": {}}', None, []),
        ("mistral", '[{"name": "f", "arguments": {}}]', "", [("f", "{}")]),
        ("mistral", "[1, 2]", None, []),
        ("mistral", '[TOOL_CALLS][{"name": "f", "arguments": {}}, {"name"', ', {"name"', [("f", "{}")]),
        ("mistral", "  ", None, []),
    ],
)  # fmt: skip
def test_known_texts(form, text, content, found):
    assert read(form, [text]) == (text if content is None else content, found)
    assert read(form, text) == (text if content is None else content, found)


def test_content_is_not_held_longer_than_it_must():
    parser = make_tool_parser("hermes", TOOLS)
    assert parser.feed("a <tool") == [ContentDelta("a")]
    assert parser.feed("x") == [ContentDelta(" <toolx")]
    assert parser.feed('<tool_call>{"name": "f", ')[0].name == "f", "the name is told before the arguments are known"
    assert parser.feed('"arguments": {"a') == [ToolCallDelta(0, None, None, '{"a')]


def test_formats_are_found_in_templates():
    assert detect_format("... '[TOOL_CALLS]' ...") == "mistral"
    assert detect_format("<tool_call>") == "hermes" and detect_format(None) == "hermes"
    assert detect_format("<|start_header_id|> ... '{\"name\": ' '\"parameters\": '") == "llama3_json"
    assert detect_format(None, {"[TOOL_CALLS]"}) == "mistral"
    with pytest.raises(ConfigError, match=r"expected one of .*hermes.*got 'hermess'. Did you mean 'hermes'"):
        make_tool_parser("hermess", TOOLS)
