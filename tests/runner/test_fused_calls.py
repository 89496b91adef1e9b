"""Two calls that a GPU runs as one: which are, what becomes of what was between them; interpreted without a GPU."""

import pytest
import torch

from quire.graph import functional as F
from quire.graph.network import Network, Tensor, net_guard
from quire.ops.cuda import table
from quire.ops.op import Fusion
from quire.ops.triton.elementwise import silu_mul
from quire.ops.triton.linear import linear
from quire.plan.weight_source import TensorWeights
from quire.runner.execution.executor import Executor
from tests.support.tolerance import assert_close

pytestmark = pytest.mark.usefixtures("gpu")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def linear_silu_mul(x, weight, bias=None):
    return silu_mul(linear(x, weight, bias))


@pytest.fixture(autouse=True)
def _fusion(monkeypatch):
    fusion = Fusion(("linear", "triton"), ("silu_mul", "triton"), "x", linear_silu_mul)
    monkeypatch.setattr(table, "FUSIONS", (fusion,))


def _network(is_used_twice=False, is_output=False):
    network = Network("gated")
    with net_guard(network):
        weight = network.add_weight("w", "bfloat16", (64, 32))
        gates = F.linear(Tensor("x", "bfloat16", ("num_tokens", 32)), weight)
        gated = F.silu_mul(gates)
        if is_used_twice:
            gated = F.add(gated, F.slice(gates, 1, 0, 32))
        gated.mark_output("y")
        if is_output:
            gates.mark_output("gates")
    return network


@pytest.mark.parametrize("options", [{}, {"is_used_twice": True}, {"is_output": True}], ids=str)
@pytest.mark.parametrize("num_rows", [3, 70])
def test_calls_are_one_where_nobody_else_uses_the_first(options, num_rows):
    network, generator = _network(**options), torch.Generator().manual_seed(1)
    x, weight = (torch.randn(n, 32, generator=generator).bfloat16() for n in (num_rows, 64))
    executor = Executor(network, TensorWeights({"w": weight}), "cuda")
    got = executor.run({"x": x.to(DEVICE)})
    for name, expected in network.run({"x": x}, {"w": weight}).items():
        assert_close(got[name].cpu(), expected)
    assert (linear_silu_mul in [call.run for call in executor._calls]) == (not options)


def test_what_only_they_use_is_forgotten_after_them():
    network = Network("chain")
    with net_guard(network):
        x = F.silu(Tensor("x", "bfloat16", ("num_tokens", 32)))
        F.silu_mul(F.linear(x, network.add_weight("w", "bfloat16", (64, 32)))).mark_output("y")
    executor = Executor(network, TensorWeights({"w": torch.randn(64, 32).bfloat16()}), "cuda")
    first, fused = executor._calls
    assert fused.dead == (first.result,)
