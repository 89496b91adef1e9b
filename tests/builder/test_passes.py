"""The passes: the network before and after as text, match counts, equal results."""

import pytest
import torch

from quire.builder.open import open_plan
from quire.builder.passes.drop_dead import drop_dead
from quire.builder.passes.gather_last_token import gather_last_token
from quire.builder.passes.quantize_linear import quantize_linear
from quire.builder.pipeline import bind
from quire.core.config import BuildConfig
from quire.graph import functional as F
from quire.graph.layers import Linear, RmsNorm
from quire.graph.legality import OPTIMIZED, check_network
from quire.graph.network import Network, Tensor, net_guard
from quire.quantization.recipe import LinearRecipe, Recipe
from tests.support.dummy_models import FAMILIES, write_model


def head() -> Network:
    network = Network("head")
    with net_guard(network):
        x = Tensor("x", "float32", ("num_tokens", 4))
        hidden = F.add(x, x)
        Linear("lm_head", 4, 6, "float32")(RmsNorm("norm", 4, 1e-5, "float32")(hidden)).mark_output("logits")
    return network


AFTER = """\
network head
  input  x: float32[num_tokens, 4]
  input  logits_indices: int32[num_logits]
  %logits_rows = index_select(x, logits_indices)  : float32[num_logits, 4]
  %add = add(%logits_rows, %logits_rows)  : float32[num_logits, 4]
  %norm = rms_norm(%add, norm.weight, eps=1e-05)  : float32[num_logits, 4]
  %lm_head = linear(%norm, lm_head.weight)  : float32[num_logits, 6]
  output logits = %lm_head"""


def test_gather_last_token():
    network = head()
    weights = {name: torch.randn(spec.shape) for name, spec in network.weights.items()}
    x, rows = torch.randn(5, 4), torch.tensor([4, 1], dtype=torch.int32)
    before = network.run({"x": x}, weights)["logits"]
    assert gather_last_token(network).done == ["logits_rows"]
    assert str(network) == AFTER
    check_network(network, OPTIMIZED)
    after = network.run({"x": x, "logits_indices": rows}, weights)["logits"]
    assert torch.allclose(after, before[[4, 1]], atol=1e-6)
    assert gather_last_token(network).count == 0, "a second run finds nothing"


@pytest.mark.parametrize("scheme", ["w8a16", "w8a8", "w4a16"])
def test_gather_goes_through_quantized_layers(scheme):
    network = head()
    quantize_linear(network, Recipe({"lm_head": LinearRecipe(scheme, 2)}))
    weights = {name: torch.randn(spec.shape) for name, spec in network.weights.items()}
    x, rows = torch.randn(5, 4), torch.tensor([4, 1], dtype=torch.int32)
    before = network.run({"x": x}, weights)["logits"]
    matches = gather_last_token(network)
    assert matches.done == ["logits_rows"], "rounding, too, is done for those rows alone"
    check_network(network, OPTIMIZED)
    after = network.run({"x": x, "logits_indices": rows}, weights)["logits"]
    assert after.shape == (2, 6) and torch.allclose(after, before[[4, 1]], atol=1e-6)


def test_gather_comes_last_where_logits_are_not_rowwise():
    network = Network("table")
    with net_guard(network):
        ids = Tensor("ids", "int32", ("num_tokens",))
        F.embedding(ids, network.add_weight("table", "float32", (7, 4))).mark_output("logits")
    ids, rows = torch.arange(5, dtype=torch.int32), torch.tensor([3, 0, 3], dtype=torch.int32)
    weights = {"table": torch.randn(7, 4)}
    before = network.run({"ids": ids}, weights)["logits"]
    matches = gather_last_token(network)
    assert matches.done == ["logits_rows"] and list(matches.missed) == ["table_rows"]
    check_network(network, OPTIMIZED)
    assert torch.equal(network.run({"ids": ids, "logits_indices": rows}, weights)["logits"], before[[3, 0, 3]])


def test_gather_needs_logits_over_tokens():
    network = Network("other")
    with net_guard(network):
        F.silu(Tensor("x", "float32", ("num_tokens", 4))).mark_output("hidden")
    assert gather_last_token(network).count == 0


def test_drop_dead_keeps_what_mutates():
    network = Network("dead")
    with net_guard(network):
        key = Tensor("key", "float32", ("num_tokens", 1, 4))
        cache = Tensor("kv_cache.0", "float32", (2, "num_blocks", 1, "block_size", 4))
        unused = F.linear(F.view(key, (-1, 4)), network.add_weight("w", "float32", (3, 4)))
        F.silu(unused)
        F.append_kv(key, key, cache, Tensor("slot_mapping", "int32", ("num_tokens",)))
        F.relu(key).mark_output("y")
    assert drop_dead(network).count == 4
    assert [node.target.name for node in network.calls()] == ["append_kv", "relu"]
    assert not network.weights


def test_plans_of_all_families_are_legal_and_hold_no_weight_data(tmp_path):
    for name, config in FAMILIES.items():
        plan = open_plan(write_model(tmp_path / name, config), BuildConfig(load_format="dummy"))
        check_network(plan.network, OPTIMIZED)
        assert plan.network.inputs["logits_indices"].shape == ("num_logits",)
        assert list(plan.network.outputs) == ["logits", "hidden_states"]
        again = bind(plan.network, BuildConfig(), lambda network, plan=plan: plan.weights, pytest.fail)
        assert all(not p["matches"] for p in again.passes)
