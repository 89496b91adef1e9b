"""Reading `config.json`: both generations of names, strict about everything that changes what a model computes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.core.errors import ConfigError
from quire.core.model_spec import ModelSpec, RopeSpec
from quire.models.registry import ARCHITECTURES, define_network, read_spec
from tests.support.hf_models import CASE_NAMES, case

LLAMA_2: dict[str, Any] = {
    "_name_or_path": "somewhere",
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.31.0",
    "use_cache": True,
    "vocab_size": 32000,
}
LLAMA_3_2 = {
    **LLAMA_2,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "eos_token_id": [128001, 128008, 128009],
    "head_dim": 64,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_key_value_heads": 8,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
QWEN_2 = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
OPT_350M = {
    "_name_or_path": "opt-350m",
    "_remove_final_layer_norm": False,
    "activation_dropout": 0.0,
    "activation_function": "relu",
    "architectures": ["OPTForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 2,
    "do_layer_norm_before": False,
    "dropout": 0.1,
    "eos_token_id": 2,
    "ffn_dim": 4096,
    "hidden_size": 1024,
    "init_std": 0.02,
    "layerdrop": 0.0,
    "max_position_embeddings": 2048,
    "model_type": "opt",
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "pad_token_id": 1,
    "prefix": "</s>",
    "torch_dtype": "float16",
    "use_cache": True,
    "vocab_size": 50272,
    "word_embed_proj_dim": 512,
}
GPT_2 = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "output_past": True,
    "predict_special_tokens": True,
    "resid_pdrop": 0.1,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 50257,
}
MISTRAL = {
    key: value for key, value in LLAMA_2.items() if key not in ("pretraining_tp", "architectures", "rope_scaling")
} | {"architectures": ["MistralForCausalLM"], "num_key_value_heads": 8, "sliding_window": 4096}
QWEN_3 = {**QWEN_2, "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "head_dim": 128}
KNOWN = {
    "llama-2": LLAMA_2,
    "llama-3.2": LLAMA_3_2,
    "qwen2": QWEN_2,
    "qwen3": QWEN_3,
    "mistral": MISTRAL,
    "opt-350m": OPT_350M,
    "gpt2": GPT_2,
}


def test_transformers_4_llama_2() -> None:
    spec = read_spec(LLAMA_2)
    assert (spec.family, spec.head_dim, spec.num_kv_heads, spec.dtype) == ("llama", 128, 32, "float16")
    assert spec.rope == RopeSpec(theta=10000.0)
    assert (spec.bos_token_id, spec.eos_token_ids) == (1, (2,))


def test_transformers_4_llama_3_2() -> None:
    spec = read_spec(LLAMA_3_2)
    assert spec.rope == RopeSpec(500000.0, "llama3", 32.0, 8192, 1.0, 4.0)
    assert spec.max_position_embeddings == 131072
    assert spec.tie_word_embeddings and spec.eos_token_ids == (128001, 128008, 128009)


def test_old_and_new_names_mean_the_same() -> None:
    new = {key: value for key, value in LLAMA_3_2.items() if key not in ("rope_scaling", "rope_theta", "torch_dtype")}
    new |= {"dtype": "bfloat16", "rope_parameters": {**LLAMA_3_2["rope_scaling"], "rope_theta": 500000.0}}
    legacy = {**LLAMA_3_2, "rope_scaling": {**LLAMA_3_2["rope_scaling"], "type": "llama3"}}
    del legacy["rope_scaling"]["rope_type"]
    assert read_spec(new) == read_spec(legacy) == read_spec(LLAMA_3_2)


def test_qwen_2_windows_need_their_switch() -> None:
    assert read_spec(QWEN_2).sliding_windows == ()
    sliding = read_spec({**QWEN_2, "use_sliding_window": True, "sliding_window": 100})
    assert sliding.sliding_windows == (None,) * 21 + (100,) * 3
    assert read_spec({**QWEN_2, "use_sliding_window": True, "sliding_window": None}).sliding_windows == ()


def test_mistral_window_null_and_absent_differ() -> None:
    assert read_spec({**MISTRAL, "sliding_window": None}).sliding_windows == ()
    absent = {key: value for key, value in MISTRAL.items() if key != "sliding_window"}
    assert read_spec(absent).window(0) == 4096


def test_opt_350m_and_gpt2() -> None:
    opt, gpt2 = read_spec(OPT_350M), read_spec(GPT_2)
    assert (opt.embedding_size, opt.is_post_norm, opt.has_final_norm, opt.rope) == (512, True, False, None)
    assert (gpt2.intermediate_size, gpt2.dtype, gpt2.tie_word_embeddings) == (3072, "float32", True)


@pytest.mark.parametrize("name", CASE_NAMES)
def test_config_written_by_transformers_is_understood(name: str) -> None:
    found = case(name)
    config = found.config.to_diff_dict() | {"architectures": [_architecture(found.family)], "dtype": "float32"}
    assert read_spec(config).family == found.family


def _architecture(family: str) -> str:
    return next(name for name, known in ARCHITECTURES.items() if known == family and "LLaMA" not in name)


@pytest.mark.parametrize(
    ("scaling", "positions", "expected"),
    [
        ({"type": "linear", "factor": 4.0}, 4096, 16384),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 32768, 131072),
        ({"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}, 163840, 163840),
        ({"type": "default"}, 4096, 4096),
    ],
)
def test_scaling_stretches_the_context(scaling: dict[str, Any], positions: int, expected: int) -> None:
    spec = read_spec({**LLAMA_2, "max_position_embeddings": positions, "rope_scaling": scaling})
    assert spec.max_position_embeddings == expected


def test_dtype_auto_and_explicit() -> None:
    without = {key: value for key, value in LLAMA_2.items() if key != "torch_dtype"}
    assert read_spec(without).dtype == "float32"
    assert read_spec({**without, "torch_dtype": "float32"}).dtype == "float32"
    assert read_spec(LLAMA_2, "bfloat16").dtype == "bfloat16"
    assert read_spec({**LLAMA_2, "torch_dtype": "float64"}, "float32").dtype == "float32"
    with pytest.raises(ConfigError, match="torch_dtype"):
        read_spec({**LLAMA_2, "torch_dtype": "float64"})
    with pytest.raises(ConfigError, match=r"dtype.*float32.*'half'"):
        read_spec(LLAMA_2, "half")


LLAMA3 = LLAMA_3_2["rope_scaling"]
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantization_config.quant_method"),
        ({"hidden_act": "relu2"}, "hidden_act"),
        ({"hidden_act": "sliu"}, "Did you mean 'silu'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling.type"),
        ({"rope_scaling": {"rope_type": "longrope", "long_factor": [1.0]}}, "rope_scaling.rope_type"),
        ({"rope_scaling": {"factor": 2.0}}, "rope_scaling.factor"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "rope_scaling.factor"),
        ({"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2.0}}, "rope_scaling.type"),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": None}}, "rope_scaling.low_freq_factor"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "rope_scaling.high_freq_factor"),
        ({"rope_scaling": {**YARN, "truncate": False}}, "rope_scaling.truncate"),
        ({"rope_scaling": {**YARN, "mrope_section": [1, 2]}}, "rope_scaling.mrope_section"),
        ({"rope_scaling": "linear"}, "rope_scaling"),
        ({"rope_scaling": YARN, "rope_parameters": {"rope_theta": 5.0}}, "rope_scaling"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 5.0}}}, "rope_parameters.full_attention"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"rope_theta": float("nan")}, "rope_theta"),
        ({"pretraining_tp": 2}, "pretraining_tp"),
        ({"layer_types": ["sliding_attention"] * 32}, "layer_types"),
        ({"layer_types": ["full_attention"] * 31}, "layer_types"),
        ({"num_key_value_heads": 5}, "num_key_value_heads"),
        ({"num_key_value_heads": 64}, "num_key_value_heads"),
        ({"num_attention_heads": 31, "num_key_value_heads": 31}, "hidden_size"),
        ({"head_dim": 65}, "head_dim"),
        ({"vocab_size": None}, "vocab_size"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"vocab_size": 10**5000}, "vocab_size"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps"),
        ({"hidden_size": True}, "hidden_size"),
        ({"hidden_size": 4096.0}, "hidden_size"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"intermediate_size": 1 << 40}, "intermediate_size"),
        ({"attention_bias": 1}, "attention_bias"),
        ({"eos_token_id": [1, "2"]}, "eos_token_id"),
        ({"max_position_embeddings": "4096"}, "max_position_embeddings"),
        ({"embedding_multiplier": 12.0}, "embedding_multiplier"),
        ({"sliding_window": 4096}, r'hf_overrides=\{"sliding_window": None\}'),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named) as refused:
        read_spec({**LLAMA_2, **changes})
    assert "expected" in str(refused.value) and "got" in str(refused.value) and len(str(refused.value)) < 600


@pytest.mark.parametrize(
    ("base", "changes", "named"),
    [
        (OPT_350M, {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine"),
        (OPT_350M, {"num_attention_heads": 15}, "hidden_size"),
        (OPT_350M, {"scale_embeddings": True}, "scale_embeddings"),
        (GPT_2, {"n_head": 7}, "n_embd"),
        (GPT_2, {"add_cross_attention": True}, "add_cross_attention"),
        (GPT_2, {"pruned_heads": {"0": [1]}}, "pruned_heads"),
        (MISTRAL, {"sliding_window": 0}, "sliding_window"),
        (MISTRAL, {"layer_types": ["full_attention"] * 32}, "layer_types"),
        (MISTRAL, {"attention_bias": True}, "attention_bias"),
        (QWEN_2, {"layer_types": ["sliding_attention"] * 24}, "layer_types"),
        (QWEN_2, {"use_mrope": True}, "use_mrope"),
    ],
)
def test_families_refuse_what_they_do_not_do(base: dict[str, Any], changes: dict[str, Any], named: str) -> None:
    assert isinstance(read_spec(base), ModelSpec)
    with pytest.raises(ConfigError, match=named):
        read_spec({**base, **changes})


def test_unknown_keys_that_are_off_are_off() -> None:
    off: dict[str, Any] = {"new_a": False, "new_b": None, "new_c": 0, "new_d": "", "new_e": [], "new_f": {}}
    assert read_spec({**LLAMA_2, **off}) == read_spec(LLAMA_2)


@pytest.mark.parametrize("names", [["LlamaForCasualLM"], ["BertModel"], [], None, "LlamaForCausalLM", [3]])
def test_unknown_architecture_is_named_with_the_supported_ones(names: Any) -> None:
    with pytest.raises(ConfigError, match="architectures") as refused:
        read_spec({**LLAMA_2, "architectures": names})
    if names == ["LlamaForCasualLM"]:
        assert "LlamaForCasualLM" in str(refused.value) and "Did you mean 'LlamaForCausalLM'" in str(refused.value)
        assert all(name in str(refused.value) for name in ARCHITECTURES)


def test_config_that_is_no_object_is_refused() -> None:
    for config in ([], "x", None, {3: 4}):
        with pytest.raises(ConfigError, match="JSON object"):
            read_spec(config)  # type: ignore[arg-type]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["silu", "linear", "yarn", "llama3", "full_attention", "sliding_attention", "bfloat16"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
ROPE = st.dictionaries(st.sampled_from([*LLAMA3, "type", "beta_fast", "mscale", "truncate", "attention_factor"]), JSON)


@settings(derandomize=True, deadline=None, max_examples=120)
@given(st.data())
def test_any_json_gives_a_spec_or_a_config_error(data: st.DataObject) -> None:
    base = KNOWN[data.draw(st.sampled_from(sorted(KNOWN)))]
    keys = st.sampled_from([*base, "rope_parameters", "layer_types", "head_dim", "dtype", "n_inner", "made_up"])
    changes = data.draw(st.dictionaries(keys, JSON | ROPE, min_size=1, max_size=4))
    try:
        spec = read_spec({**base, **changes})
    except ConfigError as error:
        assert len(str(error)) < 2000
    else:
        if max(spec.num_layers, spec.num_heads) < 64:
            assert define_network(spec).outputs["logits"].meta["spec"].shape == ("num_tokens", spec.vocab_size)
