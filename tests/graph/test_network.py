"""Network: definition, misuse, printing, legality, text, reference interpreter."""

import pytest
import torch

from quire.core.errors import BuildError, PlanError, ShapeError
from quire.graph import functional as F
from quire.graph.layers import GatedMLP, Linear, RmsNorm
from quire.graph.legality import DEFINED, OPTIMIZED, check_network
from quire.graph.network import Network, Tensor, current_network, net_guard
from quire.graph.text import network_from_text, network_to_text

PRINTED = """\
network demo
  input  x: float32[num_tokens, 8]
  %norm = rms_norm(x, norm.weight, eps=1e-05)  : float32[num_tokens, 8]
  %gate_proj = linear(%norm, gate_proj.weight)  : float32[num_tokens, 6]
  %silu = silu(%gate_proj)  : float32[num_tokens, 6]
  %up_proj = linear(%norm, up_proj.weight)  : float32[num_tokens, 6]
  %mul = mul(%silu, %up_proj)  : float32[num_tokens, 6]
  %down_proj = linear(%mul, down_proj.weight, down_proj.bias)  : float32[num_tokens, 8]
  %add = add(x, %down_proj)  : float32[num_tokens, 8]
  output y = %add"""


def demo() -> Network:
    network = Network("demo")
    with net_guard(network):
        x = Tensor("x", "float32", ("num_tokens", 8))
        mlp = GatedMLP(
            Linear("gate_proj", 8, 6, "float32"),
            Linear("up_proj", 8, 6, "float32"),
            Linear("down_proj", 6, 8, "float32", bias=True),
            F.silu,
        )
        (x + mlp(RmsNorm("norm", 8, 1e-5, "float32")(x))).mark_output("y")
    return network


def weights_of(network: Network) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(spec.shape, generator=generator) for name, spec in network.weights.items()}


def test_prints_as_a_reader_expects():
    assert str(demo()) == PRINTED


def test_runs_on_the_references():
    network = demo()
    w, x = weights_of(network), torch.randn(5, 8)
    h = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w["norm.weight"]
    inner = torch.nn.functional.silu(h @ w["gate_proj.weight"].T) * (h @ w["up_proj.weight"].T)
    expected = x + inner @ w["down_proj.weight"].T + w["down_proj.bias"]
    assert torch.allclose(network.run({"x": x}, w)["y"], expected, atol=1e-5)


def test_run_checks_what_it_is_given():
    network = demo()
    with pytest.raises(ShapeError, match="Missing input 'x'"):
        network.run({}, weights_of(network))
    with pytest.raises(ShapeError, match=r"Missing weight 'norm\.weight'"):
        network.run({"x": torch.zeros(5, 8)})
    with pytest.raises(ShapeError, match=r"Invalid tensor for x: expected float32\[num_tokens, 8\]"):
        network.run({"x": torch.zeros(5, 9)}, weights_of(network))


def test_text_round_trip_is_exact():
    network = demo()
    text = network_to_text(network)
    again = network_from_text(text, "test")
    assert str(again) == str(network) and network_to_text(again) == text
    assert again.inputs == network.inputs and again.weights == network.weights
    assert len(text.splitlines()) == 3 + sum(1 for _ in network.graph.nodes) + len(network.outputs) + 6


@pytest.mark.parametrize(
    "old, new",
    [
        ('"silu"', '"system"'),
        ('"rms_norm"', '"layer_norm"'),
        ('"%norm"', '"%nobody"'),
        ('"format": 1', '"format": 2'),
        ("[6, 8]", "[6, 9]"),
        ('"num_tokens", 8', '"num_tokens", 9'),
        ('"calls"', '"cells"'),
        ("{", ""),
    ],
)
def test_damaged_text_is_a_plan_error(old, new):
    text = network_to_text(demo())
    assert old in text
    damaged = text.replace(old, new, 1)
    with pytest.raises(PlanError, match="test"):
        network_from_text(damaged, "test")


def test_guard_restores_after_an_exception():
    outer = Network("outer")
    with net_guard(outer):
        with pytest.raises(ZeroDivisionError), net_guard(Network("inner")):
            raise ZeroDivisionError
        assert current_network() is outer
    with pytest.raises(BuildError, match="net_guard"):
        current_network()


def test_misuse_fails_at_its_line():
    network, other = Network("a"), Network("b")
    with net_guard(other):
        foreign = Tensor("x", "float32", (2, 8))
    with net_guard(network):
        x = Tensor("x", "float32", ("num_tokens", 8))
        with pytest.raises(BuildError, match="another network"):
            F.add(x, foreign)
        with pytest.raises(BuildError, match="another network"):
            network.mark_output(foreign, "y")
        with pytest.raises(BuildError, match="declared twice"):
            Tensor("x", "float32", (1,))
        with pytest.raises(BuildError, match="has no name"):
            network.add_weight("", "float32", (1,))
        with pytest.raises(ShapeError, match=r"linear: Invalid shape of weight"):
            F.linear(x, network.add_weight("w", "float32", (3, 9)))
        with pytest.raises(BuildError, match=r"expected float32\[3, 9\] as declared first"):
            network.add_weight("w", "float32", (3, 8))
        x.mark_output("y")
        with pytest.raises(BuildError, match="marked twice"):
            x.mark_output("y")


def test_legality():
    network = demo()
    check_network(network, OPTIMIZED)
    with net_guard(network):
        F.silu(Tensor("z", "float32", (3,)))
    check_network(network, DEFINED)
    with pytest.raises(BuildError, match="stage optimized, node %silu_1: expected a result that somebody uses"):
        check_network(network, OPTIMIZED)
    network = demo()
    network.calls()[0].meta["spec"] = network.calls()[1].meta["spec"]
    with pytest.raises(BuildError, match=r"node %norm: expected the result"):
        check_network(network, DEFINED)
    with pytest.raises(BuildError, match="has no output"):
        check_network(Network("empty"), DEFINED)


def test_only_inputs_are_mutated():
    network = Network("bad")
    with net_guard(network):
        key = Tensor("key", "float32", ("num_tokens", 1, 4))
        cache = network.add_weight("cache", "float32", (2, 3, 1, 5, 4))
        F.append_kv(key, key, cache, Tensor("slot_mapping", "int32", ("num_tokens",)))
        key.mark_output("y")
    with pytest.raises(BuildError, match="an input as kv_cache"):
        check_network(network, DEFINED)
