"""The generator, tokenizer, chat format and model of quire-tiny's recipe; nothing is trained here."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment
from safetensors.torch import load_file
from tokenizers import Tokenizer

from examples.train_tiny.evaluate import complete, load_model, score
from examples.train_tiny.export import export, model_config
from examples.train_tiny.model import TinyConfig, TinyLlama
from examples.train_tiny.text.chat_format import BOS, CHAT_TEMPLATE, EOS, IM_END, SPECIAL_TOKENS, render_chat
from examples.train_tiny.text.corpus import DOMAINS, held_out_documents, is_held_out, training_documents
from examples.train_tiny.text.facts import arithmetic
from examples.train_tiny.text.grammar import Draw, expand
from examples.train_tiny.tokenizer import train_tokenizer
from examples.train_tiny.train import DEFAULT_OUT, TrainConfig, learning_rate_at, packed_batches

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = TinyConfig(vocab_size=320, hidden_size=64, intermediate_size=96, num_layers=2, num_heads=4, num_kv_heads=2)
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "text": "é"}}}
CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 1 + 1?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]},
    {"role": "tool", "content": "2"},
    {"role": "assistant", "content": "2"},
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(islice(training_documents(1), 200), SMALL.vocab_size)


def test_the_same_seed_writes_the_same_text() -> None:
    first, second = (list(islice(training_documents(7), 50)) for _ in range(2))
    assert first == second
    assert first != list(islice(training_documents(8), 50))


def test_text_does_not_depend_on_the_hash_seed() -> None:
    program = (
        "import itertools, zlib; from examples.train_tiny.text.corpus import training_documents as d; "
        "print(zlib.crc32(''.join(itertools.islice(d(3), 100)).encode()))"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=REPOSITORY,
            env={"PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1


def test_held_out_documents_are_never_trained_on() -> None:
    assert not any(is_held_out(document) for document in islice(training_documents(1), 300))
    held_out = list(islice(held_out_documents("facts", 2), 5))
    assert all(is_held_out(document) for document in held_out)
    assert len(set(held_out)) == 5


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_domain_leaves_no_template_marks(domain: str) -> None:
    draw = Draw(5)
    for _ in range(30):
        text = DOMAINS[domain](draw)
        assert text.strip()
        assert "$" not in text
        assert "^" not in text
        assert not {"{", "|"} & set(text) or domain.endswith("chat")


def test_expand_agrees_articles_and_capitals() -> None:
    assert expand("^$who saw a $what.", {"who": "tom", "what": ["owl"]}, Draw(0)) == "Tom saw an owl."
    assert expand("a honest useful hour, a {old|old} umbrella", {}, Draw(0)) == "an honest useful hour, an old umbrella"


def test_sums_are_right() -> None:
    draw = Draw(2)
    for _ in range(200):
        line = arithmetic(draw).rstrip(".")
        left, equals, right = line.partition(" = ")
        if equals:
            first, sign, second = left.split()
            values = {"+": int(first) + int(second), "-": int(first) - int(second)}
            assert int(right) == values.get(sign, int(first) * int(second))


@pytest.mark.parametrize(
    "text", ["naïve café", "日本語 🦊👍🏽", "tabs\t and \r\n lines  ", "\x00\x7f", "<|not special|>", ""]
)
def test_tokenizer_round_trips_unicode(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids
    assert ids[0] == tokenizer.token_to_id(BOS)
    assert tokenizer.decode(ids) == text


def test_special_tokens_come_first_and_are_whole(tokenizer: Tokenizer) -> None:
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(len(SPECIAL_TOKENS)))
    assert tokenizer.encode(EOS, add_special_tokens=False).ids == [tokenizer.token_to_id(EOS)]


@pytest.mark.parametrize("tools", [[], [TOOL]])
@pytest.mark.parametrize("add_generation_prompt", [False, True])
@pytest.mark.parametrize("messages", [CHAT, CHAT[1:], CHAT[:1]])
def test_template_and_python_render_alike(
    messages: list[dict[str, Any]], tools: list[dict[str, Any]], add_generation_prompt: bool
) -> None:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "sort_keys": False}
    environment.filters["tojson"] = _plain_json
    rendered = environment.from_string(CHAT_TEMPLATE).render(
        messages=messages, tools=tools, add_generation_prompt=add_generation_prompt, bos_token=BOS
    )
    assert rendered == render_chat(messages, tools, add_generation_prompt)
    assert rendered.count(BOS) == 1


def _plain_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def test_rows_start_with_a_document_and_targets_are_one_ahead() -> None:
    inputs, targets = next(packed_batches(iter([[0, 5, 6, 1], [0, 7, 8, 9, 1], [0, 2], [0, 3, 4, 4, 4]]), 2, 4))
    assert inputs.tolist() == [[0, 5, 6, 1], [0, 2, 0, 3]]
    assert targets.tolist() == [[5, 6, 1, 0], [2, 0, 3, 4]]


def test_learning_rate_warms_up_then_falls() -> None:
    config = TrainConfig(num_steps=200, warmup_steps=10)
    rates = [learning_rate_at(step, config) for step in range(200)]
    assert max(rates) == rates[9] == config.learning_rate
    assert rates[-1] < 1.1 * config.final_learning_rate


def test_model_is_causal_and_reproducible() -> None:
    first, second = TinyLlama(SMALL), TinyLlama(SMALL)
    for model in (first, second):
        model.init_weights(torch.Generator().manual_seed(3))
    tokens = torch.tensor([[0, 5, 9, 7]])
    torch.testing.assert_close(first(tokens), second(tokens), rtol=0, atol=0)
    torch.testing.assert_close(first(tokens)[:, :2], first(tokens[:, :2]))
    assert abs(score(first, [[0, 5, 9, 7]]).perplexity / SMALL.vocab_size - 1) < 0.1


def test_export_writes_a_bfloat16_checkpoint(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = TinyLlama(SMALL)
    export(model, tokenizer, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert set(weights) == set(model.state_dict())
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert "lm_head.weight" not in weights
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert tokenizer.token_to_id(IM_END) == 3


@pytest.fixture(scope="module")
def shipped() -> tuple[TinyLlama, Tokenizer]:
    return load_model(DEFAULT_OUT), Tokenizer.from_file(str(DEFAULT_OUT / "tokenizer.json"))


@pytest.mark.parametrize(
    ("prompt", "start"),
    [
        (f"{BOS}The capital of France is", " Paris"),
        (f"{BOS}2 + 3 =", " 5"),
        (f"{BOS}Once upon a time", ", there was a"),
    ],
)
def test_shipped_model_continues_text(shipped: tuple[TinyLlama, Tokenizer], prompt: str, start: str) -> None:
    assert complete(*shipped, prompt, max_tokens=4).startswith(start)


def test_shipped_model_answers_and_stops(shipped: tuple[TinyLlama, Tokenizer]) -> None:
    question = [{"role": "user", "content": "What is the capital of Italy?"}]
    answer = complete(*shipped, render_chat(question, add_generation_prompt=True), max_tokens=30)
    assert answer == "The capital of Italy is Rome."


def test_shipped_model_is_small_and_speaks_this_chat_format(shipped: tuple[TinyLlama, Tokenizer]) -> None:
    model, tokenizer = shipped
    config = json.loads((DEFAULT_OUT / "config.json").read_text(encoding="utf-8"))
    assert config == model_config(model.config, tokenizer)
    assert sum(parameter.numel() for parameter in model.parameters()) < 8_000_000
    assert (DEFAULT_OUT / "model.safetensors").stat().st_size < 16_000_000
    tokenizer_config = json.loads((DEFAULT_OUT / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert tokenizer_config["chat_template"] == CHAT_TEMPLATE
