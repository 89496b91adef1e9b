"""`quantization_config`: what the field's tools write is read, what cannot be honoured is refused by name."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.core.errors import ConfigError
from quire.models.config_reader import ConfigReader
from quire.models.quantized import WHOLE, CheckpointQuantization, StoredScheme, read_quantization
from quire.models.registry import read_spec
from tests.models.test_config_reading import LLAMA_2
from tests.support.quantized_checkpoints import AWQ, FORMATS, FP8

INT8 = FORMATS["compressed-w8a8"].config
PACKED = FORMATS["compressed-w4a16"].config
FLOAT = FORMATS["compressed-fp8"].config
GPTQ = FORMATS["gptq"].config
LAYER = "model.layers.3.mlp.up_proj"


def read(config: dict[str, Any], key: str = "quantization_config") -> CheckpointQuantization:
    found = read_quantization(ConfigReader({**LLAMA_2, key: config}))
    assert found is not None
    return found


def changed(config: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return a copy with the value under a dotted path replaced."""
    made = copy.deepcopy(config)
    *above, last = path.split(".")
    inner = made
    for name in above:
        inner = inner[name]
    inner[last] = value
    return made


def test_a_plain_checkpoint_has_none() -> None:
    for config in (LLAMA_2, {**LLAMA_2, "quantization_config": None}, {**LLAMA_2, "quantization_config": {}}):
        assert read_quantization(ConfigReader(config)) is None


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read_and_leaves_the_numbers_alone(name: str) -> None:
    config = FORMATS[name].config
    found = read(config)
    assert found.method == config["quant_method"]
    assert isinstance(found.scheme_of(LAYER), StoredScheme) and isinstance(found.scheme_of("lm_head"), str)
    assert read_spec({**LLAMA_2, "quantization_config": config}) == read_spec(LLAMA_2)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (AWQ, StoredScheme("awq", "int4", (1, 16), has_zero_points=True)),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "version": "GEMM"},
         StoredScheme("awq", "int4", (1, 64), has_zero_points=True)),
        (GPTQ, StoredScheme("gptq", "int4", (1, 16), has_zero_points=True, zero_point_offset=1)),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1, "desc_act": True, "format": "gptq_v2"},
         StoredScheme("gptq", "int8", (1, WHOLE), has_zero_points=True, has_group_order=True)),
        (PACKED, StoredScheme("packed", "int4", (1, 16))),
        (changed(PACKED, "config_groups.group_0.weights.actorder", True),
         StoredScheme("packed", "int4", (1, 16), has_group_order=True)),
        (changed(PACKED, "config_groups.group_0.weights.actorder", "static"), StoredScheme("packed", "int4", (1, 16))),
        (changed(PACKED, "config_groups.group_0.weights.actorder", False), StoredScheme("packed", "int4", (1, 16))),
        (changed(PACKED, "config_groups.group_0.weights.symmetric", False),
         StoredScheme("packed", "int4", (1, 16), has_zero_points=True)),
        (INT8, StoredScheme("plain", "int8", (1, WHOLE), rounds_activations=True)),
        (FLOAT, StoredScheme("plain", "float8_e4m3fn", (1, WHOLE), rounds_activations=True)),
        (FP8, StoredScheme("plain", "float8_e4m3fn", (WHOLE, WHOLE), rounds_activations=True)),
        ({**FP8, "weight_block_size": [128, 64]},
         StoredScheme("plain", "float8_e4m3fn", (128, 64), rounds_activations=True)),
    ],
)  # fmt: skip
def test_schemes(config: dict[str, Any], expected: StoredScheme) -> None:
    assert read(config).scheme_of(LAYER) == expected


@pytest.mark.parametrize(
    "config",
    [
        {"batch_size": 1, "bits": 4, "block_name_to_quantize": None, "cache_block_outputs": True, "damp_percent": 0.01,
         "dataset": None, "desc_act": False, "exllama_config": {"version": 1}, "group_size": 128,
         "max_input_length": None, "model_seqlen": None, "module_name_preceding_first_block": None,
         "modules_in_block_to_quantize": None, "pad_token_id": None, "quant_method": "gptq", "sym": True,
         "tokenizer": None, "true_sequential": True, "use_cuda_fp16": False, "use_exllama": True},
        {"bits": 4, "checkpoint_format": "gptq", "desc_act": True, "group_size": 128, "lm_head": False,
         "format": "gptq", "method": "gptq", "meta": {"quantizer": ["gptqmodel:4.0.0"], "damp_percent": 0.01},
         "pack_dtype": "int32", "quant_method": "gptq", "sym": True},
        {"bits": 4, "group_size": 128, "modules_to_not_convert": None, "quant_method": "awq", "version": "gemm",
         "zero_point": True},
        {"bits": 4, "group_size": 128, "lm_head": False, "pack_dtype": "int32", "quant_method": "awq", "format": "gemm",
         "checkpoint_format": "gemm", "version": "gemm", "zero_point": True, "meta": {"quantizer": ["gptqmodel:5"]}},
        {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128],
         "modules_to_not_convert": ["lm_head", "model.layers.0.input_layernorm"]},
        {"config_groups": {"group_0": {"format": "int-quantized", "input_activations": {
            "actorder": None, "block_structure": None, "dynamic": True, "group_size": None, "num_bits": 8,
            "observer": "memoryless", "observer_kwargs": {}, "strategy": "token", "symmetric": True, "type": "int"},
            "output_activations": None, "targets": ["Linear"], "weights": {
            "actorder": None, "block_structure": None, "dynamic": False, "group_size": None, "num_bits": 8,
            "observer": "minmax", "observer_kwargs": {}, "scale_dtype": None, "strategy": "channel",
            "symmetric": True, "type": "int", "zp_dtype": None}}},
         "format": "int-quantized", "global_compression_ratio": None, "ignore": ["lm_head"], "kv_cache_scheme": None,
         "quant_method": "compressed-tensors", "quantization_status": "compressed", "transform_config": {},
         "sparsity_config": {"format": "dense", "global_sparsity": 0.1, "ignore": [], "targets": [],
                             "registry_requires_subclass": False, "sparsity_structure": "unstructured"},
         "version": "0.13.0"},
    ],
    ids=lambda config: config["quant_method"],
)  # fmt: skip
def test_configs_as_tools_write_them(config: dict[str, Any]) -> None:
    assert isinstance(read(config).scheme_of(LAYER), StoredScheme)


def test_the_strategy_follows_from_the_group_size() -> None:
    arguments = {"num_bits": 4, "type": "int", "symmetric": True}
    for size, block in ((128, (1, 128)), (-1, (1, WHOLE))):
        made = changed(PACKED, "config_groups.group_0.weights", {**arguments, "group_size": size})
        scheme = read(made).scheme_of(LAYER)
        assert isinstance(scheme, StoredScheme) and scheme.block == block


def test_an_older_key_and_only_one_of_them() -> None:
    assert read(INT8, "compression_config") == read(INT8)
    with pytest.raises(ConfigError, match="compression_config: expected nothing beside quantization_config"):
        read_spec({**LLAMA_2, "quantization_config": INT8, "compression_config": INT8})


WEIGHTS, INPUTS = "config_groups.group_0.weights", "config_groups.group_0.input_activations"


@pytest.mark.parametrize(
    ("base", "path", "value"),
    [
        (AWQ, "quant_method", "bitsandbytes"),
        (AWQ, "quant_method", None),
        (AWQ, "quant_method", 4),
        (AWQ, "bits", 3),
        (AWQ, "bits", 8),
        (AWQ, "bits", None),
        (AWQ, "group_size", 0),
        (AWQ, "group_size", None),
        (AWQ, "group_size", "128"),
        (AWQ, "version", "gemv"),
        (AWQ, "version", "marlin"),
        (AWQ, "zero_point", False),
        (AWQ, "modules_to_not_convert", "lm_head"),
        (AWQ, "made_up", True),
        (GPTQ, "bits", 3),
        (GPTQ, "bits", 2),
        (GPTQ, "group_size", -2),
        (GPTQ, "desc_act", "yes"),
        (GPTQ, "checkpoint_format", "marlin"),
        (GPTQ, "is_marlin_format", True),
        (GPTQ, "pack_dtype", "int64"),
        (GPTQ, "data_type", "float"),
        (GPTQ, "adapter", {"rank": 8}),
        (GPTQ, "dynamic", {"+:.*up_proj": {"bits": 8}}),
        (GPTQ, "dynamic", {"-:(": {}}),
        (GPTQ, "modules_in_block_to_quantize", "q_proj"),
        (FP8, "activation_scheme", "static"),
        (FP8, "fmt", "e5m2"),
        (FP8, "weight_block_size", [128]),
        (FP8, "weight_block_size", [128, 0]),
        (FP8, "weight_block_size", 128),
        (FP8, "modules_to_convert", ["embed_tokens"]),
        (FP8, "kv_cache_scheme", "static"),
        (INT8, "format", "marlin-24"),
        (INT8, "format", "nvfp4-pack-quantized"),
        (INT8, "format", None),
        (INT8, "kv_cache_scheme", {"num_bits": 8}),
        (INT8, "transform_config", {"groups": 1}),
        (INT8, "sparsity_config", {"format": "sparse-24-bitmask"}),
        (INT8, "config_groups", {}),
        (INT8, "config_groups", {"group_0": ["Linear"]}),
        (INT8, "ignore", "lm_head"),
        (INT8, "ignore", ["re:(a"]),
        (INT8, "ignore", ["re:" + "a" * 600]),
        (INT8, "made_up", 1),
        (INT8, f"{WEIGHTS}.num_bits", 4),
        (INT8, f"{WEIGHTS}.type", "complex"),
        (INT8, f"{WEIGHTS}.symmetric", False),
        (INT8, f"{WEIGHTS}.dynamic", True),
        (INT8, f"{WEIGHTS}.strategy", "token"),
        (INT8, f"{WEIGHTS}.strategy", "group"),
        (INT8, f"{WEIGHTS}.strategy", "block"),
        (INT8, f"{WEIGHTS}.actorder", "sideways"),
        (INT8, f"{WEIGHTS}.made_up", 1),
        (INT8, WEIGHTS, None),
        (INT8, f"{INPUTS}.num_bits", 4),
        (INT8, f"{INPUTS}.type", "float"),
        (INT8, f"{INPUTS}.symmetric", False),
        (INT8, f"{INPUTS}.dynamic", False),
        (INT8, f"{INPUTS}.dynamic", "local"),
        (INT8, f"{INPUTS}.strategy", "channel"),
        (INT8, "config_groups.group_0.output_activations", {"num_bits": 8}),
        (PACKED, f"{WEIGHTS}.num_bits", 2),
        (PACKED, f"{WEIGHTS}.type", "float"),
        (PACKED, f"{WEIGHTS}.strategy", "tensor"),
        (PACKED, f"{WEIGHTS}.group_size", None),
        (PACKED, INPUTS, {"num_bits": 8, "dynamic": True}),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(base: dict[str, Any], path: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"config\.json, quantization_config.{path.split('.')[0]}") as refused:
        read_spec({**LLAMA_2, "quantization_config": changed(base, path, value)})
    message = str(refused.value)
    assert "expected" in message and "got" in message and len(message) < 1000
    named = path.split(".")[-1]
    group_size = path.endswith("strategy") and value in ("group", "block")  # they need another field, which is named
    assert named in message or group_size or value == "bitsandbytes"


def test_other_methods_are_refused_with_a_way_on() -> None:
    with pytest.raises(
        ConfigError, match=r"one of compressed-tensors, awq, gptq, fp8, got 'hqq'.*quantization='w8a16'"
    ):
        read_spec({**LLAMA_2, "quantization_config": {"quant_method": "hqq"}})


@pytest.mark.parametrize(
    ("config", "kept", "quantized"),
    [
        ({**AWQ, "modules_to_not_convert": ["mlp.down_proj", "layers.1"]},
         ["lm_head", "model.layers.0.mlp.down_proj", "model.layers.1.self_attn.q_proj"],
         ["model.layers.0.mlp.up_proj", "model.layers.10.self_attn.q_proj"]),
        ({**FP8, "ignored_layers": ["model.layers.0.mlp.up_proj"], "modules_to_not_convert": ["o_proj"]},
         ["model.layers.0.mlp.up_proj", "model.layers.7.self_attn.o_proj", "lm_head"],
         ["model.layers.0.mlp.down_proj", "model.layers.10.mlp.up_proj"]),
        ({**GPTQ, "dynamic": {r"-:.*\.mlp\.down": {}}}, ["model.layers.0.mlp.down_proj", "lm_head"],
         ["model.layers.0.mlp.up_proj"]),
        ({**GPTQ, "lm_head": True}, [], ["lm_head", "model.layers.0.mlp.up_proj"]),
        ({**GPTQ, "modules_in_block_to_quantize": [["self_attn.q_proj"], ["mlp.up_proj", "mlp.down_proj"]]},
         ["model.layers.0.self_attn.k_proj", "lm_head"],
         ["model.layers.0.self_attn.q_proj", "model.layers.9.mlp.down_proj"]),
        ({**INT8, "ignore": ["lm_head", "re:.*layers\\.[01]\\.mlp"]},
         ["lm_head", "model.layers.1.mlp.up_proj"], ["model.layers.2.mlp.up_proj", "model.lm_head"]),
        (changed(INT8, "config_groups.group_0.targets", ["re:.*up_proj$"]), ["model.layers.0.mlp.down_proj"],
         ["model.layers.0.mlp.up_proj"]),
    ],
)  # fmt: skip
def test_layers_that_are_kept(config: dict[str, Any], kept: list[str], quantized: list[str]) -> None:
    found = read(config)
    for layer in kept:
        assert "quantization_config" in str(found.scheme_of(layer)) and isinstance(found.scheme_of(layer), str)
    for layer in quantized:
        assert isinstance(found.scheme_of(layer), StoredScheme), layer


def test_groups_of_several_schemes_and_formats() -> None:
    """A name goes before a regular expression, and that before a class; each group may be stored in its own format."""
    groups = {
        "all": {**PACKED["config_groups"]["group_0"], "format": "pack-quantized"},
        "downs": {**INT8["config_groups"]["group_0"], "targets": ["re:.*down_proj"], "format": "int-quantized"},
        "one": {**FLOAT["config_groups"]["group_0"], "targets": ["model.layers.0.mlp.down_proj"],
                "format": "float-quantized"},
    }  # fmt: skip
    found = read({**PACKED, "format": "mixed-precision", "config_groups": groups})
    layers = ("model.layers.0.mlp.up_proj", "model.layers.1.mlp.down_proj", "model.layers.0.mlp.down_proj")
    schemes = [found.scheme_of(layer) for layer in layers]
    assert [s.dtype for s in schemes if isinstance(s, StoredScheme)] == ["int4", "int8", "float8_e4m3fn"]
    del groups["all"]["format"]
    with pytest.raises(ConfigError, match=r"config_groups\.all\.format"):
        read({**PACKED, "format": "mixed-precision", "config_groups": groups})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.data())
def test_any_json_gives_a_scheme_or_a_config_error(data: st.DataObject) -> None:
    config = copy.deepcopy(FORMATS[data.draw(st.sampled_from(sorted(FORMATS)))].config)
    for _ in range(data.draw(st.integers(1, 3))):
        inner = config
        while True:
            key = data.draw(st.sampled_from(sorted(inner)) | st.text(max_size=6))
            if isinstance(inner.get(key), dict) and inner[key] and data.draw(st.booleans()):
                inner = inner[key]
                continue
            inner[key] = data.draw(JSON)
            break
    try:
        found = read_quantization(ConfigReader({**LLAMA_2, "quantization_config": config}))
    except ConfigError as error:
        assert len(str(error)) < 2000
    else:
        assert found is None or found.scheme_of(LAYER)
