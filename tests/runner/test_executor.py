"""The executor: same results as the reference interpreter, constants folded and packed once, memory streamed."""

import gc
import subprocess
import sys
import weakref

import pytest
import torch

from quire.builder.open import open_plan
from quire.core.config import BuildConfig
from quire.core.errors import PlanError
from quire.core.request import NewRow, ScheduledRow, SchedulerOutput
from quire.core.sampling_params import SamplingParams
from quire.graph import functional as F
from quire.graph.network import Network, Tensor, net_guard
from quire.ops.spec import dtype_of, spec_of
from quire.runner.execution.executor import Executor
from quire.runner.inputs import InputBuilder
from quire.runner.rows import Rows
from tests.support.dummy_models import FAMILIES, write_model
from tests.support.tolerance import assert_close


class Counting:
    """A weight source that counts how often each tensor is read."""

    def __init__(self, tensors):
        self.tensors, self.reads = tensors, []

    def names(self):
        return self.tensors

    def spec(self, name):
        return spec_of(self.tensors[name])

    def read(self, name):
        self.reads.append(name)
        return self.tensors[name].clone()


def step_inputs(plan, num_tokens=(5, 1, 17), block_size=16):
    """A step of three fresh rows, with KV caches."""
    rows, scheduled, new, block = Rows(len(num_tokens), -(-max(num_tokens) // block_size)), [], [], 1
    for i, count in enumerate(num_tokens):
        used = -(-count // block_size)
        ids = tuple((7 * i + k) % plan.spec.vocab_size for k in range(count))
        new.append(NewRow(i, ids, count, tuple(range(block, block + used)), SamplingParams(temperature=0)))
        scheduled.append(ScheduledRow(i, 0, count, (), True))
        block += used
    step = SchedulerOutput(tuple(scheduled), tuple(new))
    rows.apply(step)
    tensors = InputBuilder(block_size).build(scheduled, rows.of(step.rows), rows.tables).tensors
    spec = plan.spec
    shape = (2, block, spec.num_kv_heads, block_size, spec.head_dim)
    caches = {f"kv_cache.{i}": torch.zeros(shape, dtype=dtype_of(spec.dtype)) for i in range(spec.num_layers)}
    return {**tensors, **caches}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_executor_equals_interpreter(tmp_path, family, dtype):
    plan = open_plan(write_model(tmp_path, FAMILIES[family]), BuildConfig(load_format="dummy", dtype=dtype))
    weights = {name: plan.weights.read(name) for name in plan.network.weights}
    inputs, again = step_inputs(plan), step_inputs(plan)
    expected = plan.network.run(inputs, weights)["logits"]
    got = Executor(plan.network, plan.weights).run(again)["logits"]
    assert_close(got, expected)
    assert_close(again["kv_cache.0"], inputs["kv_cache.0"])


def test_constants_are_read_once_and_folded():
    network = Network("folds")
    with net_guard(network):
        x = Tensor("x", "float32", ("num_tokens", 4))
        w = network.add_weight("w", "float32", (4, 6))
        joined = F.concat([w.permute(1, 0), w.permute(1, 0)], 0)
        y = F.linear(x, joined)
        F.add(F.linear(x, joined), F.mul(y, 2.0)).mark_output("y")
        F.slice(joined, 0, 0, 2).mark_output("constant")
    source = Counting({"w": torch.randn(4, 6)})
    executor = Executor(network, source)
    assert source.reads == ["w"]
    x = torch.randn(3, 4)
    out = executor.run({"x": x})
    w = source.tensors["w"]
    assert_close(out["y"], 3 * torch.cat((x @ w, x @ w), 1))
    assert torch.equal(out["constant"], w.T[:2])
    assert torch.equal(executor.run({"x": x})["y"], out["y"])


def test_weights_are_gone_with_their_executor(tmp_path):
    """At once, on which `sleep` relies: not when the collector finds a cycle."""
    plan = open_plan(write_model(tmp_path / "m", FAMILIES["llama"]), BuildConfig(load_format="dummy"))
    gc.collect()
    gc.disable()
    try:
        executor = Executor(plan.network, plan.weights)
        held = [weakref.ref(each) for each in executor._constants if isinstance(each, torch.Tensor)]
        assert held
        del executor
        assert all(each() is None for each in held)
    finally:
        gc.enable()


def test_wrong_weight_is_a_plan_error():
    network = Network("wrong")
    with net_guard(network):
        F.linear(Tensor("x", "float32", ("n", 4)), network.add_weight("w", "float32", (6, 4))).mark_output("y")
    with pytest.raises(PlanError, match=r"weight 'w': expected float32\[6, 4\], got float32\[6, 5\]"):
        Executor(network, Counting({"w": torch.zeros(6, 5)}))


_PEAK = """
import sys
from math import prod
from quire.plan.plan import Plan
from quire.runner.execution.executor import Executor

def status(key):  # unlike getrusage's peak, this one starts anew with the process
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

plan = Plan.load(sys.argv[1])
before = status("VmRSS")
executor = Executor(plan.network, plan.weights)
print((status("VmHWM") - before) / sum(s.dtype.itemsize * prod(s.shape) for s in plan.network.weights.values()))
"""


def test_peak_memory_of_loading_is_at_most_a_fifth_above_the_weights(tmp_path):
    sizes = {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16, "num_key_value_heads": 8}
    big = {**FAMILIES["llama"], **sizes, "num_hidden_layers": 6, "head_dim": 64, "tie_word_embeddings": False}
    open_plan(write_model(tmp_path / "m", big), BuildConfig(load_format="dummy", dtype="bfloat16")).save(tmp_path / "e")
    ratio = float(
        subprocess.run([sys.executable, "-c", _PEAK, str(tmp_path / "e")], check=True, capture_output=True).stdout
    )
    assert 0.9 < ratio < 1.2, ratio
