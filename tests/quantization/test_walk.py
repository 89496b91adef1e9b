"""The walk computes what the reference interpreter defines, sample by sample, and reads each weight once."""

import pytest
import torch

from quire.builder.open import open_plan
from quire.core.config import BuildConfig
from quire.graph.nodes import op_of
from quire.quantization.walk import batches, walk
from tests.support.dummy_models import FAMILIES, write_model
from tests.support.tolerance import assert_close


class CountingWeights:
    """Counts what is read of another source."""

    def __init__(self, source):
        self._source = source
        self.reads = {}

    def names(self):
        return self._source.names()

    def spec(self, name):
        return self._source.spec(name)

    def read(self, name):
        self.reads[name] = self.reads.get(name, 0) + 1
        return self._source.read(name)


def reference(plan, sample):
    """Logits of one sample by the reference interpreter."""
    length, blocks = len(sample), -(-len(sample) // 16)
    shape = [{"num_blocks": blocks + 1, "block_size": 16}.get(size, size) for size in plan.kv_cache.shape]
    inputs = {
        "input_ids": torch.tensor(sample),
        "positions": torch.arange(length),
        "slot_mapping": torch.arange(length) + 16,
        "block_table": torch.arange(blocks)[None] + 1,
        "seq_lens": torch.tensor([length]),
        "query_start_loc": torch.tensor([0, length]),
        "logits_indices": torch.arange(length),
    }
    caches = {name: torch.zeros(shape) for name in plan.network.inputs if name.startswith("kv_cache.")}
    weights = {name: plan.weights.read(name) for name in plan.network.weights}
    return plan.network.run({name: value.int() for name, value in inputs.items()} | caches, weights)["logits"]


@pytest.mark.parametrize("family", FAMILIES)
def test_walk_is_the_reference(tmp_path, family, monkeypatch):
    monkeypatch.setattr("quire.quantization.walk._BATCH_TOKENS", 40)
    plan = open_plan(write_model(tmp_path, FAMILIES[family]), BuildConfig(load_format="dummy", dtype="float32"))
    generator = torch.Generator().manual_seed(3)
    samples = [torch.randint(0, 211, (n,), generator=generator).tolist() for n in (17, 5, 33, 16)]
    assert list(map(len, batches(samples))) == [2, 1, 1]
    weights = CountingWeights(plan.weights)
    last = None
    for visit in walk(plan.network, weights, samples):
        assert len(visit.arguments) == 3
        last = visit
    assert last.node is plan.network.outputs["logits"] and last.index == last.total - 1
    logits = torch.cat([op_of(last.node)(**given) for given in last.arguments])
    assert_close(logits, torch.cat([reference(plan, sample) for sample in samples]))
    assert set(weights.reads.values()) == {1} and set(weights.reads) == set(plan.network.weights)
