"""The memory plan against what is held in fact: weights, KV cache and the worst steps, in many configurations."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from quire.builder.open import open_plan
from quire.core.config import BuildConfig, EngineConfig
from quire.engine import capacity
from quire.engine.resolve import resolve
from quire.ops.cpu import table
from quire.ops.linear import has_instructions
from quire.ops.native.library import library
from quire.plan import liveness
from quire.sampling import compiled
from tests.support.dummy_models import FAMILIES, write_model
from tests.support.memory_run import measure

TOLERANCE = 0.03
PYTHON_BYTES = 1 << 18  # of Python's own objects in a step: nothing beside a real model

# Models in which different terms are the largest. GPT-2's words for the same sizes are mapped below.
SHAPES = {
    "attention": {"hidden": 256, "inner": 512, "heads": (8, 2, 32), "vocab_size": 1000, "length": 1024},
    "heads": {"hidden": 192, "inner": 256, "heads": (6, 6, 32), "vocab_size": 500, "length": 512},
    "mlp": {"hidden": 256, "inner": 4096, "heads": (4, 1, 16), "vocab_size": 2000, "length": 256},
    "vocabulary": {"hidden": 128, "inner": 256, "heads": (2, 1, 64), "vocab_size": 40000, "length": 128},
}
# The words of each family for these sizes. GPT-2 and OPT have as many KV heads as heads.
NAMES = {
    "gpt2": {"hidden": ("n_embd",), "inner": ("n_inner",), "heads": ("n_head",), "length": ("n_positions",)},
    "opt": {
        "hidden": ("hidden_size", "word_embed_proj_dim"),
        "inner": ("ffn_dim",),
        "heads": ("num_attention_heads",),
        "length": ("max_position_embeddings",),
    },
}
LLAMA_NAMES = {
    "hidden": ("hidden_size",),
    "inner": ("intermediate_size",),
    "heads": ("num_attention_heads", "num_key_value_heads", "head_dim"),
    "length": ("max_position_embeddings",),
}


@dataclass(frozen=True)
class Case:
    """A configuration."""

    family: str
    shape: str
    dtype: str = "bfloat16"
    tokens: int = 256
    seqs: int = 16
    block_size: int = 16
    kv: str = "auto"
    scheme: str | None = None
    without: tuple[str, ...] = ()
    tied: bool = False
    blocks: int = 200

    def __str__(self) -> str:
        parts = (self.family, self.shape, self.dtype, self.tokens, self.seqs, self.block_size, self.kv, self.scheme)
        return "-".join(map(str, (*parts, *self.without)))


CASES = [
    Case("llama", "attention"),
    Case("llama", "attention", "float32", tokens=300, seqs=4),
    Case("llama", "attention", "float16", tokens=512, seqs=32, block_size=32),
    Case("llama", "attention", tokens=700, seqs=8),
    Case("llama", "attention", tokens=64, seqs=64, block_size=8),
    Case("llama", "attention", tokens=33, seqs=3, blocks=1000),
    Case("llama", "attention", kv="int8"),
    Case("llama", "attention", "float32", kv="fp8", block_size=64),
    Case("llama", "attention", kv="int8", scheme="w8a8"),
    Case("llama", "heads"),
    Case("llama", "heads", "float32", tokens=600, seqs=2),
    Case("llama", "mlp"),
    Case("llama", "mlp", "float32", tokens=500),
    Case("llama", "mlp", "float16", tokens=200),
    Case("llama", "mlp", tokens=1100, seqs=50),
    Case("llama", "mlp", scheme="w8a8"),
    Case("llama", "mlp", scheme="w8a8", tokens=600),
    Case("llama", "mlp", "float32", scheme="w8a8", tokens=100),
    Case("llama", "mlp", scheme="w8a16"),
    Case("llama", "mlp", "float16", scheme="w8a16"),
    Case("llama", "mlp", scheme="fp8"),
    Case("llama", "mlp", scheme="w4a16", tokens=550),
    Case("llama", "mlp", without=("fuse_qkv", "fuse_gate_up", "fuse_silu_mul", "fuse_add_rms_norm")),
    Case("llama", "attention", without=("fuse_rope_kv_write",)),
    Case("llama", "vocabulary", tied=True),
    Case("llama", "vocabulary", "float32", seqs=100),
    Case("llama", "vocabulary", tokens=64, seqs=2),
    Case("llama", "vocabulary", tokens=150, without=("gather_last_token",)),
    Case("mistral", "attention", tokens=400, seqs=32),
    Case("mistral", "mlp", "float32", seqs=1),
    Case("gpt2", "heads", "float32"),
    Case("gpt2", "mlp", tokens=520),
    Case("gpt2", "vocabulary", "float16"),
    Case("opt", "heads"),
    Case("opt", "mlp", "float32", tokens=250, seqs=20),
    Case("opt", "mlp", scheme="w8a8"),
]


def plan_of(case: Case, directory):
    shape = SHAPES[case.shape]
    sizes = {"vocab_size": shape["vocab_size"], "tie_word_embeddings": case.tied}
    for size, names in NAMES.get(case.family, LLAMA_NAMES).items():
        values = shape[size] if isinstance(shape[size], tuple) else (shape[size],) * len(names)
        sizes |= dict(zip(names, values, strict=False))
    if case.family == "mistral":
        sizes["sliding_window"] = shape["length"] // 3
    build = BuildConfig(
        dtype=case.dtype, load_format="dummy", quantization=case.scheme, kv_cache_dtype=case.kv, group_size=64,
        without_passes=case.without, num_calibration_samples=1, calibration_length=4, max_kl=1e9, smooth=False,
    )  # fmt: skip
    return open_plan(write_model(directory, {**FAMILIES[case.family], **sizes}), build)


def resolved(case: Case, plan):
    config = EngineConfig(
        max_num_batched_tokens=case.tokens,
        max_num_seqs=case.seqs,
        block_size=case.block_size,
        kv_cache_memory_bytes=case.blocks * case.block_size * plan.kv_bytes_per_token,
        max_model_len=SHAPES[case.shape]["length"],
    )
    return resolve(config, plan)


def beside(planned, found):
    """Return how far the plan is from what was measured: of all, and of the step alone."""
    total = planned.needs.weights + planned.needs.step + planned.kv_bytes
    return total / (found.weights + found.step + found.kv) - 1, planned.needs.step / found.step - 1


@pytest.mark.parametrize("case", CASES, ids=str)
def test_planned_is_measured(case, tmp_path):
    plan = plan_of(case, tmp_path)
    config, planned = resolved(case, plan)
    found = measure(plan, config)
    of_all, of_step = beside(planned, found)
    said = f"planned {planned}, measured {found}: {of_all:+.2%} of all, {of_step:+.2%} of the step"
    assert planned.kv_bytes == found.kv, said
    assert abs(of_all) < TOLERANCE, said
    assert abs(of_step) < TOLERANCE or abs(of_step) * found.step < PYTHON_BYTES, said


WRONG = {
    "tactics need nothing on the way": ("attention", lambda patch: _without(patch, "workspace_bytes")),
    "nothing is prepared": ("attention", lambda patch: _without(patch, "prepared_bytes")),
    "packed weights are the tensors": ("mlp", lambda patch: _without(patch, "packed_bytes")),
    "nothing is ever free": ("mlp", lambda patch: patch.setattr(liveness, "_ends", _never)),
    "sampling is forgotten": ("vocabulary", lambda patch: patch.setattr(capacity, "sampling_bytes", lambda *_: 0)),
}


def _without(patch, hook):
    """Take a hook away from all tactics."""
    tactics = tuple(replace(one, **{hook: None}) for one in table.TACTICS)
    patch.setattr(table, "TACTICS", tactics)


def _never(network, groups):
    nodes = [node for each in groups for node in liveness.nodes_of(each)]
    return {storage: len(groups) for node in nodes for storage in liveness.storages(node)}


@pytest.fixture
def no_kernels(monkeypatch):
    """Let torch compute, as where nothing was compiled."""
    monkeypatch.setattr(table, "TACTICS", tuple(one for one in table.TACTICS if one.kernel is None))
    monkeypatch.setattr(compiled, "kernel_names", frozenset)


@pytest.mark.parametrize("case", CASES[::5], ids=str)
def test_planned_is_measured_without_compiled_kernels(case, tmp_path, no_kernels):
    test_planned_is_measured(case, tmp_path)


@pytest.mark.skipif(library() is None, reason="no compiled kernels")
def test_a_wrong_arena_is_caught(tmp_path, monkeypatch):
    case = Case("llama", "mlp", tied=True)
    plan = plan_of(case, tmp_path)
    config, _ = resolved(case, plan)
    found = measure(plan, config)
    monkeypatch.setattr(liveness, "arena_bytes", lambda group, sizes: 0)
    _, wrong = resolved(case, plan)
    assert abs(beside(wrong, found)[0]) > TOLERANCE, wrong


@pytest.mark.parametrize("mistake", WRONG)
def test_a_wrong_plan_is_caught(mistake, tmp_path, monkeypatch, no_kernels):
    shape, make = WRONG[mistake]
    if mistake == "packed weights are the tensors" and not has_instructions(torch.bfloat16):
        pytest.skip("nothing is packed on this processor")
    case = Case("llama", shape, tied=True)
    plan = plan_of(case, tmp_path)
    config, right = resolved(case, plan)
    found = measure(plan, config)
    assert max(map(abs, beside(right, found))) < TOLERANCE
    make(monkeypatch)
    _, wrong = resolved(case, plan)
    assert max(map(abs, beside(wrong, found))) > TOLERANCE, wrong
