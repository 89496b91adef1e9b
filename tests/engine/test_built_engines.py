"""Built and saved is built: tokens and logprobs of a saved plan are those of the fresh one, bit for bit."""

import dataclasses

import msgspec
import pytest

from quire import LLM, SamplingParams
from quire.builder.open import open_plan
from quire.builder.tactics import tune
from quire.core.config import BuildConfig
from quire.plan.plan import Plan
from tests.support.dummy_models import FAMILIES, write_model

SCHEMES = {
    "none": {},
    "w8a16": {"quantization": "w8a16"},
    "w8a8": {"quantization": "w8a8"},
    "w4a16": {"quantization": "w4a16", "group_size": 64},
    "fp8": {"quantization": "fp8"},
    "int8 cache": {"kv_cache_dtype": "int8"},
    "w8a8, fp8 cache": {"quantization": "w8a8", "kv_cache_dtype": "fp8"},
    "w8a8 with lm_head": {"quantization": "w8a8", "exclude": ()},
}
PROMPTS = [[3, 14, 15, 92, 65], [35, 8], list(range(40, 75))]
PARAMS = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, detokenize=False, logprobs=2)


def build(directory, family, **settings):
    """Build a small model whose widths take groups of 64."""
    config = {**FAMILIES[family]}
    if family in ("llama", "mistral"):
        config |= {"hidden_size": 64, "intermediate_size": 128}
    few = {"num_calibration_samples": 3, "calibration_length": 16, "max_kl": 1e9} if settings else {}
    return open_plan(
        write_model(directory, config), BuildConfig(load_format="dummy", dtype="bfloat16", **few, **settings)
    )


def outputs(model, prompts=PROMPTS):
    with LLM(model, skip_tokenizer_init=True, max_num_seqs=4, max_num_batched_tokens=32) as llm:
        return [output.outputs for output in llm.generate(prompts, PARAMS, use_tqdm=False)]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_saved_is_fresh_and_batched_is_alone(tmp_path, scheme):
    plan = build(tmp_path / "model", "llama", **SCHEMES[scheme])
    fresh = outputs(plan)
    plan.save(tmp_path / "engine")
    assert outputs(tmp_path / "engine") == fresh
    assert [outputs(plan, [prompt])[0] for prompt in PROMPTS] == fresh


@pytest.mark.parametrize("family", ["mistral", "gpt2", "opt"])
def test_other_families_quantized(tmp_path, family):
    plan = build(tmp_path / "model", family, quantization="w8a8", kv_cache_dtype="int8")
    plan.save(tmp_path / "engine")
    assert outputs(tmp_path / "engine") == outputs(plan)


def test_a_build_is_deterministic(tmp_path):
    for name in ("a", "b"):
        build(tmp_path / "model", "llama", quantization="w8a8", kv_cache_dtype="int8").save(tmp_path / name)
    for name in ("graph.json", "weights.safetensors", "report.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_an_engine_that_was_tuned_elsewhere_runs_and_says_so(tmp_path, caplog):
    plan = build(tmp_path / "model", "llama", quantization="w8a8")
    measured = tune(plan.network)
    elsewhere = msgspec.structs.replace(measured, device=msgspec.structs.replace(measured.device, name="Another"))
    dataclasses.replace(plan, tactics=(elsewhere,)).save(tmp_path / "engine")
    assert Plan.load(tmp_path / "engine").tactics == (elsewhere,)
    with caplog.at_level("INFO", logger="quire"):
        assert outputs(tmp_path / "engine") == outputs(plan)
    assert caplog.text.count("records unused, measured on another device: name Another") == 1
