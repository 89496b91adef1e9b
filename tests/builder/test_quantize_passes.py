"""The passes that write a recipe into a network: text after each, equal results, weights folded once."""

import pytest
import torch

from quire.builder.passes.drop_dead import drop_dead
from quire.builder.passes.fold_weights import fold_weights
from quire.builder.passes.quantize_kv_cache import quantize_kv_cache
from quire.builder.passes.quantize_linear import quantize_linear
from quire.builder.passes.smooth import smooth
from quire.graph import functional as F
from quire.graph.layers import Linear, RmsNorm
from quire.graph.legality import OPTIMIZED, check_network
from quire.graph.network import Network, Tensor, net_guard
from quire.ops.linear import linear_w4a16, linear_w8a8, linear_w8a16
from quire.ops.quantize import quantize_rows, quantize_weight, quantize_weight_int4
from quire.plan.weight_source import TensorWeights
from quire.quantization.recipe import LinearRecipe, Recipe
from tests.support.tolerance import assert_close

DTYPE = "bfloat16"


def network():
    """A norm before one layer, and a gated projection before another."""
    made = Network("layers")
    with net_guard(made):
        x = Tensor("x", DTYPE, ("num_tokens", 64))
        normed = RmsNorm("norm", 64, 1e-5, DTYPE)(x)
        gated = F.silu_mul(Linear("gate_up", 64, 128, DTYPE, bias=True)(normed))
        Linear("down", 64, 32, DTYPE, bias=True)(gated).mark_output("y")
    return made


def weights():
    generator = torch.Generator().manual_seed(1)
    return {n: torch.randn(s.shape, generator=generator).to(s.dtype) for n, s in network().weights.items()}


def factors(name):
    return torch.rand(64, generator=torch.Generator().manual_seed(len(name))) + 0.5


def recipe(scheme="w8a8", smoothed=("gate_up", "down")):
    linears = {
        name: LinearRecipe(scheme, 64, f"{name}.smooth" if name in smoothed else None) for name in ("gate_up", "down")
    }
    return Recipe(linears, tensors={f"{name}.smooth": factors(name) for name in smoothed})


def rows(count=5):
    return torch.randn(count, 64, generator=torch.Generator().manual_seed(2)).bfloat16()


SMOOTHED = """\
network layers
  input  x: bfloat16[num_tokens, 64]
  %norm = rms_norm(x, cast(div(cast(norm.weight, dtype='float32'), gate_up.smooth), dtype='bfloat16'), eps=1e-05)  : bfloat16[num_tokens, 64]
  %gate_up = linear(%norm, cast(mul(cast(gate_up.weight, dtype='float32'), gate_up.smooth), dtype='bfloat16'), gate_up.bias)  : bfloat16[num_tokens, 128]
  %silu_mul = silu_mul(%gate_up)  : bfloat16[num_tokens, 64]
  %down = linear(%silu_mul, down.weight, down.bias)  : bfloat16[num_tokens, 32]
  output y = %down"""  # noqa: E501


def test_smooth_divides_a_norm_and_multiplies_the_weight():
    made, given = network(), recipe(smoothed=("gate_up",))
    assert smooth(made, given).done == ["gate_up"]
    assert str(made) == SMOOTHED


@pytest.mark.parametrize("smoothed", [("gate_up",), ("down",), ("gate_up", "down")])
def test_smoothing_keeps_the_result(smoothed):
    made, exact, given = network(), network(), recipe(smoothed=smoothed)
    assert smooth(made, given).count == len(smoothed)
    check_network(made, OPTIMIZED)
    wide = {name: tensor.bfloat16() for name, tensor in weights().items()}
    got = made.run({"x": rows()}, {**wide, **given.tensors})["y"]
    assert_close(got, exact.run({"x": rows()}, wide)["y"])


QUANTIZED = {
    "w8a8": """\
network layers
  input  x: bfloat16[num_tokens, 64]
  %norm = rms_norm(x, norm.weight, eps=1e-05)  : bfloat16[num_tokens, 64]
  %gate_up_x, %gate_up_x_scales = quantize_rows(%norm)  : int8[num_tokens, 64], float32[num_tokens, 1]
  %gate_up_weight_1, %gate_up_scales = quantize_weight(gate_up.weight)  : int8[128, 64], float32[128]
  %gate_up = linear_w8a8(%gate_up_x, %gate_up_x_scales, %gate_up_weight_1, %gate_up_scales, gate_up.bias)\
  : bfloat16[num_tokens, 128]
  %silu_mul = silu_mul(%gate_up)  : bfloat16[num_tokens, 64]
  %down_x, %down_x_scales = quantize_rows(%silu_mul)  : int8[num_tokens, 64], float32[num_tokens, 1]
  %down_weight_1, %down_scales = quantize_weight(down.weight)  : int8[32, 64], float32[32]
  %down = linear_w8a8(%down_x, %down_x_scales, %down_weight_1, %down_scales, down.bias)  : bfloat16[num_tokens, 32]
  output y = %down""",
    "w4a16": """\
network layers
  input  x: bfloat16[num_tokens, 64]
  %norm = rms_norm(x, norm.weight, eps=1e-05)  : bfloat16[num_tokens, 64]
  %gate_up_weight_1, %gate_up_scales, %gate_up_zero_points = quantize_weight_int4(gate_up.weight, group_size=64,\
 dtype='bfloat16')  : uint8[128, 32], bfloat16[128, 1], uint8[128, 1]
  %gate_up = linear_w4a16(%norm, %gate_up_weight_1, %gate_up_scales, %gate_up_zero_points, gate_up.bias)\
  : bfloat16[num_tokens, 128]
  %silu_mul = silu_mul(%gate_up)  : bfloat16[num_tokens, 64]
  %down_weight_1, %down_scales, %down_zero_points = quantize_weight_int4(down.weight, group_size=64,\
 dtype='bfloat16')  : uint8[32, 32], bfloat16[32, 1], uint8[32, 1]
  %down = linear_w4a16(%silu_mul, %down_weight_1, %down_scales, %down_zero_points, down.bias)\
  : bfloat16[num_tokens, 32]
  output y = %down""",
}


@pytest.mark.parametrize("scheme", QUANTIZED)
def test_quantize_linear_prints_as_it_should(scheme):
    made = network()
    assert quantize_linear(made, recipe(scheme, smoothed=())).done == ["gate_up", "down"]
    assert str(made) == QUANTIZED[scheme]
    assert quantize_linear(made, Recipe()).count == 0


def by_hand(scheme, x, weight, bias):
    """One layer by the ops' own definitions."""
    if scheme == "w4a16":
        return linear_w4a16(x, *quantize_weight_int4(weight, 64), bias)
    dtype = "float8_e4m3fn" if scheme == "fp8" else "int8"
    if scheme == "w8a16":
        return linear_w8a16(x, *quantize_weight(weight, dtype), bias)
    return linear_w8a8(*quantize_rows(x, dtype), *quantize_weight(weight, dtype), bias)


@pytest.mark.parametrize("scheme", ["w8a16", "w8a8", "w4a16", "fp8"])
def test_quantized_layers_compute_what_their_ops_say(scheme):
    made, w = network(), weights()
    quantize_linear(made, recipe(scheme, smoothed=()))
    check_network(made, OPTIMIZED)
    got = made.run({"x": rows()}, w)["y"]
    norm = w["norm.weight"] * (rows().float() * (rows().float().square().mean(-1, True) + 1e-5).rsqrt()).bfloat16()
    gate, up = by_hand(scheme, norm, w["gate_up.weight"], w["gate_up.bias"]).chunk(2, -1)
    gated = torch.nn.functional.silu(gate.float()).bfloat16() * up
    assert torch.equal(got, by_hand(scheme, gated, w["down.weight"], w["down.bias"]))


def test_layers_of_one_input_share_its_rounded_rows():
    made = Network("shared")
    with net_guard(made):
        x = Tensor("x", "float32", ("num_tokens", 8))
        (Linear("a", 8, 4, "float32")(x) + Linear("b", 8, 4, "float32")(x)).mark_output("y")
    quantize_linear(made, Recipe({name: LinearRecipe("w8a8") for name in "ab"}))
    assert [node.target.name for node in made.calls()].count("quantize_rows") == 1


FOLDED = """\
network layers
  input  x: bfloat16[num_tokens, 64]
  %norm = rms_norm(x, norm.weight, eps=1e-05)  : bfloat16[num_tokens, 64]
  %gate_up = linear_w8a16(%norm, gate_up.weight, gate_up.scales, gate_up.bias)  : bfloat16[num_tokens, 128]
  %silu_mul = silu_mul(%gate_up)  : bfloat16[num_tokens, 64]
  %down = linear_w8a16(%silu_mul, down.weight, down.scales, down.bias)  : bfloat16[num_tokens, 32]
  output y = %down"""


def test_fold_weights_stores_what_weights_become():
    made, given = network(), recipe("w8a16")
    smooth(made, given)
    quantize_linear(made, given)
    drop_dead(made)
    source = TensorWeights(given.tensors, TensorWeights(weights()))
    before = made.run({"x": rows()}, {name: source.read(name) for name in made.weights})["y"]
    matches, folded = fold_weights(made, source)
    assert str(made) == FOLDED
    assert matches.count == 6 and set(folded.names()) == set(made.weights)
    assert {name: folded.spec(name) for name in folded.names()} == dict(made.weights)
    first, again = ({name: folded.read(name) for name in made.weights} for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in made.weights)
    assert torch.equal(made.run({"x": rows()}, first)["y"], before)
    matches, same = fold_weights(made, folded)
    assert same is folded and not matches.done, "nothing is left to fold"


def test_fold_weights_leaves_layouts_where_they_are():
    made = Network("joined")
    with net_guard(made):
        x = Tensor("x", "float32", ("num_tokens", 8))
        parts = [made.add_weight(name, "float32", (4, 8)) for name in ("a", "b")]
        F.linear(x, F.concat(parts, 0)).mark_output("y")
    source = TensorWeights({})
    matches, same = fold_weights(made, source)
    assert same is source and not matches.done and list(matches.missed) == ["concat"]


def test_quantize_kv_cache_gives_scales_to_all_who_use_a_cache():
    made = Network("cache")
    with net_guard(made):
        key = Tensor("key", "float32", ("num_tokens", 1, 4))
        cache = Tensor("kv_cache.0", "float32", (2, "num_blocks", 1, "block_size", 4))
        other = Tensor("kv_cache.1", "float32", (2, "num_blocks", 1, "block_size", 4))
        slots = Tensor("slot_mapping", "int32", ("num_tokens",))
        F.append_kv(key, key, cache, slots)
        F.append_kv(key, key, other, slots)
        F.relu(key).mark_output("y")
    given = Recipe(kv_cache_dtype="int8", tensors={"kv_scales.0": torch.ones(2, 1)})
    assert quantize_kv_cache(made, given).done == ["kv_cache.0"]
    check_network(made, OPTIMIZED)
    assert str(made).splitlines()[2:7] == [
        "  input  kv_cache.0: int8[2, num_blocks, 1, block_size, 4]",
        "  input  kv_cache.1: float32[2, num_blocks, 1, block_size, 4]",
        "  input  slot_mapping: int32[num_tokens]",
        "  append_kv(key, key, kv_cache.0, slot_mapping, kv_scales.0)",
        "  append_kv(key, key, kv_cache.1, slot_mapping)",
    ]
