"""Structured outputs of a real, small model: every text fits its form, and nobody else notices."""

import json
import re

import msgspec
import pytest

from quire import LLM, SamplingParams, StructuredOutputsParams
from quire.core.errors import RequestError
from quire.core.request import Request
from quire.sampling.grammar.state import GrammarState
from tests.support.equalities import bits

PROMPTS = ["Hello, I am", "The answer as JSON:", "{"]


def closed(**properties):
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


WORD = {"type": "string", "maxLength": 8}
DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}
SCHEMAS = {
    "integer": {"type": "integer", "minimum": -5, "maximum": 1000},
    "number": {"type": "number", "minimum": 0, "maximum": 1},
    "boolean": {"type": "boolean"},
    "null": {"type": "null"},
    "string": WORD,
    "const": {"const": {"a": [1, "é"]}},
    "enum": {"enum": ["red", "green", 3, None]},
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
    "date": {"type": "string", "format": "date"},
    "time": {"type": "string", "format": "date-time"},
    "uuid": {"type": "string", "format": "uuid"},
    "object": closed(name=WORD, age=DIGIT),
    "nested": closed(a=closed(b=closed(c=DIGIT))),
    "array": {"type": "array", "items": DIGIT, "minItems": 2, "maxItems": 4},
    "tuple": {"type": "array", "prefixItems": [WORD, DIGIT], "items": False, "minItems": 2},
    "any of": {"anyOf": [DIGIT, {"type": "boolean"}, closed(x=DIGIT)]},
    "one of": {"oneOf": [{"type": "null"}, DIGIT]},
    "all of": {"allOf": [{"type": "integer", "minimum": 3}, {"type": "integer", "maximum": 6}]},
    "reference": {"$defs": {"d": DIGIT}, **closed(a={"$ref": "#/$defs/d"}, b={"$ref": "#/$defs/d"})},
    "recursive": {"$ref": "#/$defs/n", "$defs": {"n": {"anyOf": [DIGIT, closed(v={"$ref": "#/$defs/n"})]}}},
    "optional": {**closed(a=DIGIT, b=WORD), "required": ["b"]},
    "map": {"type": "object", "additionalProperties": DIGIT, "maxProperties": 2},
}  # fmt: skip
FORMATS = {"date": r"\d{4}-\d\d-\d\d", "uuid": "[0-9a-fA-F-]{36}"}


def is_valid(schema, value, root=None):
    """Return whether a value fits a schema, for the keywords used here."""
    root = root or schema
    if "$ref" in schema:
        return is_valid(root["$defs"][schema["$ref"].rsplit("/", 1)[1]], value, root)
    if "const" in schema or "enum" in schema:
        return value in schema.get("enum", [schema.get("const")])
    for name, wanted in (("anyOf", any), ("oneOf", any), ("allOf", all)):
        if name in schema:
            return wanted(is_valid(each, value, root) for each in schema[name])
    kinds = {"integer": int, "number": (int, float), "boolean": bool, "null": type(None), "string": str}
    kinds |= {"object": dict, "array": list}
    if not isinstance(value, kinds[schema["type"]]) or (isinstance(value, bool) and schema["type"] != "boolean"):
        return False
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return schema.get("minimum", value) <= value <= schema.get("maximum", value)
    if isinstance(value, str):
        shape = schema.get("pattern") or FORMATS.get(schema.get("format"))
        return len(value) <= schema.get("maxLength", 99) and (shape is None or re.fullmatch(shape, value) is not None)
    if isinstance(value, list):
        items = [*schema.get("prefixItems", ()), *[schema.get("items")] * len(value)]
        is_long = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 99)
        return is_long and all(is_valid(each, v, root) for each, v in zip(items, value, strict=False))
    if isinstance(value, dict):
        known, more = schema.get("properties", {}), schema.get("additionalProperties")
        is_complete = set(schema.get("required", ())) <= set(value) and len(value) <= schema.get("maxProperties", 99)
        return is_complete and all(is_valid(known.get(key, more), v, root) for key, v in value.items())
    return True


@pytest.fixture(scope="module")
def llm():
    with LLM("quire-tiny", kv_cache_memory_bytes=64 << 20) as made:
        yield made


def params(outputs, **more):
    settings = {"max_tokens": 96, "seed": 0, **more}
    return SamplingParams(structured_outputs=StructuredOutputsParams(**outputs), **settings)


def completions(llm, wanted, prompts=PROMPTS):
    asked = [(prompt, each) for each in wanted for prompt in prompts]
    found = llm.generate([prompt for prompt, _ in asked], [each for _, each in asked], use_tqdm=False)
    return [(asked[i][1], output) for i, request in enumerate(found) for output in request.outputs]


def test_every_text_fits_its_schema(llm):
    ways = ({"temperature": 0.0}, {"temperature": 1.0, "n": 3}, {"temperature": 2.0, "seed": 7})
    wanted = [params({"json": schema}, **way) for schema in SCHEMAS.values() for way in ways]
    schemas = {json.dumps(schema): schema for schema in SCHEMAS.values()}
    num_whole = 0
    for asked, output in completions(llm, wanted, PROMPTS[:2]):
        schema = schemas[json.dumps(json.loads(asked.structured_outputs.json))]
        if output.finish_reason == "stop":
            num_whole += 1
            assert is_valid(schema, json.loads(output.text)), (schema, output.text)
            assert output.stop_reason is None
        else:
            assert output.finish_reason == "length" and len(output.token_ids) == 96, output
    assert num_whole > 0.9 * 2 * 5 * len(SCHEMAS), "few are cut"


def test_json_objects(llm):
    wanted = [params({"json_object": True}, seed=seed, max_tokens=64) for seed in range(4)]
    found = [output for _, output in completions(llm, wanted)]
    assert all(output.text.startswith("{") for output in found)
    whole = [json.loads(output.text) for output in found if output.finish_reason == "stop"]
    assert whole and all(isinstance(value, dict) for value in whole)


@pytest.mark.parametrize(
    ("outputs", "whole"),
    [
        ({"regex": r"\d{3}-[a-z]{2,9}!"}, r"\d{3}-[a-z]{2,9}!"),
        ({"regex": "(yes|no)(, (yes|no)){2}"}, "(yes|no)(, (yes|no)){2}"),
        ({"choice": ["positive", "negative", 'a "b"\n', "é🙂"]}, 'positive|negative|a "b"\n|é🙂'),
        ({"grammar": 'start: n (OP n)~2\nn: /[0-9]{1,3}/\nOP: "+" | "-"'}, r"\d{1,3}([+-]\d{1,3}){2}"),
        ({"grammar": 'root ::= "a" [bc]* "\\n"'}, "a[bc]*\n"),
    ],
)
def test_every_text_matches_as_a_whole(llm, outputs, whole):
    wanted = [params(outputs, temperature=0.0), *[params(outputs, seed=seed, n=2) for seed in range(6)]]
    num_whole = 0
    for _, output in completions(llm, wanted):
        assert output.finish_reason in ("stop", "length")
        if output.finish_reason == "stop":
            num_whole += 1
            assert re.fullmatch(whole, output.text), output.text
    assert num_whole >= 20


MIX = [
    params({"json": SCHEMAS["object"]}, temperature=0.0, logprobs=1, max_tokens=40),
    SamplingParams(temperature=1.0, seed=5, max_tokens=24, logprobs=2),
    params({"regex": "[a-z ]{120,300}"}, temperature=1.0, n=3, logprobs=1, max_tokens=30),
    SamplingParams(temperature=0.0, max_tokens=24, logprobs=2),
    params({"json_object": True}, temperature=1.0, seed=9, logprobs=1, max_tokens=40),
]
TEXTS = ["Hello", "My name is", "The weather in Paris was very good, and so we", "I am", "Once upon a time there was a"]


@pytest.fixture(scope="module")
def together(llm):
    return [bits(output) for output in llm.generate(TEXTS, MIX, use_tqdm=False)]


def test_alone_is_batched_and_samples_are_requests(llm, together):
    for index, (text, each) in enumerate(zip(TEXTS, MIX, strict=True)):
        assert bits(llm.generate(text, each, use_tqdm=False)[0]) == together[index]
    for index, sample in enumerate(together[2][0]):
        assert bits(llm.generate(TEXTS[2], MIX[2].for_sample(index), use_tqdm=False)[0])[0] == [sample]


def test_neighbours_are_unchanged(llm, together):
    plain = [1, 3]
    found = llm.generate([TEXTS[i] for i in plain], [MIX[i] for i in plain], use_tqdm=False)
    assert [bits(output) for output in found] == [together[i] for i in plain]


def test_preempted_and_chunked_is_undisturbed(together):
    with LLM("quire-tiny", block_size=8, kv_cache_memory_bytes=12 * 8 * 3072, max_model_len=80) as llm:
        assert [bits(output) for output in llm.generate(TEXTS, MIX, use_tqdm=False)] == together
        assert llm.get_metrics()["num_preemptions"] > 0
    with LLM("quire-tiny", max_num_batched_tokens=5, max_num_seqs=4, kv_cache_memory_bytes=8 << 20) as llm:
        assert [bits(output) for output in llm.generate(TEXTS, MIX, use_tqdm=False)] == together


def test_streamed_is_whole(llm, together):
    pieces = [output.outputs[0] for output in llm.stream(TEXTS[0], MIX[0])]
    assert tuple(token for piece in pieces for token in piece.token_ids) == tuple(together[0][0][0][0])


def test_a_grammar_that_fails_in_a_step_ends_its_sample_alone(llm, together, monkeypatch):
    mask, calls = GrammarState.mask, []

    def failing(self, output_token_ids):
        calls.append(len(output_token_ids))
        if len(output_token_ids) == 3 and self._outputs.json_object:
            raise ValueError("broken")
        return mask(self, output_token_ids)

    monkeypatch.setattr(GrammarState, "mask", failing)
    found = llm.generate(TEXTS, MIX, use_tqdm=False)
    assert [bits(output) for output in found[:4]] == together[:4]
    (failed,) = found[4].outputs
    assert failed.finish_reason == "error" and failed.stop_reason == "structured_outputs: ValueError in the grammar."
    assert tuple(failed.token_ids) == tuple(together[4][0][0][0][:3])
    assert not llm._engine.has_unfinished_requests()


def test_bad_grammars_are_refused_before_anything_runs(llm):
    with pytest.raises(RequestError, match="keywords that are supported"):
        llm.generate(["a", "b"], [SamplingParams(), params({"json": {"not": {}}})], use_tqdm=False)
    assert not llm._engine.has_unfinished_requests()


def test_min_tokens_may_leave_nothing(llm):
    (output,) = llm.generate("a", params({"choice": ["yes"]}, min_tokens=20), use_tqdm=False)[0].outputs
    assert output.finish_reason == "error" and "no token is left" in output.stop_reason


def test_without_a_tokenizer_there_are_none():
    message = "structured_outputs: expected None: the model has no tokenizer"
    asked = params({"regex": "a"}, detokenize=False)
    llm = LLM("quire-tiny", skip_tokenizer_init=True, kv_cache_memory_bytes=8 << 20)
    with llm, pytest.raises(RequestError, match=message):
        llm.generate([[5, 6]], asked, use_tqdm=False)


def test_they_cross_processes_as_text():
    request = Request("a", (1, 2), params({"choice": ["a", "b"]}))
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(request), type=Request)
    assert again.params.structured_outputs == request.params.structured_outputs
    assert hash(again.params.structured_outputs) == hash(request.params.structured_outputs)


def test_closing_ends_the_other_process():
    llm = LLM("quire-tiny", kv_cache_memory_bytes=8 << 20)
    llm.generate("a", params({"choice": ["a"]}), use_tqdm=False)
    process = llm._engine._admission._checker._process
    assert process.poll() is None
    llm.close()
    assert process.poll() is not None
