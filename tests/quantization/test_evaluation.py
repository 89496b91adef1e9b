"""The accuracy measure against sums done by hand, and the verdict's words."""

import math

import pytest
import torch

from quire.core.config import BuildConfig
from quire.core.errors import BuildError
from quire.graph import functional as F
from quire.graph.network import Network, Tensor, net_guard
from quire.plan.weight_source import TensorWeights
from quire.quantization.evaluation import Accuracy, check, evaluate, largest_kl
from quire.quantization.recipe import LinearRecipe, Recipe


def table_network():
    """A model whose logits are a row of a table, by token."""
    network = Network("table")
    with net_guard(network):
        ids = Tensor("input_ids", "int32", ("num_tokens",))
        F.cast(F.embedding(ids, network.add_weight("table", "float32", (3, 3))), "float32").mark_output("logits")
    return network


def weights(rows):
    return TensorWeights({"table": torch.tensor(rows).log()})


EXACT = [[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.25, 0.25, 0.5]]
OTHER = [[0.6, 0.3, 0.1], [0.3, 0.3, 0.4], [0.25, 0.25, 0.5]]
SAMPLES = [[0, 1, 2], [2, 0]]


def test_numbers_are_those_done_by_hand():
    found = evaluate((table_network(), weights(EXACT)), (table_network(), weights(OTHER)), SAMPLES)
    rows = [0, 1, 2]  # the tokens that have a successor: 0 -> 1, 1 -> 2, 2 -> 0
    kl = [sum(p * math.log(p / q) for p, q in zip(EXACT[i], OTHER[i], strict=True)) for i in rows]
    reverse = [sum(q * math.log(q / p) for p, q in zip(EXACT[i], OTHER[i], strict=True)) for i in rows]
    assert found.num_tokens == 3
    assert found.kl == pytest.approx(sum(kl) / 3, rel=1e-5)
    assert found.reverse_kl == pytest.approx(sum(reverse) / 3, rel=1e-5)
    assert found.kl_quantiles["1"] == pytest.approx(max(kl), rel=1e-5)
    assert found.top1_agreement == pytest.approx(2 / 3)
    assert found.exact_perplexity == pytest.approx((0.2 * 0.3 * 0.25) ** (-1 / 3), rel=1e-5)
    assert found.perplexity == pytest.approx((0.3 * 0.4 * 0.25) ** (-1 / 3), rel=1e-5)
    assert found.as_record()["perplexity_change"] == pytest.approx(found.perplexity / found.exact_perplexity - 1)


def test_a_network_agrees_with_itself():
    found = evaluate((table_network(), weights(EXACT)), (table_network(), weights(EXACT)), SAMPLES)
    assert found.kl == found.reverse_kl == 0 and found.top1_agreement == 1
    assert found.perplexity == found.exact_perplexity


def test_progress_reaches_its_end():
    told = []
    pair = (table_network(), weights(EXACT))
    evaluate(pair, pair, SAMPLES, lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] and [done for done, _ in told] == sorted({done for done, _ in told})


def accuracy(kl):
    return Accuracy(100, kl, kl, {"1": kl}, 0.9, 3.0, 2.0)


def test_refusal_gives_numbers_layers_and_what_to_do():
    recipe = Recipe(linears={"a": LinearRecipe("w8a8", error=0.01), "b": LinearRecipe("w8a8", error=0.5)})
    check(accuracy(0.02), recipe, 0.02)
    with pytest.raises(BuildError, match=r"at most 0.02 .* got 0.03 .*90.0%.* 2 before and 3 after.*b \(50.0%\), a"):
        check(accuracy(0.03), recipe, 0.02)
    with pytest.raises(BuildError, match="got nan"):
        check(accuracy(math.nan), recipe, 0.02)


@pytest.mark.parametrize(
    "settings, limit",
    [
        ({"quantization": "w8a8"}, 0.004),
        ({"quantization": "w4a16", "kv_cache_dtype": "int8"}, 0.1),
        ({"kv_cache_dtype": "fp8"}, 0.01),
        ({"quantization": "w4a16", "max_kl": 0.0}, 0.0),
    ],
)
def test_limit_follows_what_is_used(settings, limit):
    assert largest_kl(BuildConfig(**settings)) == limit
