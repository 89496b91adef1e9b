"""Dummy weights: a tensor's values follow from the seed, its name and its shape, and from nothing else."""

from __future__ import annotations

import pytest
import torch

from quire.core.errors import PlanError
from quire.ops.spec import TensorSpec
from quire.weights.dummy import DummyWeights

SPECS = {
    "layers.0.up.weight": TensorSpec((1500, 1001), torch.bfloat16),
    "layers.1.up.weight": TensorSpec((1500, 1001), torch.bfloat16),
    "layers.0.up.bias": TensorSpec((4000,), torch.float32),
    "norm.weight": TensorSpec((96,), torch.float16),
}


def test_order_and_company_do_not_matter() -> None:
    forward, alone = DummyWeights(SPECS, 3), DummyWeights({"layers.1.up.weight": SPECS["layers.1.up.weight"]}, 3)
    values = {name: forward.read(name) for name in reversed(SPECS)}
    assert torch.equal(alone.read("layers.1.up.weight"), values["layers.1.up.weight"])
    assert torch.equal(forward.read("layers.0.up.weight"), values["layers.0.up.weight"])


def test_name_seed_and_shape_matter() -> None:
    values = [
        DummyWeights({name: TensorSpec(shape, torch.float32)}, seed).read(name).flatten()[:50]
        for name, shape, seed in [("a", (10, 6), 0), ("b", (10, 6), 0), ("a", (6, 10), 0), ("a", (10, 6), 1)]
    ]
    assert all(not torch.equal(x, y) for i, x in enumerate(values) for y in values[:i])


def test_dtype_only_rounds() -> None:
    wide = DummyWeights({"a": TensorSpec((1200, 1000), torch.float32)}, 0).read("a")
    assert torch.equal(DummyWeights({"a": TensorSpec((1200, 1000), torch.bfloat16)}, 0).read("a"), wide.bfloat16())


def test_distributions() -> None:
    source = DummyWeights(SPECS, 0)
    matrix = source.read("layers.0.up.weight").float()
    assert abs(float(matrix.std()) - 0.02) < 1e-4 and abs(float(matrix.mean())) < 1e-4
    assert 0 < float(source.read("layers.0.up.bias").abs().max()) < 0.02
    assert torch.equal(source.read("norm.weight"), torch.ones(96, dtype=torch.float16))
    for name, spec in SPECS.items():
        assert source.spec(name) == spec
        assert TensorSpec(tuple(source.read(name).shape), source.read(name).dtype) == spec


def test_unknown_name() -> None:
    with pytest.raises(PlanError, match="'other'"):
        DummyWeights(SPECS, 0).read("other")


def test_integers_are_random_bits() -> None:
    specs = {"packed": TensorSpec((60, 70), torch.int32), "values": TensorSpec((60, 70), torch.int8)}
    packed, values = (DummyWeights(specs, 0).read(name) for name in specs)
    assert TensorSpec(tuple(packed.shape), packed.dtype) == specs["packed"]
    nibbles = torch.stack([packed >> 4 * i & 15 for i in range(8)])
    assert all(0.04 < float((nibbles == value).float().mean()) < 0.09 for value in range(16))
    assert int(values.min()) < -120 and int(values.max()) > 120
    assert torch.equal(DummyWeights(specs, 0).read("packed"), packed)
