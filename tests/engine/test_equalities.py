"""The promises of the engine, bit for bit: what else runs, and how, never changes a request's tokens or logprobs."""

import random

import pytest

from quire import LLM, SamplingParams
from quire.core.sampling_params import RequestOutputKind
from tests.support.dummy_models import FAMILIES, LLAMA, write_model

DTYPES = ("float32", "bfloat16")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {name: write_model(root / name, config) for name, config in FAMILIES.items()}


def load(path, dtype="float32", **options):
    settings = {"max_num_seqs": 64, "kv_cache_memory_bytes": 8 << 20, **options}
    return LLM(path, dtype=dtype, load_format="dummy", skip_tokenizer_init=True, **settings)


def prompts(count, seed=0, low=1, high=60):
    rng = random.Random(seed)
    return [[rng.randrange(211) for _ in range(rng.randint(low, high))] for _ in range(count)]


def params(index=0, **more):
    """A mix of greedy and random, with logprobs, so that a changed bit shows."""
    chosen = {"temperature": 0.0} if index % 3 == 0 else {"temperature": 0.9, "top_p": 0.9, "seed": index}
    return SamplingParams(**{"max_tokens": 5 + index % 11, "logprobs": 3, "detokenize": False, **chosen, **more})


def bits(output):
    """Everything a caller can see of a request's result."""
    return [(c.token_ids, c.logprobs, c.cumulative_logprob, c.finish_reason) for c in output.outputs], (
        output.prompt_logprobs
    )


def run(llm, batch, all_params):
    return [bits(output) for output in llm.generate(batch, all_params, use_tqdm=False)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_batched_is_alone(models, family, dtype):
    batch = prompts(64)
    wanted = [params(i) for i in range(64)]
    with load(models[family], dtype, enable_prefix_caching=False) as llm:
        alone = [run(llm, [p], [w])[0] for p, w in zip(batch, wanted, strict=True)]
        for size in (64, 33, 7, 2):
            assert run(llm, batch[:size], wanted[:size]) == alone[:size], f"a batch of {size}"
        order = random.Random(1).sample(range(64), 64)
        shuffled = run(llm, [batch[i] for i in order], [wanted[i] for i in order])
        assert shuffled == [alone[i] for i in order]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ("llama", "mistral"))
def test_prefix_cached_is_cold(models, family, dtype):
    common = prompts(1, seed=5, low=70, high=70)[0]
    batch = [common + p for p in prompts(12, seed=6, high=30)] + [common[:33], common[:64], common]
    wanted = [params(i) for i in range(len(batch))]
    with load(models[family], dtype, enable_prefix_caching=False) as llm:
        cold = run(llm, batch, wanted)
    with load(models[family], dtype) as llm:
        assert run(llm, batch, wanted) == cold
        again = llm.generate(batch, wanted, use_tqdm=False)
        assert [bits(o) for o in again] == cold
        assert all(o.num_cached_tokens > 0 for o in again)
        assert llm.get_metrics()["prefix_cache_hits"] > 0
        llm.reset_prefix_cache()
        assert llm.generate(batch[0], wanted[0], use_tqdm=False)[0].num_cached_tokens == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ("llama", "mistral"))
def test_chunked_is_whole(models, family, dtype):
    batch = prompts(6, seed=7, low=3, high=80)
    wanted = [params(i, prompt_logprobs=2 if i == 1 else None) for i in range(len(batch))]
    with load(models[family], dtype, max_num_batched_tokens=2048) as llm:
        whole = run(llm, batch, wanted)
    for budget in (1, 7, 16, 256):
        with load(models[family], dtype, max_num_batched_tokens=budget) as llm:
            assert run(llm, batch, wanted) == whole, f"a budget of {budget} tokens"
    with load(models[family], dtype, enable_chunked_prefill=False, max_num_batched_tokens=100) as llm:
        assert run(llm, batch, wanted) == whole


@pytest.mark.parametrize("dtype", DTYPES)
def test_preempted_is_undisturbed(models, dtype):
    batch = prompts(10, seed=8, low=20, high=50)
    wanted = [params(i, max_tokens=40, ignore_eos=True) for i in range(len(batch))]
    with load(models["llama"], dtype) as llm:
        undisturbed = run(llm, batch, wanted)
        assert llm.get_metrics()["num_preemptions"] == 0
    per_token = 2 * 2 * 2 * 16 * (4 if dtype == "float32" else 2)
    with load(models["llama"], dtype, kv_cache_memory_bytes=16 * per_token * 17, max_model_len=256) as llm:
        assert run(llm, batch, wanted) == undisturbed
        assert llm.get_metrics()["num_preemptions"] > 0
        llm._engine.scheduler.check_integrity()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_saved_plan_is_fresh(models, family, dtype, tmp_path):
    batch = prompts(5, seed=9)
    wanted = [params(i) for i in range(len(batch))]
    with load(models[family], dtype) as llm:
        fresh = run(llm, batch, wanted)
        llm.plan.save(tmp_path / "engine")
    with LLM(tmp_path / "engine", skip_tokenizer_init=True, kv_cache_memory_bytes=8 << 20) as llm:
        assert run(llm, batch, wanted) == fresh


@pytest.mark.parametrize("dtype", DTYPES)
def test_samples_are_requests_with_derived_seeds(models, dtype):
    for length in (1, 15, 16, 17, 40):
        prompt = prompts(1, seed=length, low=length, high=length)[0]
        many = SamplingParams(n=5, temperature=1.0, seed=11, max_tokens=20, logprobs=2, detokenize=False)
        with load(models["llama"], dtype) as llm:
            together = bits(llm.generate(prompt, many, use_tqdm=False)[0])[0]
        with load(models["llama"], dtype, enable_prefix_caching=False) as llm:
            alone = [bits(llm.generate(prompt, many.for_sample(i), use_tqdm=False)[0])[0][0] for i in range(5)]
        assert together == alone
        assert len({tuple(sample[0]) for sample in together}) > 1, "different seeds should differ"


def test_streamed_is_whole(models):
    with load(models["llama"]) as llm:
        for i, prompt in enumerate(prompts(4, seed=12)):
            whole = llm.generate(prompt, params(i), use_tqdm=False)[0].outputs[0]
            pieces = [output.outputs[0] for output in llm.stream(prompt, params(i))]
            assert [t for piece in pieces for t in piece.token_ids] == whole.token_ids
            assert [entry for piece in pieces for entry in piece.logprobs] == whole.logprobs
            assert [p.finish_reason for p in pieces] == [None] * (len(pieces) - 1) + [whole.finish_reason]


def test_two_threads_change_nothing(models):
    import torch

    batch, wanted = prompts(20, seed=13), [params(i) for i in range(20)]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with load(models["llama"], "bfloat16", enable_prefix_caching=False) as llm:
            assert run(llm, batch, wanted) == [run(llm, [p], [w])[0] for p, w in zip(batch, wanted, strict=True)]
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
            assert together == [run(llm, [p], [params(1)])[0] for p in batch]
