"""Structured outputs on a GPU, one step ahead of its results; without a GPU its kernels are interpreted."""

import re
from functools import partial

import pytest

from quire import LLM, SamplingParams, StructuredOutputsParams
from quire.engine import llm_engine
from quire.sampling.grammar.compiler import GrammarCompiler, TokenVocabulary
from quire.sampling.grammar.state import GrammarState
from tests.support import equalities
from tests.support.dummy_models import LLAMA, write_model
from tests.support.equalities import bits, prompts, run, run_alone

pytestmark = pytest.mark.usefixtures("gpu")

EOS = 2
TOKENS = [
    b"<s>",
    b"<pad>",
    b"</s>",
    *(bytes([byte]) for byte in b'abcdefghij0123456789{}[]":,. '),
    b"ab",
    b"abc",
    b"no",
    b'{"',
]
VOCAB = 61
MODEL = {**LLAMA, "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2,
         "num_key_value_heads": 1, "max_position_embeddings": 128, "tie_word_embeddings": False}  # fmt: skip


def greedy(regex=None, **more):
    outputs = None if regex is None else StructuredOutputsParams(regex=regex)
    settings = {"temperature": 0.0, "max_tokens": 3, "logprobs": 1, "detokenize": False, **more}
    return SamplingParams(structured_outputs=outputs, **settings)


WANTED = [
    greedy("[a-c]{2,9}"),
    greedy(),
    greedy("(ab|no)"),
    greedy("[0-9]+", temperature=0.9, seed=3, allowed_token_ids=[TOKENS.index(b"4"), TOKENS.index(b"7"), EOS]),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"), MODEL)


@pytest.fixture(scope="module")
def load(model):
    def grammars(tokenizer, vocab_size, eos_token_ids):
        tokens = [*TOKENS, *[b""] * (vocab_size - len(TOKENS))]
        return GrammarCompiler(lambda: TokenVocabulary(tokens, frozenset({0, 1, EOS}), frozenset({EOS})))

    def make(device="cuda", **options):
        settings = {"max_num_seqs": 8, "block_size": 4, "max_num_batched_tokens": 64, "kv_cache_memory_bytes": 1 << 20}
        llm = LLM(model, dtype="float32", load_format="dummy", skip_tokenizer_init=True, device=device,
                  hf_overrides={"eos_token_id": EOS}, **{**settings, **options})  # fmt: skip
        llm._engine._admission._tokenizer = object()  # never asked: the vocabulary is given above
        return llm

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llm_engine, "make_grammars", grammars)
        yield make


@pytest.fixture(scope="module")
def batch():
    return prompts(len(WANTED), seed=4, low=5, high=9, vocab_size=VOCAB)


@pytest.fixture(scope="module")
def together(load, batch):
    with load() as llm:
        return run(llm, batch, WANTED)


def text(outcome):
    token_ids = outcome[0][0][0]
    return b"".join(TOKENS[token] for token in token_ids if token != EOS).decode()


def test_the_texts_fit_and_are_those_of_the_cpu(load, batch, together):
    with load("cpu") as llm:
        expected = run(llm, batch, WANTED)
    assert [o[0][0][0] for o in together] == [o[0][0][0] for o in expected]
    assert re.fullmatch("[a-c]{2,}", text(together[0]))
    assert text(together[2]) in ("ab", "no") and together[2][0][0][3] == "stop"
    assert re.fullmatch("[47]+", text(together[3]))


def test_alone_is_batched_and_neighbours_are_unchanged(load, batch, together):
    with load() as llm:
        assert run_alone(llm, batch[1:3], WANTED[1:3]) == together[1:3]
        assert llm._engine.loop.runner.max_ahead == 1


@pytest.mark.slow
def test_preempted_is_undisturbed(load):
    batch = prompts(2, seed=2, low=7, high=7, vocab_size=VOCAB)
    wanted = [greedy("[a-j]{20}", max_tokens=4), greedy("[0-9]{20}", max_tokens=4)]
    equalities.preempted_is_undisturbed(partial(load), batch, wanted, num_blocks=5)


def test_a_grammar_that_fails_ends_its_row_alone(load, batch, together, monkeypatch):
    mask = GrammarState.mask

    def failing(self, output_token_ids):
        if len(output_token_ids) == 1 and "ab|no" in self._outputs.regex:
            raise ValueError("broken")
        return mask(self, output_token_ids)

    monkeypatch.setattr(GrammarState, "mask", failing)
    with load() as llm:
        failed, other = llm.generate(batch[2:], WANTED[2:], use_tqdm=False)
        assert failed.outputs[0].finish_reason == "error" and len(failed.outputs[0].token_ids) == 1
        assert bits(other) == together[3]
        llm._engine.loop.scheduler.check_integrity()


def test_only_rows_with_a_grammar_wait_for_results(load, batch):
    """The plain row is in every step; the other one in every second, when its last token is known."""
    with load() as llm:
        engine, steps = llm._engine, []
        execute = engine.loop.runner.execute
        engine.loop.runner.execute = lambda step: steps.append([row.row_id for row in step.rows]) or execute(step)
        engine.add_request("plain", batch[0], greedy(max_tokens=3, ignore_eos=True))
        engine.add_request("structured", batch[1], greedy("[a-j]{20}", max_tokens=2))
        while engine.has_unfinished_requests():
            engine.step()
    assert steps == [[0, 1], [0], [0, 1]]
