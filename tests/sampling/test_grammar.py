"""Grammars by themselves: what they allow, what is refused, and what no grammar may cost."""

import itertools
import json
import re
import threading
import time

import numpy as np
import pytest
import torch

from quire.core.errors import RequestError
from quire.core.sampling_params import SamplingParams
from quire.core.structured_outputs import StructuredOutputsParams
from quire.sampling.grammar.checker import GrammarChecker
from quire.sampling.grammar.compiler import GrammarCompiler, TokenVocabulary
from quire.sampling.grammar.state import GrammarState
from quire.sampling.row import SamplingRow
from quire.sampling.sampler import sample

WORDS = [b"yes", b"no", b"no!", b'{"', b'":', b' "', b"}}", "é".encode(), b"<s>", b"</s>", b""]
TOKENS = [bytes([byte]) for byte in range(256)] + WORDS
BOS, EOS = TOKENS.index(b"<s>"), TOKENS.index(b"</s>")
TEXT = {token: index for index, token in enumerate(TOKENS)}
VOCAB = len(TOKENS) + 6  # as if padded
VOCABULARY = TokenVocabulary([*TOKENS, *[b""] * 6], frozenset({BOS, EOS}), frozenset({EOS}))


@pytest.fixture(scope="module")
def grammars():
    return GrammarCompiler(lambda: VOCABULARY)


@pytest.fixture(scope="module")
def checker():
    made = GrammarChecker()
    yield made
    made.close()


def allowed(grammars, outputs, ids=()):
    words = GrammarState(grammars, StructuredOutputsParams(**outputs)).mask(list(ids))
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")
    assert not bits[VOCAB:].any() and not bits[len(TOKENS) :].any() and not bits[BOS]
    return set(np.flatnonzero(bits).tolist())


def spelled(text):
    return [TEXT[bytes([byte])] for byte in text.encode()]


def test_every_spelling_is_allowed_and_the_end_only_where_it_may_be(grammars):
    choice = {"choice": ["no", "no!", "yes"]}
    assert allowed(grammars, choice) == {TEXT[t] for t in (b"n", b"y", b"no", b"no!", b"yes")}
    assert allowed(grammars, choice, spelled("n")) == {TEXT[b"o"]}
    assert allowed(grammars, choice, [TEXT[b"no"]]) == {TEXT[b"!"], EOS}
    assert allowed(grammars, choice, [TEXT[b"no!"]]) == {EOS}, "it must end"


def test_special_tokens_are_no_text(grammars):
    assert allowed(grammars, {"regex": "<s>x"}) == {TEXT[b"<"]}
    assert EOS in allowed(grammars, {"regex": "[^x]*"}) and BOS not in allowed(grammars, {"regex": "[^x]*"})
    assert BOS not in allowed(grammars, {"grammar": "start: A\nA: ~/(a|b)*a/"}), "not even where all else is allowed"


@pytest.mark.parametrize("text", ['a"b', "x\\y", "né 🙂", "l\nm", "t\t/", ".*", "a|b", "[x]{2}", "^$", "-&~#", "a b\r"])
def test_choices_are_taken_as_they_are(grammars, text):
    ids = spelled(text)
    for place in range(len(ids)):
        found = allowed(grammars, {"choice": [text]}, ids[:place])
        assert ids[place] in found and EOS not in found
    assert allowed(grammars, {"choice": [text]}, ids) == {EOS}


@pytest.mark.parametrize(
    ("regex", "texts"),
    [
        (r"\d{3}-[a-c]+", ["123-a", "000-abc", "12-a", "123-", "123-d"]),
        ("^ab?$", ["a", "ab", "abb", "b"]),
        ("a/b|c\nd", ["a/b", "c\nd", "a", "cd"]),
        ("(?i)yes", ["YES", "yEs", "ye"]),
        ("(a*)*b", ["aaab", "b", "aaa"]),
    ],
)
def test_regular_expressions_match_the_whole_text(grammars, regex, texts):
    for text in texts:
        ids, is_allowed = spelled(text), True
        for place in range(len(ids)):
            is_allowed = is_allowed and ids[place] in allowed(grammars, {"regex": regex}, ids[:place])
        is_allowed = is_allowed and EOS in allowed(grammars, {"regex": regex}, ids)
        assert is_allowed == bool(re.fullmatch(regex, text)), text


def test_json_has_at_most_one_space_in_a_row(grammars):
    outputs = {"json": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}
    for text in ("{", '{"a"', '{"a":', '{"a":1'):
        assert TEXT[b" "] in allowed(grammars, outputs, spelled(text))
        found = allowed(grammars, outputs, spelled(text + " "))
        assert not found & {TEXT[b" "], TEXT[b"\n"], TEXT[b"\t"]}, text
    ignored = {"json": {**outputs["json"], "x-guidance": {"whitespace_flexible": True}}}
    assert TEXT[b"\n"] not in allowed(grammars, ignored, spelled("{")), "a schema cannot change that"


def test_gbnf_and_lark_say_the_same(grammars):
    lark = {"grammar": 'start: "x" digit+\ndigit: /[0-9]/'}
    gbnf = {"grammar": 'root ::= "x" digit+\ndigit ::= [0-9]'}
    for ids in ([], spelled("x"), spelled("x1")):
        assert allowed(grammars, lark, ids) == allowed(grammars, gbnf, ids)


def chain(length):
    return "start: a0\n" + "\n".join(f"a{i}: a{i + 1}" for i in range(length)) + f'\na{length}: "x"'


def references(length):
    steps = {f"d{i}": {"type": "object", "properties": {"a": {"$ref": f"#/$defs/d{i + 1}"}}} for i in range(length)}
    return {"$ref": "#/$defs/d0", "$defs": {**steps, f"d{length}": {"type": "string"}}}


def nested(depth):
    schema = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"json": {"not": {"type": "string"}}}, r'keywords that are supported, got \["not"\]'),
        ({"json": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
        ({"json": {"type": "string", "format": "zip"}}, 'a "format" that is known'),
        ({"json": {"$ref": "http://localhost/x"}}, "into the schema itself"),
        ({"json": {"$ref": "#"}}, "fulfils it"),
        ({"json": {"type": "integer", "minimum": 3, "maximum": 2}}, "fulfils it"),
        ({"json": {"type": "integer", "multipleOf": 79190011}}, "smaller or simpler"),
        ({"json": references(1500)}, "at most 65536|smaller or simpler"),
        ({"json": references(900)}, "smaller or simpler"),
        ({"json": {"properties": {f"p{i}": {} for i in range(3000)}}}, "smaller or simpler"),
        ({"json": {"allOf": [{"anyOf": [{"properties": {f"{i}{j}": {}}} for j in range(6)]} for i in range(9)]}}, "si"),
        ({"regex": "(?=a)b"}, "look-around"),
        ({"regex": r"(a)\1"}, "backreferences"),
        ({"regex": "("}, "a regular expression"),
        ({"regex": "(" * 3000 + ")" * 3000}, "structured_outputs.regex"),
        ({"grammar": "start: nobody"}, "every rule that is named"),
        ({"grammar": "root ::= ("}, "expected GBNF, got an error at character 10"),
        ({"grammar": "root ::= " + "(" * 5000}, "GBNF"),
        ({"grammar": "hello"}, "Lark"),
        ({"grammar": '%llguidance {}\nstart: "a"'}, "no %llguidance directive"),
        ({"grammar": "start: " + "(" * 3000 + '"a"' + ")" * 3000}, "less nesting"),
        ({"grammar": chain(3000)}, "smaller or simpler"),
        ({"grammar": "start: A\nA: " + " & ".join(f"/(.|\\n)*a.{{{i}}}(.|\\n)*/" for i in range(20))}, "simpler"),
    ],
)  # fmt: skip
def test_what_cannot_be_compiled_is_refused_within_its_budget(checker, outputs, message):
    checker.check(StructuredOutputsParams(regex="warm"))
    started = time.monotonic()
    with pytest.raises(RequestError, match=message) as raised:
        checker.check(StructuredOutputsParams(**outputs))
    assert time.monotonic() - started < 3, "one second, and what a busy machine adds"
    assert "llguidance" not in str(raised.value).replace("%llguidance", "") and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({}, "exactly one of .*, got none"),
        ({"regex": "a", "json_object": True}, "exactly one of .*, got regex, json_object"),
        ({"json_object": False}, "got none"),
        ({"json_object": "yes"}, "true or false"),
        ({"json": "{"}, "a JSON schema"),
        ({"json": "[]"}, "an object"),
        ({"json": {"a": object()}}, "a JSON schema"),
        ({"json": "[" * 100_000}, "a JSON schema"),
        ({"json": nested(70)}, "at most 64 levels"),
        ({"json": {"enum": ["x" * 70_000]}}, "at most 65536 characters"),
        ({"regex": ""}, "non-empty"),
        ({"regex": 3}, "text"),
        ({"choice": "abc"}, "a list of texts"),
        ({"choice": []}, "a list of texts"),
        ({"choice": ["a", 1]}, "text"),
        ({"choice": ["x" * 40_000, "y" * 40_000]}, "at most"),
    ],
)
def test_forms_are_checked_when_they_are_made(outputs, message):
    with pytest.raises(RequestError, match=message):
        StructuredOutputsParams(**outputs)


def test_deep_schemas_within_the_bounds_compile(checker, grammars):
    for schema in (nested(60), references(40), {"enum": [f"v{i}" for i in range(5000)]}):
        outputs = StructuredOutputsParams(json=schema)
        checker.check(outputs)
        grammars.prepare(outputs)


def test_ends_go_together_with_what_else_is_asked_for():
    with pytest.raises(RequestError, match="ignore_eos: expected False with structured_outputs"):
        SamplingParams(ignore_eos=True, structured_outputs=StructuredOutputsParams(regex="a"))
    with pytest.raises(RequestError, match="structured_outputs: expected StructuredOutputsParams"):
        SamplingParams(structured_outputs={"regex": "a"})


def test_checks_survive_their_process(checker):
    checker.check(StructuredOutputsParams(regex="first"))
    process = checker._process
    process.kill()
    process.wait()
    checker.check(StructuredOutputsParams(regex="second"))
    with pytest.raises(RequestError, match="simpler"):
        checker.check(StructuredOutputsParams(grammar=chain(3000)))
    assert checker._process is None, "it crashed"
    checker.check(StructuredOutputsParams(regex="third"))


def test_many_threads_may_check_and_compile(checker, grammars):
    errors = []

    def run(index):
        try:
            outputs = StructuredOutputsParams(regex=f"a{{{index % 5 + 1}}}")
            checker.check(outputs)
            assert allowed(grammars, {"regex": outputs.regex}) == {TEXT[b"a"]}
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_a_row_takes_only_what_its_grammar_allows_and_others_keep_their_bits(way, grammars):
    logits = torch.randn(6, VOCAB, generator=torch.Generator().manual_seed(0))
    plain = [SamplingRow(SamplingParams(seed=seed, logprobs=2), [0]) for seed in range(6)]
    before = sample(logits, plain)
    outputs = StructuredOutputsParams(choice=["yes", "no"])
    for index in (1, 4):
        params = SamplingParams(seed=index, logprobs=2, structured_outputs=outputs)
        plain[index] = SamplingRow(params, [0], grammar=GrammarState(grammars, outputs))
    after = sample(logits, plain)
    for index in range(6):
        if index in (1, 4):
            assert TOKENS[after[index].token_id] in (b"y", b"n", b"yes", b"no")
        else:
            assert after[index] == before[index]


def test_a_grammar_that_fails_ends_its_row_alone(way, grammars, monkeypatch):
    outputs = StructuredOutputsParams(choice=["yes"])
    rows = [SamplingRow(SamplingParams(seed=1), [0])]
    for output in ((), spelled("x")):  # the second has said what its grammar does not allow
        rows.append(SamplingRow(SamplingParams(seed=1), [0], output, grammar=GrammarState(grammars, outputs)))
    found = sample(torch.zeros(3, VOCAB), rows)
    assert found[0].error is None and found[1].error is None
    assert found[2].token_id == -1 and "structured_outputs.choice" in found[2].error
    monkeypatch.setattr(GrammarState, "mask", lambda *a: 1 / 0)
    found = sample(torch.zeros(3, VOCAB), rows)
    assert [result.error for result in found] == [None, *["structured_outputs: ZeroDivisionError in the grammar."] * 2]


def test_allowed_ids_and_grammars_hold_together(way, grammars):
    outputs = StructuredOutputsParams(choice=["yes", "no"])
    params = SamplingParams(seed=3, allowed_token_ids=[TEXT[b"no"], TEXT[b"x"]])
    row = SamplingRow(params, [0], grammar=GrammarState(grammars, outputs))
    assert sample(torch.zeros(1, VOCAB), [row])[0].token_id == TEXT[b"no"]
    row = SamplingRow(
        SamplingParams(seed=3, allowed_token_ids=[TEXT[b"x"]]), [0], grammar=GrammarState(grammars, outputs)
    )
    assert "no token is left" in sample(torch.zeros(1, VOCAB), [row])[0].error


def test_random_texts_are_json(way, grammars):
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
              "b": {"enum": [None, True, "é"]}}, "required": ["a", "b"], "additionalProperties": False}  # fmt: skip
    outputs = StructuredOutputsParams(json=schema)
    for seed in range(20):
        row = SamplingRow(SamplingParams(seed=seed), [0], grammar=GrammarState(grammars, outputs))
        logits = torch.randn(200, VOCAB, generator=torch.Generator().manual_seed(seed))
        for step in itertools.count():
            token = sample(logits[step : step + 1], [row])[0].token_id
            if token == EOS:
                break
            row.append(token)
        found = json.loads(b"".join(TOKENS[token] for token in row.output_token_ids))
        assert set(found) == {"a", "b"} and len(found["a"]) <= 3 and found["b"] in (None, True, "é")
