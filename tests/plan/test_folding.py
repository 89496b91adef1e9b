"""Constants of a graph: joined weights, wherever their parts lie."""

import pytest
import torch

from quire.graph import functional as F
from quire.graph.network import Network, net_guard
from quire.graph.tensor import Tensor
from quire.plan.folding import Constants
from quire.plan.weight_source import TensorWeights


def joined(parts):
    """The value of a network's only concat, of parts [2, 3] by name, and its parts again."""
    made = Network("joined")
    with net_guard(made):
        x = Tensor("x", "float32", ("num_tokens", 3))
        weights = [made.add_weight(name, "float32", (2, 3)) for name in parts]
        F.linear(x, F.concat(weights, 0)).mark_output("y")
    (concat,) = [node for node in made.calls() if "concat" in node.name]
    return Constants(made, TensorWeights(parts)).value(concat)


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_parts_of_one_tensor_are_joined_in_any_order_and_stay_as_they_are(order):
    both = torch.arange(12.0).view(4, 3)
    halves = {"a": both[:2], "b": both[2:]}
    parts = {name: halves[name] for name in order}
    expected = torch.cat([half.clone() for half in parts.values()])
    assert torch.equal(joined(parts), expected)
    assert torch.equal(both, torch.arange(12.0).view(4, 3))


def test_what_lies_behind_the_first_part_is_not_overwritten():
    both, other = torch.arange(12.0).view(4, 3), torch.rand(2, 3)
    assert torch.equal(joined({"a": both[:2], "b": other}), torch.cat([both[:2].clone(), other]))
    assert torch.equal(both, torch.arange(12.0).view(4, 3))


def test_parts_apart_are_copied():
    parts = {"a": torch.rand(2, 3), "b": torch.rand(2, 3)}
    assert torch.equal(joined(parts), torch.cat(list(parts.values())))
