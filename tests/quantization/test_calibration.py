"""What calibration decides, on networks small enough to know the answer."""

import pytest
import torch

from quire.core.config import BuildConfig
from quire.core.errors import BuildError, ConfigError
from quire.graph import functional as F
from quire.graph.layers import Attention, AttentionInputs, Linear, RmsNorm
from quire.graph.network import Network, Tensor, net_guard
from quire.plan.weight_source import TensorWeights
from quire.quantization.calibration import calibrate

SAMPLES = [[1, 2, 3, 4, 5], [6, 7, 0]]


def decoder():
    """One layer: norm, joined projection, attention; then a norm and the logits."""
    network = Network("small")
    with net_guard(network):
        ids = Tensor("input_ids", "int32", ("num_tokens",))
        step = AttentionInputs(
            positions=Tensor("positions", "int32", ("num_tokens",)),
            slot_mapping=Tensor("slot_mapping", "int32", ("num_tokens",)),
            block_table=Tensor("block_table", "int32", ("num_seqs", "max_blocks")),
            seq_lens=Tensor("seq_lens", "int32", ("num_seqs",)),
            query_start_loc=Tensor("query_start_loc", "int32", ("num_boundaries",)),
        )
        cache = Tensor("kv_cache.0", "float32", (2, "num_blocks", 2, "block_size", 4))
        x = F.embedding(ids, network.add_weight("embed.weight", "float32", (8, 64)))
        qkv = Linear("layers.0.qkv_proj", 64, 24, "float32")(RmsNorm("layers.0.norm", 64, 1e-5, "float32")(x))
        q, k, v = (F.slice(qkv, -1, i, i + 8).view(-1, 2, 4) for i in (0, 8, 16))
        x = x + Linear("layers.0.o_proj", 8, 64, "float32")(Attention(0, 2, 2, 4, 0.5)(q, k, v, cache, step))
        Linear("lm_head", 64, 8, "float32")(RmsNorm("norm", 64, 1e-5, "float32")(x)).mark_output("logits")
    return network


def weights_of(network, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(spec.shape, generator=generator) for name, spec in network.weights.items()}


def recipe(weights=None, **settings):
    network = decoder()
    return calibrate(network, TensorWeights(weights or weights_of(network)), SAMPLES, BuildConfig(**settings))


def test_the_same_text_gives_the_same_recipe():
    first, second = (recipe(quantization="w8a8", kv_cache_dtype="int8") for _ in range(2))
    assert first.linears == second.linears and list(first.tensors) == list(second.tensors)
    assert all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)


def test_what_makes_the_logits_has_eight_bits_where_others_have_four():
    found = recipe(quantization="w4a16", exclude=(), group_size=64)
    schemes = {name: linear.scheme for name, linear in found.linears.items()}
    assert schemes == {"layers_0_qkv_proj": "w4a16", "lm_head": "w8a16"}
    assert found.linears["lm_head"].smooth is None and found.linears["lm_head"].shares is None


def test_layers_are_excluded_by_name():
    assert set(recipe(quantization="w8a16").linears) == {"layers_0_qkv_proj", "layers_0_o_proj"}
    found = recipe(quantization="w8a16", exclude=("o_proj", "lm_head"))
    assert list(found.linears) == ["layers_0_qkv_proj"]
    assert found.skipped == {"layers_0_o_proj": "excluded by 'o_proj'", "lm_head": "excluded by 'lm_head'"}
    assert len(recipe(quantization="w8a16", exclude=()).linears) == 3
    assert len(recipe(quantization="w8a16", exclude=("layers.0",)).linears) == 1
    with pytest.raises(ConfigError, match=r"got 'o_porj'. Did you mean 'o_proj'"):
        recipe(quantization="w8a16", exclude=("o_porj",))


def test_w4a16_skips_what_no_group_divides():
    found = recipe(quantization="w4a16", group_size=64)
    assert list(found.linears) == ["layers_0_qkv_proj"]
    assert found.skipped["layers_0_o_proj"] == "in_features 8 is no multiple of group_size 64"


def test_an_outlier_channel_is_smoothed():
    network = decoder()
    weights = weights_of(network)
    weights["layers.0.norm.weight"][5] = 200.0
    found = recipe(weights, quantization="w8a8")
    linear = found.linears["layers_0_qkv_proj"]
    factors = found.tensors[linear.smooth]
    assert int(factors.argmax()) == 5 and factors[5] > 4 * factors.median()
    plain = recipe(weights, quantization="w8a8", smooth=False).linears["layers_0_qkv_proj"]
    assert plain.smooth is None and linear.error < plain.error / 3
    assert recipe(weights, quantization="w8a8", smooth_alpha=0.5).linears["layers_0_qkv_proj"].alpha == 0.5
    assert found.linears["layers_0_o_proj"].smooth is None, "attention stands between it and a norm"


@pytest.mark.parametrize("dtype, largest", [("int8", 127), ("fp8", 448)])
def test_scales_of_keys_and_values_fill_the_range_of_each_head(dtype, largest):
    network = decoder()
    weights = weights_of(network)
    weights["layers.0.qkv_proj.weight"][8:12] *= 10  # the first key head
    weights["layers.0.qkv_proj.weight"][20:24] *= 100  # the second value head
    scales = recipe(weights, kv_cache_dtype=dtype).tensors["kv_scales.0"]
    ids = torch.tensor([token for sample in SAMPLES for token in sample])
    x = weights["embed.weight"][ids]
    x = x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weights["layers.0.norm.weight"]
    rows = (x @ weights["layers.0.qkv_proj.weight"].t())[:, 8:].view(-1, 2, 2, 4)
    assert torch.allclose(scales, rows.abs().amax((0, 3)) / largest, rtol=1e-4)


def test_activations_that_are_not_finite_are_refused():
    network = decoder()
    weights = weights_of(network)
    weights["layers.0.norm.weight"][0] = float("inf")
    with pytest.raises(BuildError, match=r"finite inputs of layer layers.0.qkv_proj"):
        recipe(weights, quantization="w8a8")
