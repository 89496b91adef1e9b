"""The promises of the engine on a GPU: equal bits whatever else runs, the CPU's tokens, and memory as planned."""

import gc
from dataclasses import replace
from functools import partial

import pytest
import torch

from quire import LLM, SamplingParams
from quire.builder.open import open_plan
from quire.core.config import BuildConfig
from quire.runner.device import GPU_PROCESS
from tests.support import equalities
from tests.support.dummy_models import GPT2, LLAMA, write_model
from tests.support.equalities import KINDS, params, prompts, run, run_alone

pytestmark = pytest.mark.gpu

WIDE = {**LLAMA, "vocab_size": 515, "hidden_size": 256, "intermediate_size": 384, "head_dim": 64}
QWEN3 = {
    **WIDE,
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "head_dim": 128,
    "tie_word_embeddings": False,
}
DUMMIES = {"llama": WIDE, "qwen3": QWEN3, "gpt2": {**GPT2, "n_embd": 192, "vocab_size": 515}}
MODELS = ("quire-tiny", *DUMMIES)
SCHEMES = {
    "w8a16": {"quantization": "w8a16"},
    "w8a8": {"quantization": "w8a8"},
    "w4a16": {"quantization": "w4a16", "group_size": 64},
    "fp8": {"quantization": "fp8"},
    "int8 cache": {"kv_cache_dtype": "int8"},
    "fp8 with lm_head, fp8 cache": {"quantization": "fp8", "kv_cache_dtype": "fp8", "exclude": ()},
}
TEXTS = ("Hello, my name is", "The capital of France is", "The future of AI is")
SMALL = {"kv_cache_memory_bytes": 32 << 20, "max_num_batched_tokens": 512}
# Nats by which a logprob may differ on another device. In bfloat16 logits of 8 and more are 1/16 apart, and what is
# rounded to eight bits may fall to the other side. Interpreted and on a CPU they differed by 0.16 and 0.32 at most.
NEAR = {"float32": 0.01, "auto": 0.5, "quantized": 1.0}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {"quire-tiny": "quire-tiny", **{name: write_model(root / name, c) for name, c in DUMMIES.items()}}


@pytest.fixture(scope="module")
def plans(models):
    """Each scheme's plan of the built-in model, calibrated on next to nothing; made when it is first asked for."""
    made = {}

    def plan(scheme):
        if scheme not in made:
            few = {"num_calibration_samples": 2, "calibration_length": 16, "max_kl": 1e9}
            made[scheme] = open_plan(models["quire-tiny"], BuildConfig(**few, **SCHEMES[scheme]))
        return made[scheme]

    return plan


def load(model, **options):
    settings = {"device": "cuda", "max_num_seqs": 12, "kv_cache_memory_bytes": 32 << 20, **options}
    if not isinstance(model, str) and model.name in DUMMIES:
        settings = {"load_format": "dummy", "dtype": "bfloat16", **settings}
    return LLM(model, skip_tokenizer_init=True, **settings)


def load_plan(plan, **options):
    return LLM(plan, skip_tokenizer_init=True, **{"device": "cuda", "max_num_seqs": 12, **SMALL, **options})


@pytest.mark.parametrize("model", MODELS)
def test_batched_is_alone(models, model):
    wanted = [params(i) for i in range(16)]
    equalities.batched_is_alone(partial(load, models[model]), prompts(16), wanted, (16, 9, 2))


@pytest.mark.parametrize("model", ("quire-tiny", "llama"))
def test_every_kind_of_request_is_alone(models, model):
    batch, wanted = prompts(12, seed=3, low=2), [*KINDS, *KINDS]
    with load(models[model], enable_prefix_caching=False) as llm:
        llm._engine.loop.runner._loaded.kv_cache.view(torch.uint8).fill_(0xFF)  # no number: what is not written, shows
        assert run(llm, batch, wanted) == run_alone(llm, batch, wanted)


@pytest.mark.parametrize("model", ("quire-tiny", "llama"))
def test_prefix_cached_is_cold(models, model):
    common = prompts(1, seed=5, low=70, high=70)[0]
    batch = [common + p for p in prompts(8, seed=6, high=30)] + [common[:33], common[:64], common]
    equalities.prefix_cached_is_cold(partial(load, models[model]), batch, [params(i) for i in range(len(batch))])


@pytest.mark.parametrize("model", ("quire-tiny", "llama"))
def test_chunked_is_whole(models, model):
    batch = prompts(6, seed=7, low=3, high=80)
    wanted = [params(i, prompt_logprobs=2 if i == 1 else None) for i in range(len(batch))]
    equalities.chunked_is_whole(partial(load, models[model]), batch, wanted, (7, 64))


@pytest.mark.parametrize("model", ("quire-tiny", "llama"))
def test_preempted_is_undisturbed(models, model):
    batch = prompts(8, seed=8, low=20, high=50)
    wanted = [params(i, max_tokens=40, ignore_eos=True) for i in range(len(batch))]
    equalities.preempted_is_undisturbed(partial(load, models[model]), batch, wanted, num_blocks=17)


@pytest.mark.parametrize("scheme", (None, "int8 cache", "fp8 with lm_head, fp8 cache"))
def test_samples_are_requests(models, plans, scheme):
    """Samples share their prompt, but for its last block, which is copied."""
    many = SamplingParams(n=5, temperature=1.0, seed=11, max_tokens=12, logprobs=2, detokenize=False)
    made = partial(load_plan, plans(scheme)) if scheme else partial(load, models["llama"])
    equalities.samples_are_requests(made, prompts(1, low=19, high=19)[0], many)


def test_streamed_is_whole(models):
    with load(models["llama"]) as llm:
        equalities.streamed_is_whole(llm, prompts(3, seed=12), [params(i) for i in range(3)])


def test_a_stop_string_ends_a_row_whose_next_step_is_in_flight():
    greedy = SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True)
    with LLM("quire-tiny", device="cuda", **SMALL) as llm:
        whole = [output.outputs[0].text for output in llm.generate(list(TEXTS), greedy, use_tqdm=False)]
        stop = whole[1].split()[1]
        wanted = [greedy, replace(greedy, stop=[stop]), greedy]
        found = [output.outputs[0] for output in llm.generate(list(TEXTS), wanted, use_tqdm=False)]
        assert [each.text for each in found] == [whole[0], whole[1][: whole[1].index(stop)], whole[2]]
        assert found[1].finish_reason == "stop" and found[1].stop_reason == stop
        llm._engine.loop.scheduler.check_integrity()


@pytest.mark.parametrize("model", MODELS)
def test_captured_is_eager(models, model):
    """Batches of all sizes, which a graph pads to the next that there is."""
    batch = prompts(11, seed=4)
    wanted = [params(i, max_tokens=2 + i, logprobs=3 if i % 2 else None, ignore_eos=True) for i in range(11)]
    with load(models[model]) as llm:
        captured = run(llm, batch, wanted)
    with load(models[model], enforce_eager=True) as llm:
        assert run(llm, batch, wanted) == captured


@pytest.mark.parametrize("model", MODELS)
def test_saved_plan_is_fresh(models, model, tmp_path):
    batch, wanted = prompts(5, seed=9), [params(i) for i in range(5)]
    with load(models[model]) as llm:
        fresh = run(llm, batch, wanted)
        llm.plan.save(tmp_path / "engine")
    with load_plan(tmp_path / "engine") as llm:
        assert run(llm, batch, wanted) == fresh


def test_block_sizes_change_nothing(models):
    batch, wanted = prompts(5, seed=14, low=60, high=150), [params(i) for i in range(5)]
    with load(models["llama"], block_size=16) as llm:
        narrow = run(llm, batch, wanted)
    with load(models["llama"], block_size=32, enable_prefix_caching=False) as llm:
        assert run(llm, batch, wanted) == narrow == run_alone(llm, batch, wanted)


@pytest.mark.parametrize("level", (1, 2))
def test_sleep_and_wake_up(models, level):
    batch, wanted = prompts(5, seed=10), [params(i) for i in range(5)]
    with load(models["llama"]) as llm:
        before, held = run(llm, batch, wanted), torch.cuda.memory_allocated()
        llm.sleep(level)
        freed = llm._engine.loop.memory.kv_bytes + (llm._engine.loop.memory.needs.weights // 2 if level == 2 else 0)
        assert torch.cuda.memory_allocated() <= held - freed
        llm.wake_up()
        assert run(llm, batch, wanted) == before


def agree(found, expected, near):
    """Two devices: tokens are equal up to a near tie, after which pasts differ; till then logprobs are near."""
    differences = []
    for (got, *_), (wanted, *_) in zip((f[0] for f in found), (e[0] for e in expected), strict=True):
        for token, other, mine, theirs in zip(got[0], wanted[0], got[1], wanted[1], strict=False):
            differences += [abs(mine[t].logprob - theirs[t].logprob) for t in mine if t in theirs]
            if token != other:
                assert other in mine and mine[token].logprob - mine[other].logprob < near
                break
    assert max(differences) < near and sum(differences) / len(differences) < near / 3


@pytest.mark.parametrize("dtype", ("auto", "float32"))
def test_greedy_is_the_cpus(dtype):
    greedy = SamplingParams(temperature=0.0, max_tokens=24, logprobs=5)
    outcomes = []
    for device in ("cuda", "cpu"):
        with LLM("quire-tiny", dtype=dtype, device=device, **SMALL) as llm:
            outcomes.append([equalities.bits(output) for output in llm.generate(list(TEXTS), greedy, use_tqdm=False)])
    agree(*outcomes, NEAR[dtype])
    if dtype == "float32":
        assert [o[0][0][0] for o in outcomes[0]] == [o[0][0][0] for o in outcomes[1]]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_quantized(plans, scheme, tmp_path):
    """Batched is alone, captured is eager, saved is fresh, and the CPU finds the same."""
    plan, batch, wanted = plans(scheme), prompts(7, seed=15), [params(i) for i in range(7)]
    with load_plan(plan, enable_prefix_caching=False) as llm:
        together = run(llm, batch, wanted)
        assert run_alone(llm, batch, wanted) == together
    plan.save(tmp_path / "engine")
    with load_plan(tmp_path / "engine", enforce_eager=True) as llm:
        assert run(llm, batch, wanted) == together
    greedy = [params(0, max_tokens=8, logprobs=20)] * 7  # so many that of two near ties one is among the other's
    with load_plan(plan) as llm, load_plan(plan, device="cpu") as cpu:
        agree(run(llm, batch, greedy), run(cpu, batch, greedy), NEAR["quantized"])


@pytest.mark.parametrize("scheme", (None, "w8a8", "fp8"))
def test_without_equal_bits_answers_are_near(models, plans, scheme):
    batch, greedy = prompts(7, seed=16), [params(0, max_tokens=8)] * 7
    outcomes = []
    for deterministic in (True, False):
        with load_plan(plans(scheme) if scheme else "quire-tiny", deterministic=deterministic) as llm:
            outcomes.append(run(llm, batch, greedy))
    agree(*outcomes, NEAR["quantized" if scheme else "auto"])


@pytest.mark.parametrize("pooling", ("mean", "last"))
def test_pooled_hidden_states_are_alone_as_together(pooling):
    """Of prompts of a token, too, beside others; and near the CPU's."""
    plan, batch = open_plan("quire-tiny", BuildConfig()), [*prompts(9, seed=17), [5], [7]]
    vectors = partial(equalities.vectors, plan, pooling, max_num_seqs=12, max_model_len=128)
    whole, _ = vectors(batch, device="cuda")
    assert [vectors([ids], device="cuda")[0][0] for ids in batch[-3:]] == whole[-3:]
    assert vectors(batch, device="cuda", max_num_batched_tokens=23)[0] == whole
    for ours, theirs in zip(whole, vectors(batch, device="cpu")[0], strict=True):
        assert sum(a * b for a, b in zip(ours, theirs, strict=True)) > 0.999


def test_memory_is_as_planned(tmp_path):
    """A model whose weights, workspace and KV cache all count; what lies outside torch's allocator is left out."""
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8, "vocab_size": 32000}
    heads = {"num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 64, "max_position_embeddings": 4096}
    model = write_model(tmp_path / "model", {**LLAMA, **sizes, **heads})
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_reserved()
    options = {"max_num_batched_tokens": 4096, "max_num_seqs": 64, "kv_cache_memory_bytes": 512 << 20}
    with LLM(model, dtype="bfloat16", load_format="dummy", skip_tokenizer_init=True, device="cuda", **options) as llm:
        batch = prompts(66, low=64, high=64) + prompts(1, low=4000, high=4000)
        wanted = [params(i, max_tokens=4, repetition_penalty=1.1, ignore_eos=True) for i in range(len(batch))]
        llm.generate(batch, wanted, use_tqdm=False)
        held = torch.cuda.max_memory_reserved() - before
        planned = llm._engine.loop.memory.total_bytes - GPU_PROCESS.code_bytes
    assert 0.9 < held / planned < 1.1, f"{held / 2**20:.0f} MiB of {planned / 2**20:.0f} MiB planned"
