"""Quantized plans over ranks: built here, and taken over from checkpoints of every format.

A layer that rounds its input gets it from all ranks before, so such plans have the bits of one rank.
"""

import pytest
import torch

from quire.builder.open import open_plan
from quire.core.config import BuildConfig
from quire.core.mapping import Mapping
from quire.graph.nodes import is_call
from quire.plan.plan import Plan
from quire.sharding.shard import shard
from tests.sharding.test_families import check, tokens
from tests.support.dummy_models import LLAMA, write_model
from tests.support.quantized_checkpoints import FORMATS, write_quantized
from tests.support.sharded_run import run, run_sharded, steps_of

ROUNDING = {name for name, form in FORMATS.items() if form.rounds_to is not None}
QUICK = ("awq", "gptq-act", "compressed-w8a8", "fp8-block", "compressed-w4a16-channel")
SETTINGS = {"dtype": "float32", "num_calibration_samples": 8, "calibration_length": 64, "max_kl": 10.0}


def steps_below(vocab_size, decode=2):
    return steps_of([[[token % vocab_size for token in row] for row in rows] for rows in tokens(decode=decode)])


def check_bits(plan, layout, steps):
    for a, b in zip(run_sharded(plan, *layout, steps), run(plan, steps), strict=True):
        assert torch.equal(a, b)


def check_format(name, directory):
    write_quantized(directory, FORMATS[name])
    plan, steps = open_plan(directory, BuildConfig(dtype="float32")), steps_below(61)
    check(plan, (1, 2), steps=steps)
    for layout in ((2, 1), (4, 1)):
        if name in ROUNDING:
            check_bits(plan, layout, steps)
        check(plan, layout, steps=steps)
    plan.save(directory / "engine")
    saved = Plan.load(directory / "engine")
    for a, b in zip(run_sharded(saved, 2, 1, steps), run_sharded(plan, 2, 1, steps), strict=True):
        assert torch.equal(a, b), "parts that are read are parts of what is folded"


@pytest.mark.parametrize("name", QUICK)
def test_formats(name, tmp_path):
    check_format(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(FORMATS) - set(QUICK)))
def test_other_formats(name, tmp_path):
    check_format(name, tmp_path)


def test_channels_in_another_order_are_gathered_and_put_in_order(tmp_path):
    write_quantized(tmp_path, FORMATS["gptq-act"])
    part = shard(open_plan(tmp_path, BuildConfig(dtype="float32")), Mapping(2, 1, tp_size=2))
    orders = [node for node in part.network.calls() if is_call(node, "index_select") and node.kwargs["dim"] == -1]
    inner = [node for node in orders if is_call(node.kwargs["x"], "all_gather")]
    assert len(inner) == 2 * 2, "before o_proj and down_proj of each layer"
    # Whole groups of 16 channels: 16 of 32, and of 48 the last 16.
    assert [node.meta["spec"].shape[1] for node in inner] == [16, 16] * 2
    assert part.spec.num_kv_heads == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("quantization", "kv_cache_dtype"), [("w8a16", "auto"), ("w4a16", "int8"), (None, "fp8"), (None, "int8")]
)
def test_weights_and_cache(quantization, kv_cache_dtype, tmp_path):
    config = BuildConfig(quantization=quantization, kv_cache_dtype=kv_cache_dtype, group_size=64, **SETTINGS)
    open_plan("quire-tiny", config).save(tmp_path)
    plan, steps = Plan.load(tmp_path), steps_below(4096)
    for layout in ((2, 1), (8, 1), (1, 3), (2, 2)):
        check(plan, layout, steps=steps)
    check(plan, (2, 1), steps=steps, by_reference=True)


@pytest.mark.parametrize("quantization", ["w8a8", "fp8"])
def test_rounded_inputs_that_do_not_divide(quantization, tmp_path):
    """Of 250 channels each of 4 ranks has 63, the last one two that its neighbour has, too."""
    wide = {**LLAMA, "hidden_size": 128, "intermediate_size": 250, "num_attention_heads": 4, "head_dim": 32}
    settings = {**SETTINGS, "load_format": "dummy", "dtype": "bfloat16", "quantization": quantization}
    plan = open_plan(write_model(tmp_path / "wide", wide), BuildConfig(**settings))
    part = shard(plan, Mapping(4, 3, tp_size=4))
    inner = [node for node in part.network.calls() if is_call(node, "silu_mul")]
    assert [node.meta["spec"].shape[-1] for node in inner] == [63] * plan.spec.num_layers
    sums = [node.kwargs["x"].name for node in part.network.calls() if is_call(node, "all_reduce")]
    assert sums == [next(node.name for node in part.network.calls() if is_call(node, "sharded_embedding"))]
    check_bits(plan, (4, 1), steps_below(211))


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["w8a8", "fp8"])
def test_rounded_inputs(quantization, tmp_path):
    open_plan("quire-tiny", BuildConfig(quantization=quantization, **SETTINGS)).save(tmp_path)
    plan, steps = Plan.load(tmp_path), steps_below(4096, decode=8)
    for layout in ((2, 1), (4, 1), (8, 1), (1, 3), (2, 2)):
        check_bits(plan, layout, steps)
    check(plan, (4, 1), steps=steps, by_reference=True)


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["w8a8", "fp8"])
def test_rounded_inputs_by_scales_of_each_rank(quantization, tmp_path):
    """They are as far from the exact ones as on one rank, and exchanged in one sum a layer."""
    open_plan("quire-tiny", BuildConfig(quantization=quantization, **SETTINGS)).save(tmp_path)
    plan, steps = Plan.load(tmp_path), steps_below(4096, decode=8)
    exact = torch.cat(run(open_plan("quire-tiny", BuildConfig(dtype="float32")), steps, by_reference=True))
    alone = torch.cat(run(plan, steps, by_reference=True))
    for tp_size in (2, 4, 8):
        got = torch.cat(run_sharded(plan, tp_size, 1, steps, by_reference=True, deterministic=False))
        assert (got - exact).square().mean() <= 1.2 * (alone - exact).square().mean()
    calls = shard(plan, Mapping(2, 0, tp_size=2), deterministic=False).network.calls()
    assert sum(is_call(node, "all_gather") for node in calls) == 1, "of the logits"
    assert sum(is_call(node, "all_reduce") for node in calls) == 1 + 2 * plan.spec.num_layers
