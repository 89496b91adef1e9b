"""Quantized plans over ranks: built here, and taken over from checkpoints of every format.

A layer that rounds its input, and sums over ranks, rounds by the scale of the rank's own channels. That is no less
exact than one scale for all of them, but not the same, so such plans are held against the numbers they stand for.
"""

import pytest
import torch

from quire.builder.build import open_plan
from quire.core.config import BuildConfig
from quire.core.mapping import Mapping
from quire.graph.nodes import is_call
from quire.plan.plan import Plan
from quire.sharding.shard import shard
from tests.sharding.test_families import check, tokens
from tests.support.quantized_checkpoints import FORMATS, write_quantized
from tests.support.sharded_run import run, run_sharded, steps_of

ROUNDING = {name for name, form in FORMATS.items() if form.rounds_to is not None}
QUICK = ("awq", "gptq-act", "compressed-w8a8", "fp8-block", "compressed-w4a16-channel")
SETTINGS = {"dtype": "float32", "num_calibration_samples": 8, "calibration_length": 64, "max_kl": 10.0}


def steps_below(vocab_size, decode=2):
    return steps_of([[[token % vocab_size for token in row] for row in rows] for rows in tokens(decode=decode)])


def check_format(name, directory):
    write_quantized(directory, FORMATS[name])
    plan, steps = open_plan(directory, BuildConfig(dtype="float32")), steps_below(61)
    check(plan, (1, 2), steps=steps)
    for layout in ((2, 1), (4, 1)):
        if name in ROUNDING:
            assert [len(logits) for logits in run_sharded(plan, *layout, steps)] == [13, 2, 2, 4]
        else:
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


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["w8a8", "fp8"])
def test_rounded_inputs(quantization, tmp_path):
    """Over any number of ranks logits are as far from the exact ones as on one, and pipeline stages change no bit."""
    open_plan("quire-tiny", BuildConfig(quantization=quantization, **SETTINGS)).save(tmp_path)
    plan, steps = Plan.load(tmp_path), steps_below(4096, decode=8)
    exact = torch.cat(run(open_plan("quire-tiny", BuildConfig(dtype="float32")), steps, by_reference=True))
    alone = torch.cat(run(plan, steps, by_reference=True))
    assert torch.equal(torch.cat(run_sharded(plan, 1, 3, steps, by_reference=True)), alone)
    for tp_size in (2, 4, 8):
        got = torch.cat(run_sharded(plan, tp_size, 1, steps, by_reference=True))
        assert (got - exact).square().mean() <= 1.2 * (alone - exact).square().mean()
