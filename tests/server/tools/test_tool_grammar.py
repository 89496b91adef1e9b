"""Answers that must be tool calls: what the grammar lets a model write, the parser reads."""

import json

import pytest
from test_tool_parser import read

from quire import LLM, SamplingParams
from quire.core.errors import RequestError
from quire.server.tools.formats import FORMATS
from quire.server.tools.grammar import structured_outputs_for
from quire.server.tools.types import ToolSpec

CITY = {"type": "string", "maxLength": 6}
TOOLS = [
    ToolSpec("weather", "Tells it", {"type": "object", "properties": {"city": CITY}, "required": ["city"],
                                     "additionalProperties": False}),
    ToolSpec('say "hi"', None, None),
]  # fmt: skip
FLAT = {"type": "function", "name": "weather"}
NAMED = {"type": "function", "function": {"name": "weather"}}


@pytest.fixture(scope="module")
def llm():
    with LLM("quire-tiny", kv_cache_memory_bytes=16 << 20) as made:
        yield made


@pytest.mark.parametrize("form", sorted(FORMATS))
@pytest.mark.parametrize(
    "choice", ["required", NAMED, {"type": "function", "name": "weather"}], ids=["any", "one", "flat"]
)
def test_every_answer_is_calls(llm, form, choice):
    grammar = structured_outputs_for(TOOLS, choice, form)
    wanted = SamplingParams(n=6, temperature=1.0, seed=1, max_tokens=96, structured_outputs=grammar)
    outputs = llm.generate("Call:", wanted, use_tqdm=False)[0].outputs
    num_whole = 0
    for output in outputs:
        content, calls = read(form, output.text, TOOLS)
        whole = calls if output.finish_reason == "stop" else calls[:-1]
        num_whole += len(whole)
        assert calls and (choice == "required" or len(calls) == 1)
        assert content == "" or output.finish_reason == "length", "a call that is cut before its name is content"
        for name, arguments in whole:
            assert name == "weather" or choice == "required"
            assert list(json.loads(arguments)) == (["city"] if name == "weather" else [])
    assert num_whole >= 6


@pytest.mark.parametrize("form", sorted(FORMATS))
def test_one_call_if_they_may_not_be_parallel(llm, form):
    outputs = structured_outputs_for(TOOLS[1:], "required", form, parallel_tool_calls=False)
    wanted = SamplingParams(n=4, temperature=1.0, seed=1, max_tokens=64, structured_outputs=outputs)
    for output in llm.generate("Call:", wanted, use_tqdm=False)[0].outputs:
        content, [(name, arguments)] = read(form, [output.text], TOOLS)
        assert content == "" and name == 'say "hi"' and json.loads(arguments) == {}


def test_a_free_choice_needs_no_grammar():
    assert structured_outputs_for(TOOLS, "auto", "hermes") is None
    assert structured_outputs_for(TOOLS, None, "qwen") is None and structured_outputs_for([], "none", "hermes") is None


@pytest.mark.parametrize(
    ("tools", "choice", "message"),
    [
        ([], "required", "expected tools beside it"),
        (TOOLS, "sometimes", "expected none, auto, required or a function, got 'sometimes'"),
        (TOOLS, {"type": "function", "function": {"name": "nobody"}}, "one of the tools, got 'nobody'"),
        (TOOLS, {"function": "weather"}, "one of the tools, got 'None'"),
        ([ToolSpec("f", None, {"enum": ["x" * 70_000]})], "required", "at most 65536"),
    ],
)
def test_choices_that_cannot_be_honoured(tools, choice, message):
    with pytest.raises(RequestError, match=message):
        structured_outputs_for(tools, choice, "hermes")
