"""The promises of the engine, bit for bit: what else runs, and how, never changes a request's tokens or logprobs."""

from functools import partial

import pytest

from quire import LLM, SamplingParams
from quire.core.sampling_params import RequestOutputKind
from quire.graph.nodes import is_call
from quire.plan.tactics import describe
from quire.runner import loaded
from tests.support import equalities
from tests.support.dummy_models import FAMILIES, LLAMA, write_model
from tests.support.equalities import params, prompts, run, run_alone

DTYPES = ("float32", "bfloat16")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {name: write_model(root / name, config) for name, config in FAMILIES.items()}


def load(path, dtype="float32", **options):
    settings = {"device": "cpu", "max_num_seqs": 64, "kv_cache_memory_bytes": 8 << 20, **options}
    return LLM(path, dtype=dtype, load_format="dummy", skip_tokenizer_init=True, **settings)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_batched_is_alone(models, family, dtype):
    wanted = [params(i) for i in range(64)]
    equalities.batched_is_alone(partial(load, models[family], dtype), prompts(64), wanted, (64, 33, 7, 2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ("llama", "mistral"))
def test_prefix_cached_is_cold(models, family, dtype):
    common = prompts(1, seed=5, low=70, high=70)[0]
    batch = [common + p for p in prompts(12, seed=6, high=30)] + [common[:33], common[:64], common]
    wanted = [params(i) for i in range(len(batch))]
    equalities.prefix_cached_is_cold(partial(load, models[family], dtype), batch, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_that_share_a_long_beginning_are_alone(dtype, tmp_path):
    """Their attention meets it together, while they decode."""
    model = write_model(tmp_path, {**LLAMA, "max_position_embeddings": 1024})
    common = prompts(1, seed=5, low=600, high=600)[0]
    batch = [common + p for p in prompts(9, seed=6, high=300)] + [common[:300] + p for p in prompts(3, seed=7)]
    wanted = [params(i, max_tokens=12, ignore_eos=True) for i in range(len(batch))]
    with load(model, dtype, max_num_seqs=16) as llm:
        together = run(llm, batch, wanted)
        assert llm.get_metrics()["prefix_cache_hits"] > 0
    with load(model, dtype, enable_prefix_caching=False) as llm:
        assert run_alone(llm, batch, wanted) == together


@pytest.mark.parametrize("tactic", ("first", "tiled"))
def test_what_others_left_in_the_cache_does_not_show(models, tactic, monkeypatch):
    if tactic == "tiled":
        monkeypatch.setattr(loaded, "choices", lambda plan, here, network, **rest: {
            describe(node): "tiled" for node in network.calls() if is_call(node, "attention")
        })  # fmt: skip
    batch, wanted = prompts(12, seed=3, low=2), [params(i) for i in range(12)]
    with load(models["llama"], enable_prefix_caching=False) as llm:
        expected = run_alone(llm, batch, wanted)
        llm._engine.loop.runner._loaded.kv_cache[:, :, 1:] = float("nan")  # 0 is nobody's
        assert run(llm, batch, wanted) == expected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ("llama", "mistral"))
def test_chunked_is_whole(models, family, dtype):
    batch = prompts(6, seed=7, low=3, high=80)
    wanted = [params(i, prompt_logprobs=2 if i == 1 else None) for i in range(len(batch))]
    equalities.chunked_is_whole(partial(load, models[family], dtype), batch, wanted, (1, 7, 16, 256))


@pytest.mark.parametrize("dtype", DTYPES)
def test_preempted_is_undisturbed(models, dtype):
    batch = prompts(10, seed=8, low=20, high=50)
    wanted = [params(i, max_tokens=40, ignore_eos=True) for i in range(len(batch))]
    equalities.preempted_is_undisturbed(partial(load, models["llama"], dtype), batch, wanted, num_blocks=17)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_saved_plan_is_fresh(models, family, dtype, tmp_path):
    batch = prompts(5, seed=9)
    wanted = [params(i) for i in range(len(batch))]
    with load(models[family], dtype) as llm:
        fresh = run(llm, batch, wanted)
        llm.plan.save(tmp_path / "engine")
    with LLM(tmp_path / "engine", skip_tokenizer_init=True, device="cpu", kv_cache_memory_bytes=8 << 20) as llm:
        assert run(llm, batch, wanted) == fresh


@pytest.mark.parametrize("dtype", DTYPES)
def test_samples_are_requests_with_derived_seeds(models, dtype):
    for length in (1, 15, 16, 17, 40):
        prompt = prompts(1, seed=length, low=length, high=length)[0]
        many = SamplingParams(n=5, temperature=1.0, seed=11, max_tokens=20, logprobs=2, detokenize=False)
        equalities.samples_are_requests(partial(load, models["llama"], dtype), prompt, many)


def test_streamed_is_whole(models):
    with load(models["llama"]) as llm:
        equalities.streamed_is_whole(llm, prompts(4, seed=12), [params(i) for i in range(4)])


def test_two_threads_change_nothing(models):
    import torch

    batch, wanted = prompts(20, seed=13), [params(i) for i in range(20)]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with load(models["llama"], "bfloat16", enable_prefix_caching=False) as llm:
            assert run(llm, batch, wanted) == run_alone(llm, batch, wanted)
    finally:
        torch.set_num_threads(threads)


def test_cumulative_outputs_grow(models):
    with load(models["llama"]) as llm:
        engine = llm._engine
        engine.add_request("a", [1, 2, 3], params(1, output_kind=RequestOutputKind.CUMULATIVE))
        seen = []
        while engine.has_unfinished_requests():
            seen += [output.outputs[0].token_ids for output in engine.step()]
    assert all(seen[i] == seen[-1][: i + 1] for i in range(len(seen)))


def test_wider_heads_and_long_prompts_keep_the_promise(tmp_path):
    """Prompts over several key tiles, heads that share a KV head in threes, and an odd head width."""
    wide = {**LLAMA, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 20, "hidden_size": 60}
    path = write_model(tmp_path / "wide", wide)
    batch = prompts(3, seed=14, low=150, high=300)
    for dtype in DTYPES:
        with load(path, dtype, max_num_batched_tokens=64, block_size=8) as llm:
            together = run(llm, batch, [params(1)] * 3)
        with load(path, dtype, enable_prefix_caching=False, block_size=32) as llm:
            assert together == run_alone(llm, batch, [params(1)] * 3)
