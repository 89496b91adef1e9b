"""Programs of compiled kernels inside a network: which calls they hold, and that nothing else changes.

A cast to the dtype that a tensor has already changes nothing, and the kernel `copy` does just that: it serves here as a
kernel whose right result is known.
"""

import random

import pytest
import torch

from quire.graph import functional as F
from quire.graph.network import Network, Tensor, net_guard
from quire.graph.nodes import is_call
from quire.ops.cpu import table
from quire.ops.native.library import library
from quire.ops.op import Kernel, Tactic
from quire.ops.registry import OPS
from quire.ops.spec import spec_of
from quire.plan.programs import Group, group
from quire.runner.execution.binding import Call
from quire.runner.execution.executor import Executor

pytestmark = pytest.mark.skipif(library() is None, reason="no compiled kernels")


class Weights:
    def __init__(self, **tensors):
        self.tensors = tensors

    def names(self):
        return self.tensors

    def spec(self, name):
        return spec_of(self.tensors[name])

    def read(self, name):
        return self.tensors[name].clone()


@pytest.fixture
def copies(monkeypatch):
    """Let the kernel `copy` serve casts."""
    copy = Tactic("cast", "copy", OPS["cast"].reference, kernel=Kernel("copy", ("x",)))
    monkeypatch.setattr(table, "TACTICS", (copy, *table.TACTICS))


def same(x):
    return F.cast(x, "float32")


def programs(executor):
    return [call for call in executor._calls if isinstance(call.result, tuple)]


def test_calls_in_a_row_are_one_program(copies):
    network = Network("chain")
    with net_guard(network):
        x = Tensor("x", "float32", ("num_tokens", 12))
        left, right = F.split(same(same(x)), [4, 8], 1)
        F.concat([same(F.view(F.slice(right, 1, 0, 4), [-1, 4])), left], 1).mark_output("y")
    executor = Executor(network, Weights())
    assert len(programs(executor)) == 1
    for rows in (3, 1, 50, 0):
        given = torch.randn(rows, 12)
        assert torch.equal(executor.run({"x": given})["y"], torch.cat([given[:, 4:8], given[:, :4]], 1))


def test_a_part_whose_rows_lie_apart_is_copied_before_it_takes_another_shape(copies):
    network = Network("apart")
    with net_guard(network):
        x = Tensor("x", "float32", ("num_tokens", 2, 8))
        part = F.slice(same(x), 2, 2, 6)
        same(F.view(part, [-1, 8])).mark_output("y")
    executor = Executor(network, Weights())
    assert len(programs(executor)) == 1
    for rows in (3, 1, 20):
        given = torch.randn(rows, 2, 8)
        assert torch.equal(executor.run({"x": given})["y"], given[:, :, 2:6].reshape(-1, 8))


def test_weights_are_constants_of_a_program(copies):
    network = Network("weights")
    with net_guard(network):
        x = Tensor("x", "float32", ("num_tokens", 3))
        same(F.add(same(x), same(same(x)))).mark_output("y")
        same(F.relu(x)).mark_output("z")
    executor = Executor(network, Weights())
    given = torch.randn(4, 3)
    out = executor.run({"x": given})
    assert torch.equal(out["y"], given + given)
    assert torch.equal(out["z"], given.relu())


@pytest.mark.parametrize("seed", range(40))
def test_random_networks_compute_what_they_compute_without_kernels(monkeypatch, seed):
    """Casts, views and calls of other kinds in any order; several outputs, values used inside, outside and twice."""
    rng = random.Random(seed)
    network = Network("random")
    with net_guard(network):
        values = [Tensor("x", "float32", ("num_tokens", 8)), Tensor("y", "float32", ("num_tokens", 8))]
        for _ in range(25):
            a, b = rng.choice(values), rng.choice(values)
            kind = rng.choice(["same", "same", "same", "add", "halves", "views", "rows"])
            if kind == "same":
                values.append(same(a))
            elif kind == "add":
                values.append(F.add(a, b))
            elif kind == "halves":
                left, right = F.split(a, 4, 1)
                values.append(F.concat([right, left], 1))
            elif kind == "views":
                halves = F.split(F.view(a, [-1, 2, 4]), 1, 1)
                values.append(F.concat([F.view(F.slice(same(halves[1]), 2, 0, 4), [-1, 4]), F.slice(b, 1, 0, 4)], 1))
            else:
                values.append(F.view(F.view(same(a), [-1, 4, 2]), [-1, 8]))
        for i, value in enumerate(rng.sample(values[2:], 4)):
            value.mark_output(f"out{i}")
    given = {"x": torch.randn(5, 8), "y": torch.randn(5, 8)}
    expected = Executor(network, Weights()).run(given)
    copy = Tactic("cast", "copy", OPS["cast"].reference, kernel=Kernel("copy", ("x",)))
    monkeypatch.setattr(table, "TACTICS", (copy, *table.TACTICS))
    executor = Executor(network, Weights())
    for _ in range(2):
        got = executor.run(given)
        assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_views_of_inputs_come_before_a_program():
    network = Network("views")
    with net_guard(network):
        x = Tensor("x", "float32", ("num_tokens", 8))
        first = same(x)
        second = same(F.slice(x, 1, 0, 8))
        F.add(first, second).mark_output("y")
    nodes = list(network.calls())
    grouped = group(nodes, {node for node in nodes if is_call(node, "cast")}, set())
    names = [len(each.nodes) if isinstance(each, Group) else each.target.name for each in grouped]
    assert names == ["slice", 2, "add"]


def test_a_call_forgets_what_nobody_reads_any_more(copies):
    network = Network("dead")
    with net_guard(network):
        x = Tensor("x", "float32", ("num_tokens", 8))
        F.div(same(same(F.div(same(x), 2.0))), 2.0).mark_output("y")
    executor = Executor(network, Weights())
    assert [len(call.dead) for call in executor._calls if isinstance(call, Call)] == [0, 1, 1, 1]
