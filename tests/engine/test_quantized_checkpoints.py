"""The engine on quantized checkpoints against transformers on the weights that they stand for, and on itself."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from quire import LLM, SamplingParams
from quire.builder.open import open_plan
from quire.core.config import BuildConfig
from quire.core.errors import ConfigError
from quire.graph.legality import OPTIMIZED, check_network
from quire.plan.plan import Plan
from tests.support.quantized_checkpoints import FORMATS, write_quantized

PROMPT_LENS = (13, 1, 6)
NUM_TOKENS = 16
OPTIONS = {"skip_tokenizer_init": True, "max_num_batched_tokens": 8, "kv_cache_memory_bytes": 1 << 20}
FAMILIES = [
    (case, form)
    for case in ("qwen2", "qwen3", "qwen3-biases", "llama-biases", "mistral", "opt")
    for form in ("awq", "gptq-act", "compressed-w4a16", "compressed-w8a8", "fp8", "fp8-block")
]


def prompts(vocab_size):
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(vocab_size, (n,), generator=generator).tolist() for n in PROMPT_LENS]


def generate(model, vocab_size, **options):
    """Return per prompt the greedy tokens and the log-probabilities [NUM_TOKENS, vocab_size] of all tokens."""
    params = SamplingParams(
        temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True, detokenize=False, logprobs=vocab_size
    )
    with LLM(model, **OPTIONS, **options) as llm:
        outputs = llm.generate(prompts(vocab_size), params, use_tqdm=False)
    rows = [[[entry[t].logprob for t in range(vocab_size)] for entry in o.outputs[0].logprobs] for o in outputs]
    return [o.outputs[0].token_ids for o in outputs], torch.tensor(rows)


def expected(model, prompt, ids):
    """Return transformers' log-probabilities of the generated positions."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + ids[:-1]]), use_cache=False).logits[0]
    return logits.log_softmax(-1)[len(prompt) - 1 :]


def check_equals_transformers(directory, model, atol=1e-4, **options):
    vocab_size = model.config.vocab_size
    ids, logprobs = generate(directory, vocab_size, **options)
    for prompt, tokens, ours in zip(prompts(vocab_size), ids, logprobs, strict=True):
        theirs = expected(model, prompt, tokens)
        assert theirs.argmax(-1).tolist() == tokens
        torch.testing.assert_close(ours, theirs, atol=atol, rtol=0)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_equals_transformers_and_its_saved_plan(name, tmp_path):
    form = FORMATS[name]
    model = write_quantized(tmp_path / "model", form)
    check_equals_transformers(tmp_path / "model", model)
    plan = open_plan(tmp_path / "model")
    check_network(plan.network, OPTIMIZED)
    ops = [node.target.name for node in plan.network.calls()]
    assert ops.count(form.op) >= 4 * 2, ops
    assert not {"unpack_int32", "dequantize_weight", "pack_int4", "argsort"} & set(ops), (
        "folded once, not at every load"
    )
    plan.save(tmp_path / "engine")
    fresh, saved = (generate(tmp_path / place, model.config.vocab_size) for place in ("model", "engine"))
    assert fresh[0] == saved[0] and torch.equal(fresh[1], saved[1])
    assert str(Plan.load(tmp_path / "engine").network) == str(plan.network)


@pytest.mark.parametrize(("case", "name"), FAMILIES)
def test_families_equal_transformers(case, name, tmp_path):
    check_equals_transformers(tmp_path, write_quantized(tmp_path, FORMATS[name], case))


@pytest.mark.parametrize("name", ["gptq", "compressed-w4a16"])
def test_projections_that_are_stored_transposed_until_they_are_quantized(name, tmp_path):
    """GPT-2's; its queries, keys and values are one layer there, and must not be quantized."""
    kept = {"gptq": {"modules_to_not_convert": ["c_attn"]}, "compressed-w4a16": {"ignore": ["re:.*c_attn$", "lm_head"]}}
    form = replace(FORMATS[name], config={**FORMATS[name].config, **kept[name]})
    check_equals_transformers(tmp_path / "model", write_quantized(tmp_path / "model", form, "gpt2", kept="c_attn"))
    write_quantized(tmp_path / "all", FORMATS[name], "gpt2")
    with pytest.raises(ConfigError, match=r"got 'transformer\.h\.0\.attn\.c_attn' with a part of one"):
        open_plan(tmp_path / "all")


@pytest.mark.parametrize("name", ["awq", "gptq-asym", "compressed-w4a16", "compressed-w8a8", "fp8-block"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_close(name, dtype, tmp_path):
    """Scales are cast to the model's dtype; what is left is its rounding, as without quantization."""
    model = write_quantized(tmp_path, FORMATS[name])
    _, logprobs = generate(tmp_path, model.config.vocab_size, dtype=dtype)
    exact = []
    ids, _ = generate(tmp_path, model.config.vocab_size, dtype=dtype)
    for prompt, tokens in zip(prompts(model.config.vocab_size), ids, strict=True):
        exact.append(expected(model, prompt, tokens))
    exact = torch.stack(exact)
    divergence = (exact.exp() * (exact - logprobs)).sum(-1)
    assert float(divergence.mean()) < (0.02 if dtype == "bfloat16" else 2e-3), float(divergence.mean())


def test_layers_in_the_list_stay_as_they_are(tmp_path):
    form = replace(
        FORMATS["awq"], config={**FORMATS["awq"].config, "modules_to_not_convert": ["layers.0", "down_proj"]}
    )
    check_equals_transformers(tmp_path, write_quantized(tmp_path, form, kept=r"layers\.0\.|down_proj"))
    adopted = open_plan(tmp_path).report["passes"][0]
    assert adopted["pass"] == "adopt_quantized" and adopted["matches"] == 6
    assert "'down_proj'" in adopted["missed"]["model_layers_1_mlp_down_proj"]


def test_a_quantized_head(tmp_path):
    """Its logits are still computed only for rows that somebody wants."""
    for name in ("gptq", "compressed-w8a8"):
        directory = tmp_path / name
        model = write_quantized(directory, FORMATS[name], vocab_size=64, tie_word_embeddings=False)
        tensors = load_file(directory / "model.safetensors")
        weight = tensors.pop("lm_head.weight")
        parts, meant = FORMATS[name].pack(weight)
        model.lm_head.weight.data.copy_(meant)
        save_file({**tensors, **{f"lm_head.{k}": v for k, v in parts.items()}}, directory / "model.safetensors")
        config = json.loads((directory / "config.json").read_text())
        config["quantization_config"].update({"lm_head": True} if name == "gptq" else {"ignore": []})
        (directory / "config.json").write_text(json.dumps(config))
        plan = open_plan(directory)
        assert plan.network.outputs["logits"].target.name == FORMATS[name].op
        assert plan.network.outputs["logits"].meta["spec"].shape == ("num_logits", 64)
        if name == "gptq":
            check_equals_transformers(directory, model)


@pytest.mark.parametrize("name", ["awq", "compressed-w8a8", "fp8-block"])
def test_a_cache_of_eight_bits_on_top(name, tmp_path):
    write_quantized(tmp_path, FORMATS[name])
    config = BuildConfig(kv_cache_dtype="int8", num_calibration_samples=8, calibration_length=32, max_kl=1.0)
    plan = open_plan(tmp_path, config)
    assert plan.kv_cache.dtype == torch.int8
    accuracy = plan.report["quantization"]["accuracy"]
    assert 0 < accuracy["kl"] < 0.2 and accuracy["top1_agreement"] > 0.7, accuracy
    assert not plan.report["quantization"]["layers"]


@pytest.mark.parametrize("name", ["awq", "gptq-act", "compressed-w4a16-asym", "compressed-w8a8", "fp8"])
def test_dummy_weights_of_a_quantized_config(name, tmp_path):
    write_quantized(tmp_path, FORMATS[name])
    (tmp_path / "model.safetensors").unlink()
    ids, logprobs = generate(tmp_path, 61, load_format="dummy")
    assert torch.isfinite(logprobs).all() and len(ids[0]) == NUM_TOKENS
    assert float(logprobs.std()) > 0, "weights are not all alike"


def test_passes_off_give_the_same_tokens(tmp_path):
    write_quantized(tmp_path, FORMATS["gptq-act"])
    folded, unfolded = (generate(tmp_path, 61, without_passes=off) for off in ((), ("fold_weights", "drop_dead")))
    assert folded[0] == unfolded[0] and torch.equal(folded[1], unfolded[1])
    with pytest.raises(ConfigError, match="without_passes"):
        open_plan(tmp_path, BuildConfig(without_passes=("adopt_quantized",)))


def test_batched_equals_alone(tmp_path):
    """What is unpacked is the same for all; rows keep their bits where inputs are rounded to integers."""
    write_quantized(tmp_path, FORMATS["compressed-w8a8"])
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, detokenize=False, logprobs=1)
    with LLM(tmp_path, **OPTIONS) as llm:
        together = llm.generate(prompts(61), params, use_tqdm=False)
        alone = [llm.generate([prompt], params, use_tqdm=False)[0] for prompt in prompts(61)]
    assert [o.outputs for o in together] == [o.outputs for o in alone]


@pytest.mark.parametrize("name", ["awq", "gptq", "compressed-w8a8", "fp8"])
def test_quantized_layers_are_fused_like_others(name, tmp_path):
    write_quantized(tmp_path, FORMATS[name])
    done = {entry["pass"]: entry["matches"] for entry in open_plan(tmp_path).report["passes"]}
    assert done["fuse_qkv"] == done["fuse_gate_up"] == done["fuse_silu_mul"] == 2
    if FORMATS[name].op == "linear_w8a8":
        assert done["fuse_norm_quant"] == 6, "before qkv, gate_up and down of each layer"
