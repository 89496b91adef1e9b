"""`adopt_quantized`: the network as text, what is shared, what is refused, equal numbers, folded weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from quire.builder.open import open_plan
from quire.builder.passes.adopt_quantized import adopt_quantized
from quire.builder.passes.drop_dead import drop_dead
from quire.builder.passes.fold_weights import fold_weights
from quire.core.config import BuildConfig
from quire.core.errors import ConfigError, PlanError
from quire.graph import functional as F
from quire.graph.layers import Embedding, Linear
from quire.graph.legality import DEFINED, check_network
from quire.graph.matches import Matches
from quire.graph.network import Network, Tensor, net_guard
from quire.models.config_reader import ConfigReader
from quire.models.quantized import CheckpointQuantization, read_quantization
from quire.plan.folding import constant_nodes
from quire.plan.weight_source import TensorWeights
from tests.support.quantized_checkpoints import FORMATS, write_quantized

Weights = dict[str, torch.Tensor]


def layers(dtype: str = "float32") -> Network:
    """Two layers of one input, and a head that checkpoints leave alone."""
    made = Network("layers")
    with net_guard(made):
        x = Tensor("x", dtype, ("num_tokens", 32))
        up = Linear("up", 32, 24, dtype, bias=True)(x)
        (Linear("gate", 32, 24, dtype)(x) * up).mark_output("y")
        Linear("lm_head", 32, 8, dtype)(x).mark_output("logits")
    return made


def checkpoint(name: str) -> tuple[Weights, Weights]:
    """Return the stored tensors of those layers, and the weights that they stand for."""
    generator = torch.Generator().manual_seed(1)
    stored = {
        "up.bias": torch.randn(24, generator=generator),
        "lm_head.weight": torch.randn(8, 32, generator=generator),
    }
    meant = dict(stored)
    for layer in ("up", "gate"):
        weight = torch.randn(24, 32, generator=generator)
        parts, meant[f"{layer}.weight"] = FORMATS[name].pack(weight, **FORMATS[name].options)
        stored.update({f"{layer}.{suffix}": tensor for suffix, tensor in parts.items()})
    return stored, meant


def quantization(name: str, **changes: Any) -> CheckpointQuantization:
    found = read_quantization(ConfigReader({"quantization_config": {**FORMATS[name].config, **changes}}))
    assert found is not None
    return found


def adopted(name: str, stored: Weights | None = None, **changes: Any) -> tuple[Network, Matches]:
    made = layers()
    matches = adopt_quantized(made, quantization(name, **changes), TensorWeights(stored or checkpoint(name)[0]))
    check_network(made, DEFINED)
    return made, matches


def rows(count: int = 5) -> torch.Tensor:
    return torch.randn(count, 32, generator=torch.Generator().manual_seed(2))


def as_declared(network: Network, stored: Weights) -> Weights:
    """Cast stored tensors as opening a checkpoint does."""
    return {name: stored[name].to(spec.dtype) for name, spec in network.weights.items()}


AWQ = """\
network layers
  input  x: float32[num_tokens, 32]
  %up = linear_w4a16(x, pack_int4(permute(unpack_int32(up.qweight, is_interleaved=True), [1, 0])),\
 permute(up.scales, [1, 0]), permute(unpack_int32(up.qzeros, is_interleaved=True), [1, 0]), up.bias)\
  : float32[num_tokens, 24]
"""
FP8 = """\
network layers
  input  x: float32[num_tokens, 32]
  %up_x, %up_x_scales = quantize_rows(x, dtype='float8_e4m3fn')\
  : float8_e4m3fn[num_tokens, 32], float32[num_tokens, 1]
  %up = linear_w8a8(%up_x, %up_x_scales, up.weight, expand(view(up.weight_scale, [1]), [24]), up.bias,\
 dtype='float32')  : float32[num_tokens, 24]
  %gate = linear_w8a8(%up_x, %up_x_scales, gate.weight, expand(view(gate.weight_scale, [1]), [24]),\
 dtype='float32')  : float32[num_tokens, 24]
  %mul = mul(%gate, %up)  : float32[num_tokens, 24]
  %lm_head = linear(x, lm_head.weight)  : float32[num_tokens, 8]
  output y = %mul
  output logits = %lm_head"""
BLOCKS = """\
network layers
  input  x: float32[num_tokens, 32]
  %up = linear(x, dequantize_weight(up.weight, up.weight_scale_inv, [12, 20]), up.bias)  : float32[num_tokens, 24]
"""


@pytest.mark.parametrize(("name", "expected"), [("awq", AWQ), ("fp8", FP8), ("fp8-block", BLOCKS)])
def test_adopted_networks_print_as_they_should(name: str, expected: str) -> None:
    assert str(adopted(name)[0]).startswith(expected)


@pytest.mark.parametrize("name", FORMATS)
def test_layers_become_the_op_of_their_scheme_and_others_stay(name: str) -> None:
    made, matches = adopted(name)
    ops = {node.name: node.target.name for node in made.calls()}
    op = FORMATS[name].op
    assert (ops["up"], ops["gate"], ops["lm_head"]) == (op, op, "linear")
    assert "kept unquantized by 'lm_head'" in matches.missed["lm_head"]
    if op == "linear":
        assert not matches.done and "dequantized to float32" in matches.missed["up"]
    else:
        assert matches.done == ["up", "gate"] and list(matches.missed) == ["lm_head"]


@pytest.mark.parametrize("name", FORMATS)
def test_adopted_layers_compute_what_the_checkpoint_stands_for(name: str) -> None:
    made, exact = adopted(name)[0], layers()
    stored, meant = checkpoint(name)
    x, form = rows(), FORMATS[name]
    rounded = x
    if form.rounds_to is not None:
        largest = 127.0 if form.rounds_to == torch.int8 else 448.0
        scale = x.abs().amax(-1, keepdim=True) / largest
        rounded = ((x / scale).round() if largest == 127.0 else (x / scale).to(form.rounds_to).float()) * scale
    expected = exact.run({"x": rounded}, meant)["y"]
    got = made.run({"x": x}, as_declared(made, stored))
    assert torch.allclose(got["y"], expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(got["logits"], exact.run({"x": x}, meant)["logits"])


@pytest.mark.parametrize("name", FORMATS)
def test_folded_weights_keep_every_bit_and_the_layers_names(name: str) -> None:
    made = adopted(name)[0]
    stored = as_declared(made, checkpoint(name)[0])
    before = made.run({"x": rows()}, stored)
    drop_dead(made)
    folded = fold_weights(made, TensorWeights(stored))[1]
    after = made.run({"x": rows()}, {weight: folded.read(weight) for weight in made.weights})
    assert all(torch.equal(before[output], after[output]) for output in before)
    assert {"up.weight", "gate.weight", "up.bias", "lm_head.weight"} <= set(made.weights)
    if FORMATS[name].op == "linear_w4a16":
        scales = "up.weight_scale" if name.startswith("compressed") else "up.scales"
        assert scales in made.weights, "a tensor that is used as it is stored keeps its name"
        assert made.weights["up.weight"].dtype == torch.uint8


def test_rounded_rows_and_orders_are_shared() -> None:
    ops = [node.target.name for node in adopted("compressed-w8a8")[0].calls()]
    assert ops.count("quantize_rows") == 1
    made = adopted("gptq-act")[0]
    gathers = [node for node in made.calls() if node.target.name == "index_select" and node.name.endswith("_x")]
    assert len(gathers) == 1 and [user.name for user in gathers[0].users] == ["up", "gate"]


def test_what_later_passes_join_is_constant_along_the_output() -> None:
    """Weights, scales and zero points of layers that share an input are constants with as many rows as outputs."""
    for name in FORMATS:
        made = adopted(name)[0]
        constants = constant_nodes(made)
        up, gate = (next(node for node in made.calls() if node.name == layer) for layer in ("up", "gate"))
        for part in ("weight", "scales", "zero_points"):
            if part in up.kwargs:
                assert {up.kwargs[part], gate.kwargs[part]} <= constants
                assert up.kwargs[part].meta["spec"].shape[0] == 24
        assert up.kwargs["x"] is gate.kwargs["x"]


def test_groups_that_follow_the_channels_need_no_gather() -> None:
    stored, _ = checkpoint("gptq")
    assert "up.g_idx" in stored
    for desc_act in (True, False):
        made, _ = adopted("gptq", stored, desc_act=desc_act)
        assert "index_select" not in [node.target.name for node in made.calls()]


def test_an_order_counts_even_where_the_config_denies_it() -> None:
    stored, meant = checkpoint("gptq-act")
    made, _ = adopted("gptq-act", stored, desc_act=False)
    got = made.run({"x": rows()}, as_declared(made, stored))["y"]
    assert torch.allclose(got, layers().run({"x": rows()}, meant)["y"], rtol=1e-5, atol=1e-4)


def test_groups_of_unequal_sizes_are_refused() -> None:
    stored, _ = checkpoint("gptq-act")
    stored["gate.g_idx"][0] = 1 - stored["gate.g_idx"][0]
    with pytest.raises(ConfigError, match="group_size: expected 16 input channels in every group of gate"):
        adopted("gptq-act", stored)


def test_a_group_size_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="group_size: expected a divisor of the 32 input channels of up, got 24"):
        adopted("awq", group_size=24)


def test_a_bias_that_only_the_checkpoint_has_is_added() -> None:
    stored, meant = checkpoint("gptq")
    stored["gate.bias"] = torch.randn(24)
    made, _ = adopted("gptq", stored)
    exact = layers()
    weights = as_declared(made, stored)
    x = rows()
    up = x @ meant["up.weight"].t() + meant["up.bias"]
    gate = x @ meant["gate.weight"].t() + stored["gate.bias"]
    assert torch.allclose(made.run({"x": x}, weights)["y"], gate * up, rtol=1e-5, atol=1e-4)
    assert "gate.bias" in made.weights and "gate.bias" not in exact.weights


def test_tied_weights_stay_and_shared_ones_are_refused() -> None:
    made = Network("tied")
    with net_guard(made):
        embedding = Embedding("embed", 24, 32, "float32")
        x = embedding(Tensor("ids", "int32", ("num_tokens",)))
        F.linear(x, embedding.weight).mark_output("tied")
    before = str(made)
    matches = adopt_quantized(made, quantization("gptq", lm_head=True), TensorWeights({}))
    assert matches.missed == {"embed": "its weight is the embedding's"} and not matches.done and str(made) == before
    with net_guard(made):
        both = made.add_weight("both.weight", "float32", (8, 32))
        F.linear(x, F.slice(both, 0, 0, 4)).mark_output("part")
    with pytest.raises(ConfigError, match="a weight of their own, got 'both' with a part of one"):
        adopt_quantized(made, quantization("gptq"), TensorWeights({}))
    adopt_quantized(made, quantization("gptq", modules_to_not_convert=["both"]), TensorWeights({}))


def test_made_up_weights_need_no_checkpoint() -> None:
    for name, form in FORMATS.items():
        made = layers()
        adopt_quantized(made, quantization(name))
        check_network(made, DEFINED)
        assert form.op in [node.target.name for node in made.calls()], name


def test_missing_and_unexpected_tensors_are_named(tmp_path: Path) -> None:
    write_quantized(tmp_path, FORMATS["awq"])
    tensors = load_file(tmp_path / "model.safetensors")
    lost = tensors.pop("model.layers.1.mlp.up_proj.qzeros")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(PlanError, match=r"missing \(1\): 'model\.layers\.1\.mlp\.up_proj\.qzeros' int32\[2, 6\]"):
        open_plan(tmp_path)
    tensors["model.layers.1.mlp.up_proj.qzeros"] = lost[:, :-1].contiguous()
    tensors["model.layers.0.self_attn.k_scale"] = torch.ones(1)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(PlanError, match=r"not expected \(1\): .*k_scale.* do not fit \(1\): .*qzeros"):
        open_plan(tmp_path)


def test_layers_kept_in_the_config_but_quantized_in_the_file_are_an_error(tmp_path: Path) -> None:
    write_quantized(tmp_path, FORMATS["awq"])
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["modules_to_not_convert"] = ["down_proj"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(PlanError, match=r"down_proj\.weight.*not expected \(6\)"):
        open_plan(tmp_path)


def test_quantizing_again_is_refused(tmp_path: Path) -> None:
    write_quantized(tmp_path, FORMATS["gptq"])
    with pytest.raises(ConfigError, match=r"quantization: expected None .*'gptq'.*got 'w8a16'"):
        open_plan(tmp_path, BuildConfig(quantization="w8a16"))
