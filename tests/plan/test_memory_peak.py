"""The memory plan against what is held in fact: weights, KV cache and the worst steps, in many configurations."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from quire.builder.build import open_plan
from quire.core.config import BuildConfig, EngineConfig
from quire.engine.resolve import resolve
from quire.ops import tactic
from quire.plan import liveness, memory
from tests.support.dummy_models import FAMILIES, write_model
from tests.support.memory_run import measure

TOLERANCE = 0.03

# Models in which different terms are the largest. GPT-2's words for the same sizes are mapped below.
SHAPES = {
    "attention": {"hidden_size": 256, "intermediate_size": 512, "heads": (8, 2, 32), "vocab_size": 1000, "length": 1024},
    "heads": {"hidden_size": 192, "intermediate_size": 256, "heads": (6, 6, 32), "vocab_size": 500, "length": 512},
    "mlp": {"hidden_size": 256, "intermediate_size": 4096, "heads": (4, 1, 16), "vocab_size": 2000, "length": 256},
    "vocabulary": {"hidden_size": 128, "intermediate_size": 256, "heads": (2, 1, 64), "vocab_size": 40000, "length": 128},
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
    Case("llama", "vocabulary", without=("gather_last_token",)),
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
    heads, kv_heads, head_dim = shape["heads"]
    sizes = {
        "hidden_size": shape["hidden_size"],
        "intermediate_size": shape["intermediate_size"],
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": shape["vocab_size"],
        "max_position_embeddings": shape["length"],
        "tie_word_embeddings": case.tied,
    }
    if case.family == "mistral":
        sizes["sliding_window"] = shape["length"] // 3
    if case.family in ("gpt2", "opt"):  # as many KV heads as heads, and head_dim is what the hidden size leaves
        names = {"gpt2": ("n_embd", "n_inner", "n_head", "n_positions"),
                 "opt": ("hidden_size", "ffn_dim", "num_attention_heads", "max_position_embeddings")}[case.family]  # fmt: skip
        values = (shape["hidden_size"], shape["intermediate_size"], heads, shape["length"])
        sizes = {**dict(zip(names, values, strict=True)), "vocab_size": shape["vocab_size"]}
        sizes |= {"word_embed_proj_dim": shape["hidden_size"]} if case.family == "opt" else {}
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


@pytest.mark.parametrize("case", CASES, ids=str)
def test_planned_is_measured(case, tmp_path):
    plan = plan_of(case, tmp_path)
    config, planned = resolved(case, plan)
    found = measure(plan, config)
    needs = planned.needs
    print(case, "weights %.2f %.2f step %.2f %.2f %s/%s total ratio %.4f step %.4f" % (needs.weights/2**20, found.weights/2**20, needs.step/2**20, found.step/2**20, needs.largest, found.largest, (needs.weights + needs.step + planned.kv_bytes)/(found.weights + found.step + found.kv), needs.step/found.step))
