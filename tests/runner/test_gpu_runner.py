"""Requests served by the GPU's runner, one step ahead of its results; without a GPU its kernels are interpreted."""

from functools import partial

import pytest

from quire import LLM, SamplingParams
from quire.builder.open import open_plan
from quire.core.config import BuildConfig
from quire.core.errors import RequestError
from quire.core.request import Request
from quire.core.sampling_params import BeamSearchParams
from quire.runner.gpu_runner import GPURunner
from quire.sampling.device import SamplingState
from quire.sampling.row import SamplingRow
from tests.support import equalities
from tests.support.dummy_models import LLAMA, write_model
from tests.support.equalities import KINDS, prompts, run, run_alone

pytestmark = pytest.mark.usefixtures("gpu")

VOCAB = 61
TINY = {
    **LLAMA,
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"), TINY)


@pytest.fixture(scope="module")
def batch():
    return prompts(len(KINDS), low=5, high=9, vocab_size=VOCAB)


def load(model, device="cuda", **options):
    settings = {"max_num_seqs": 8, "block_size": 4, "max_num_batched_tokens": 64, "kv_cache_memory_bytes": 1 << 20}
    return LLM(
        model, dtype="float32", load_format="dummy", skip_tokenizer_init=True, device=device, **{**settings, **options}
    )


@pytest.fixture(scope="module")
def together(model, batch):
    """The bits of all kinds of requests in one batch."""
    with load(model, enable_prefix_caching=False) as llm:
        return run(llm, batch, KINDS)


def tokens(outcome):
    return outcome[0][0][0]


def test_a_batch_is_what_the_cpu_computes(model, batch, together):
    with load(model, "cpu") as llm:
        expected = run(llm, batch, KINDS)
    assert [tokens(outcome) for outcome in together] == [tokens(outcome) for outcome in expected]
    for (got,), (wanted,) in zip((outcome[0] for outcome in together), (e[0] for e in expected), strict=True):
        assert got[3] == wanted[3] == "length"
        for one, other in zip(got[1] or (), wanted[1] or (), strict=True):
            assert list(one) == list(other)
            assert all(abs(one[t].logprob - other[t].logprob) < 1e-4 and one[t].rank == other[t].rank for t in one)
    for one, other in zip(together[2][1][1:], expected[2][1][1:], strict=True):
        assert list(one) == list(other)


def test_alone_is_batched_and_a_dirty_cache_does_not_show(model, batch, together):
    with load(model, enable_prefix_caching=False) as llm:
        llm._engine.loop.runner._loaded.kv_cache.fill_(float("nan"))
        assert run_alone(llm, batch, KINDS) == together


def test_chunked_is_whole_and_cached_is_cold(model, batch, together):
    with load(model, max_num_batched_tokens=13) as llm:
        assert run(llm, batch, KINDS) == together
        assert run(llm, batch[:2], KINDS[:2]) == together[:2]
        assert llm.get_metrics()["prefix_cache_hits"] > 0


def test_preempted_is_undisturbed(model):
    batch = prompts(2, seed=2, low=7, high=7, vocab_size=VOCAB)
    wanted = [SamplingParams(temperature=0.0, max_tokens=4, logprobs=1, ignore_eos=True, detokenize=False)] * 2
    equalities.preempted_is_undisturbed(partial(load, model), batch, wanted, num_blocks=5)


def test_samples_are_requests(model):
    many = SamplingParams(n=2, temperature=1.0, seed=11, max_tokens=2, logprobs=1, detokenize=False)
    equalities.samples_are_requests(partial(load, model), [1, 2, 3, 4, 5, 6], many)


def test_a_row_that_the_gpu_refuses_fails_alone(model, batch, together, monkeypatch):
    seen = []
    sample = SamplingState.sample
    monkeypatch.setattr(SamplingState, "sample", lambda self, *a: seen.append(a[2].num_logprobs) or sample(self, *a))
    refused = SamplingParams(temperature=0.0, max_tokens=3, logprobs=VOCAB, repetition_penalty=1.2, detokenize=False)
    with load(model) as llm:
        failed, other = llm.generate([batch[3], batch[0]], [refused, KINDS[0]], use_tqdm=False)
        assert failed.outputs[0].finish_reason == "error" and not failed.outputs[0].token_ids
        assert f"logprobs: expected at most 20 on a GPU, got {VOCAB}" in str(failed.outputs[0].stop_reason)
        assert equalities.bits(other) == together[0]
        (failed,) = llm.generate([batch[3]], [refused], use_tqdm=False)
        assert failed.outputs[0].finish_reason == "error"
    assert set(seen) <= {None, 2}, "nothing is computed for what is refused"


@pytest.mark.parametrize("pooling", ("mean", "last"))
def test_pooled_hidden_states_are_those_of_the_cpu(model, batch, pooling):
    plan = open_plan(model, BuildConfig(dtype="float32", load_format="dummy"))
    vectors = partial(equalities.vectors, plan, pooling, block_size=4, max_num_seqs=8)
    few = [batch[0], batch[1][:1], batch[2]]
    whole, _ = vectors(few, device="cuda")
    assert vectors(few, device="cuda", max_num_batched_tokens=9)[0] == whole
    assert [vectors([ids], device="cuda")[0][0] for ids in few[:2]] == whole[:2]
    for ours, theirs in zip(whole, vectors(few, device="cpu")[0], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)


def test_beams_are_those_of_the_cpu(model, batch):
    params = BeamSearchParams(beam_width=2, max_tokens=2)
    with load(model) as llm, load(model, "cpu") as cpu:
        found, expected = (each.beam_search([batch[0]], params)[0].sequences for each in (llm, cpu))
        assert [beam.tokens for beam in found] == [beam.tokens for beam in expected] and len(found) == 2
        with pytest.raises(RequestError, match=r"beam search: .*logprobs: expected at most 20 on a GPU, got 22"):
            llm.beam_search([batch[0]], BeamSearchParams(beam_width=11, max_tokens=2))


def test_a_row_without_a_token_left_fails_alone(model, batch, together):
    stuck = SamplingParams(
        temperature=0.0, max_tokens=3, min_tokens=2, allowed_token_ids=[7], stop_token_ids=[7], detokenize=False
    )
    with load(model) as llm:
        failed, other = llm.generate([batch[3], batch[0]], [stuck, KINDS[0]], use_tqdm=False)
    assert failed.outputs[0].finish_reason == "error" and "no token is left" in failed.outputs[0].stop_reason
    assert equalities.bits(other) == together[0]


def test_a_stop_token_ends_a_row_whose_next_step_is_in_flight(model, batch, together):
    first, second = tokens(together[0])[:2]
    stopped = SamplingParams(temperature=0.0, max_tokens=3, stop_token_ids=[second], detokenize=False)
    late = SamplingParams(temperature=0.0, max_tokens=3, min_tokens=2, stop_token_ids=[first], detokenize=False)
    with load(model) as llm, load(model, "cpu") as cpu:
        wanted = [stopped, late, KINDS[1]]
        outcomes = run(llm, [batch[0], batch[0], batch[1]], wanted)
        assert tokens(outcomes[0]) == [first, second] and outcomes[0][0][0][3] == "stop"
        assert tokens(outcomes[1])[0] != first
        assert tokens(outcomes[1]) == tokens(run(cpu, batch[:1], [late])[0])
        assert outcomes[2] == together[1]
        llm._engine.loop.scheduler.check_integrity()


def test_bad_words_see_every_token(model, batch, together):
    first, second, third = tokens(together[0])
    outcomes = []
    for device in ("cuda", "cpu"):
        with load(model, device) as llm:
            engine, plain = llm._engine, SamplingParams(temperature=0.0, max_tokens=3, seed=0, detokenize=False)
            for name, bad in (("banned", ((first, second),)), ("free", ())):
                request = Request(name, tuple(batch[0]), plain, frozenset(), bad_words_ids=bad)
                engine.loop.scheduler.add(request)
                engine.outputs.add(request)
            found = {}
            while engine.has_unfinished_requests():
                for output in engine.step():
                    found.setdefault(output.request_id, []).append(list(output.outputs[0].token_ids))
            outcomes.append(found)
    assert outcomes[0] == outcomes[1]
    assert outcomes[0]["free"][-1] == [first, second, third]
    assert outcomes[0]["banned"][-1][0] == first and outcomes[0]["banned"][-1][1] != second


def test_one_step_ahead(model, batch, together):
    with load(model) as llm:
        engine = llm._engine
        engine.add_request("a", batch[0], KINDS[0])
        assert engine.loop.runner.max_ahead == 1
        assert engine.step() == [] and len(engine.loop.in_flight) == 1, "started, and not waited for"
        engine.step()
        assert len(engine.loop.in_flight) == 1, "one result was taken, the next step runs"
        outputs = []
        while engine.has_unfinished_requests():
            outputs += engine.step()
        assert not engine.loop.in_flight and outputs[-1].finished
        assert equalities.bits(outputs[-1]) == together[0]


def test_abort_while_steps_are_in_flight(model, batch, together):
    with load(model) as llm:
        engine = llm._engine
        engine.add_request("a", batch[1], KINDS[1])
        engine.add_request("b", batch[0], KINDS[0])
        engine.step()
        engine.step()
        (aborted,) = engine.abort_request("a")
        assert aborted.outputs[0].finish_reason == "abort" and engine.loop.in_flight
        outputs = []
        while engine.has_unfinished_requests():
            outputs += engine.step()
        assert equalities.bits(outputs[-1]) == together[0]
        engine.add_request("c", batch[1], KINDS[1])
        engine.step()
        engine.abort_request("c")
        assert not engine.loop.in_flight, "nobody is left, so its step is waited for"
        engine.loop.scheduler.check_integrity()


def test_a_step_that_fails_ends_its_rows_and_no_step_is_built_on_it(model, batch, together, monkeypatch):
    with load(model) as llm:
        engine, outputs = llm._engine, {}

        def step():
            outputs.update({output.request_id: output for output in engine.step()})

        engine.add_request("a", batch[0], KINDS[0])
        step()
        forward = GPURunner._forward
        monkeypatch.setattr(GPURunner, "_forward", lambda self, staged: 1 / 0)
        engine.add_request("b", batch[1], KINDS[1])
        step()
        assert not engine.loop.in_flight and not engine.has_unfinished_requests()
        assert {name: output.outputs[0].finish_reason for name, output in outputs.items()} == {
            "a": "error",
            "b": "error",
        }
        assert len(outputs["a"].outputs[0].token_ids) == 1, "of the step before"
        monkeypatch.setattr(GPURunner, "_forward", forward)
        assert run(llm, batch[:2], KINDS[:2]) == together[:2]
        engine.loop.scheduler.check_integrity()


def test_a_row_that_cannot_be_made_fails_alone(model, batch, together, monkeypatch):
    made = SamplingRow.__init__
    monkeypatch.setattr(
        SamplingRow, "__init__", lambda row, params, *more: 1 / 0 if params.seed == 3 else made(row, params, *more)
    )
    with load(model) as llm:
        good, failed = llm.generate(batch[:2], KINDS[:2], use_tqdm=False)
    assert failed.outputs[0].finish_reason == "error" and "ZeroDivisionError" in failed.outputs[0].stop_reason
    assert equalities.bits(good) == together[0]


def test_sleep_and_wake_up(model, batch, together):
    with load(model) as llm:
        held = llm._engine.loop.runner.num_bytes()
        for level in (1, 2):
            llm.sleep(level)
            assert llm._engine.loop.runner.num_bytes() < held
            llm.wake_up()
            assert llm._engine.loop.runner.num_bytes() == held
        assert run(llm, batch[:1], KINDS[:1]) == together[:1]
