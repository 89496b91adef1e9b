"""What quantization costs the built-in model, and that planted outliers are caught, and smoothed away."""

import shutil
from functools import cache
from pathlib import Path

import pytest
import safetensors.torch

import quire
from quire.builder.open import open_plan
from quire.core.config import BuildConfig
from quire.core.errors import BuildError

QUIRE_TINY = Path(quire.__file__).parent / "assets" / "quire_tiny"
OUTLIER = 50


@cache
def report(model="quire-tiny", **settings):
    config = BuildConfig(num_calibration_samples=32, calibration_length=256, **settings)
    return open_plan(model, config).report["quantization"]


@pytest.mark.parametrize("scheme", ["w8a16", "w8a8", "fp8"])
def test_eight_bits_keep_the_model(scheme):
    found = report(quantization=scheme)
    assert len(found["layers"]) == 24 and list(found["skipped"]) == ["model_embed_tokens"]
    assert found["accuracy"]["top1_agreement"] >= 0.98
    assert abs(found["accuracy"]["perplexity_change"]) <= 0.01
    assert found["accuracy"]["kl"] <= found["max_kl"]


def test_four_bits_with_awq_beat_rounding_to_nearest():
    awq = report(quantization="w4a16")["accuracy"]
    nearest = report(quantization="w4a16", smooth=False)["accuracy"]
    assert awq["perplexity_change"] <= 0.05
    assert awq["kl"] <= 0.9 * nearest["kl"]
    assert awq["reverse_kl"] <= 0.9 * nearest["reverse_kl"]


@pytest.mark.parametrize("dtype, change", [("int8", 0.01), ("fp8", 0.01)])
def test_an_eight_bit_cache_keeps_the_model(dtype, change):
    found = report(kv_cache_dtype=dtype)
    assert abs(found["accuracy"]["perplexity_change"]) <= change and not found["layers"]


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """The built-in model with the widest channel of every norm times 50, and the next weights' divided by 50."""
    directory = tmp_path_factory.mktemp("planted") / "model"
    shutil.copytree(QUIRE_TINY, directory)
    weights = safetensors.torch.load_file(directory / "model.safetensors")
    after = {
        "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
    }
    for name in [name for name in weights if name.rpartition(".")[0].rpartition(".")[2] in after]:
        layer, norm = name.removesuffix(".weight").rsplit(".", 1)
        channel = int(weights[name].float().abs().argmax())
        weights[name][channel] *= OUTLIER
        for linear in after[norm]:
            weights[f"{layer}.{linear}.weight"][:, channel] /= OUTLIER
    safetensors.torch.save_file(weights, directory / "model.safetensors")
    return str(directory)


def test_outliers_fail_the_limit_and_smoothquant_passes_it(planted):
    with pytest.raises(BuildError, match=r"at most 0.004 nats a token") as refused:
        report(planted, quantization="w8a8", smooth=False)
    assert "qkv_proj" in str(refused.value) or "gate_up_proj" in str(refused.value)
    smoothed = report(planted, quantization="w8a8")
    assert smoothed["accuracy"]["kl"] <= 0.001
    assert smoothed["accuracy"]["top1_agreement"] >= 0.98
    given = report(planted, quantization="w8a8", smooth_alpha=0.5)
    assert given["accuracy"]["kl"] <= 0.001 and {layer["alpha"] for layer in given["layers"].values()} >= {0.5}


def test_awq_protects_channels_that_rounding_to_nearest_loses(planted):
    awq = report(planted, quantization="w4a16")["accuracy"]
    nearest = report(planted, quantization="w4a16", smooth=False)["accuracy"]
    assert awq["perplexity_change"] <= 0.05
    assert awq["kl"] <= 0.6 * nearest["kl"] and awq["top1_agreement"] > nearest["top1_agreement"]
