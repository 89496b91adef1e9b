"""Layers: what they compute against torch, what they declare, and how sharded ones are marked."""

import pytest
import torch

from quire import Network, Tensor, functional, layers, net_guard
from quire.core.errors import BuildError, ShapeError
from quire.graph.text import network_from_text, network_to_text
from tests.support.tolerance import assert_close

F = functional
DTYPE = "float32"


def defined(layer, width=8, dtype=DTYPE):
    network = Network("layer")
    with net_guard(network):
        layer(Tensor("x", dtype, ("num_tokens", width))).mark_output("y")
    return network


def weights_of(network):
    generator = torch.Generator().manual_seed(0)
    return {n: torch.randn(s.shape, generator=generator).to(s.dtype) for n, s in network.weights.items()}


def run(layer, x, width=8, dtype=DTYPE):
    """Return a layer's result and its weights."""
    network = defined(layer, width, dtype)
    weights = weights_of(network)
    return network.run({"x": x}, weights)["y"], weights


def rows(count=5, width=8):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", [layers.Linear, layers.ColumnLinear, layers.RowLinear])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_linears_of_all_kinds_compute_the_same(kind, bias, is_transposed):
    y, w = run(kind("p", 8, 3, DTYPE, bias, is_transposed), rows())
    matrix = w["p.weight"].T if is_transposed else w["p.weight"]
    assert matrix.shape == (3, 8) and ("p.bias" in w) == bias
    assert_close(y, torch.nn.functional.linear(rows(), matrix, w.get("p.bias")))


def test_norms_and_embedding():
    y, w = run(layers.RmsNorm("n", 8, 1e-5, DTYPE), rows())
    assert_close(y, torch.nn.functional.rms_norm(rows(), (8,), w["n.weight"], 1e-5))
    y, w = run(layers.LayerNorm("n", 8, 1e-5, DTYPE), rows())
    assert_close(y, torch.nn.functional.layer_norm(rows(), (8,), w["n.weight"], w["n.bias"], 1e-5))
    table = layers.Embedding("e", 11, 8, DTYPE)
    y, w = run(lambda x: F.linear(x, table.weight) + F.linear(x, table.weight), rows())
    assert list(w) == ["e.weight"], "a tied table is one weight"
    assert_close(y, 2 * rows() @ w["e.weight"].T)


def test_mlps():
    up, down = layers.ColumnLinear("up", 8, 12, DTYPE, True), layers.RowLinear("down", 12, 8, DTYPE, True)
    y, w = run(layers.MLP(up, down, F.relu), rows())
    assert_close(y, torch.relu(rows() @ w["up.weight"].T + w["up.bias"]) @ w["down.weight"].T + w["down.bias"])
    y, w = run(layers.GatedMLP(layers.Linear("gate", 8, 12, DTYPE), up, down, F.silu), rows())
    inner = torch.nn.functional.silu(rows() @ w["gate.weight"].T) * (rows() @ w["up.weight"].T + w["up.bias"])
    assert_close(y, inner @ w["down.weight"].T + w["down.bias"])


def shard_dims(network):
    return {node.target: node.meta["shard_dim"] for node in network.graph.nodes if node.op == "get_attr"}


def test_sharded_linears_are_marked_and_the_marks_are_kept():
    def both(x):
        x = layers.ColumnLinear("up", 8, 12, DTYPE, bias=True)(x)
        x = layers.RowLinear("down", 12, 8, DTYPE, bias=True)(x)
        x = layers.ColumnLinear("turned", 8, 12, DTYPE, is_transposed=True)(x)
        return layers.Linear("plain", 12, 8, DTYPE)(x)

    marks = {"up.weight": 0, "up.bias": 0, "down.weight": 1, "down.bias": None, "turned.weight": 1}
    marks["plain.weight"] = None
    network = defined(both)
    assert shard_dims(network) == marks
    text = network_to_text(network)
    again = network_from_text(text, "test")
    assert shard_dims(again) == marks and network_to_text(again) == text


def moe_by_hand(x, w, top_k, is_normalized, names=("gate_proj", "up_proj", "down_proj")):
    """One token and one expert at a time, as Hugging Face does it: all probabilities, then the largest."""
    out = torch.zeros_like(x)
    for token, row in enumerate(x):
        probabilities = torch.softmax(w["m.gate.weight"] @ row, 0)
        chosen, experts = probabilities.topk(top_k)
        chosen = chosen / chosen.sum() if is_normalized else chosen
        for weight, expert in zip(chosen, experts.tolist(), strict=True):
            gate, up, down = (w[f"m.experts.{expert}.{name}.weight"] for name in names)
            out[token] += weight * (down @ (torch.nn.functional.silu(gate @ row) * (up @ row)))
    return out


@pytest.mark.parametrize("is_normalized", [False, True])
@pytest.mark.parametrize("num_experts, top_k", [(1, 1), (5, 1), (5, 2), (4, 4)])
@pytest.mark.parametrize("count", [0, 1, 37])
def test_moe(count, num_experts, top_k, is_normalized):
    layer = layers.MOE("m", 8, 12, num_experts, top_k, DTYPE, is_normalized)
    y, w = run(layer, rows(count))
    assert len(w) == 1 + 3 * num_experts
    assert_close(y, moe_by_hand(rows(count), w, top_k, is_normalized))


def test_moe_with_names_of_another_checkpoint():
    names = ("w1", "w3", "w2")
    y, w = run(layers.MOE("m", 8, 12, 3, 2, DTYPE, projections=names), rows())
    assert "m.experts.2.w3.weight" in w
    assert_close(y, moe_by_hand(rows(), w, 2, True, names))


def test_moe_routes_in_float32():
    network = defined(layers.MOE("m", 8, 12, 3, 2, "bfloat16"), dtype="bfloat16")
    assert "%softmax = softmax(%topk_0)  : float32[num_tokens, 2]" in str(network)
    assert network.outputs["y"].meta["spec"].dtype == torch.bfloat16


def test_decoder_inputs_are_declared_once_or_not_at_all():
    network = Network("decoder")
    with net_guard(network):
        inputs = layers.DecoderInputs.declare(2, 3, 16, "bfloat16")
        assert [str(cache.spec) for cache in inputs.kv_caches] == ["bfloat16[2, num_blocks, 3, block_size, 16]"] * 2
        assert str(inputs.step.block_table.spec) == "int32[num_seqs, max_blocks]"
        with pytest.raises(BuildError, match="'input_ids' of decoder is declared twice"):
            layers.DecoderInputs.declare(1, 3, 16, "bfloat16")
    assert len(network.inputs) == 8
    with net_guard(Network("again")) as again, pytest.raises(ShapeError, match=r"kv_cache\.0"):
        layers.DecoderInputs.declare(1, -1, 16, "bfloat16")
    assert not again.inputs, "half of the inputs would be in the way of the next try"


@pytest.mark.parametrize(
    "define, torch_define",
    [
        (lambda x: 2 * x - 1, lambda x: 2 * x - 1),
        (lambda x: 2 - x, lambda x: 2 - x),
        (lambda x: 2 / (x * x + 1), lambda x: 2 / (x * x + 1)),
        (lambda x: 1 + -x, lambda x: 1 - x),
        (lambda x: F.where(x < 0, x, 0.0), lambda x: x.clamp(max=0)),
        (lambda x: F.where(x >= 0.5, 1.0, x), lambda x: torch.where(x >= 0.5, 1.0, x)),
        (lambda x: F.where(x == 2.0 * x, 1.0, F.where(x != 0.0, x, 1.0)), lambda x: x),
        (lambda x: x.view((-1, 4, 2)).transpose(1, 2).view(-1, 8), lambda x: x.view(-1, 4, 2).mT.reshape(-1, 8)),
        (lambda x: x.view(-1, 4, 2).permute([0, 2, 1]).view(-1, 8), lambda x: x.view(-1, 4, 2).mT.reshape(-1, 8)),
        (lambda x: F.softmax(x), lambda x: x.softmax(-1)),
        (lambda x: F.matmul(x, F.transpose(x, 0, 1)), lambda x: x @ x.T),
        (F.swiglu, lambda x: x[:, :4] * torch.nn.functional.silu(x[:, 4:])),
        (lambda x: F.concat(list(reversed(F.split(x, [3, 5], 1))), 1), lambda x: torch.cat((x[:, 3:], x[:, :3]), 1)),
        (lambda x: F.gather(x, 1, F.argmax(x, keepdim=True)), lambda x: x.amax(1, keepdim=True)),
        (lambda x: F.gather(x, 1, F.topk(x, 3)[1]), lambda x: x.topk(3)[0]),
    ],
)
def test_operators_and_functions_compute_what_torch_does(define, torch_define):
    network = defined(define)
    again = network_from_text(network_to_text(network), "test")
    for same in (network, again):
        assert_close(same.run({"x": rows()})["y"], torch_define(rows()))


def test_ranges_print_bind_and_survive():
    network = Network("ranged")
    with net_guard(network):
        x = Tensor("x", DTYPE, ("num_tokens", 8), dim_range={"num_tokens": (2, 5)})
        y = Tensor("y", DTYPE, ("num_tokens", "width"))
        F.silu(x).mark_output("out")
        with pytest.raises(ShapeError, match=r"'z': expected num_tokens in \(2, 5\) as declared first, got \(1, 5\)"):
            Tensor("z", DTYPE, ("num_tokens",), dim_range={"num_tokens": (1, 5)})
    assert y.shape == ("num_tokens", "width")
    assert str(network).splitlines()[1] == "  size   num_tokens: 2..5"
    again = network_from_text(network_to_text(network), "test")
    assert again.ranges == network.ranges == {"num_tokens": (2, 5)} and str(again) == str(network)
    for same in (network, again):
        for count in (2, 5):
            assert same.run({"x": rows(count), "y": torch.zeros(count, 3)})["out"].shape == (count, 8)
        for count in (0, 1, 6):
            with pytest.raises(ShapeError, match=rf"Invalid tensor for x: expected num_tokens in 2\.\.5, got {count}"):
                same.run({"x": rows(count), "y": torch.zeros(count, 3)})
