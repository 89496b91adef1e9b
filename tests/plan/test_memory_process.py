"""The memory plan against a whole process: what the system says it took, allocator and kernels included."""

import json
import os
import subprocess
import sys

import pytest

from quire.builder.open import open_plan
from quire.core.config import BuildConfig
from tests.support.dummy_models import GPT2, LLAMA, write_model

LLAMA_SIZES = {
    "hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 64,
    "num_hidden_layers": 6, "vocab_size": 32000, "max_position_embeddings": 4096, "tie_word_embeddings": False,
}  # fmt: skip
GPT2_SIZES = {"n_embd": 768, "n_head": 12, "n_layer": 4, "n_positions": 1024, "vocab_size": 50257}

# The process's peak is counted from what it held before the model was loaded. Every page of the KV cache is touched,
# and every row count occurs, so that all kernels there may be are made.
_CHILD = """
import json, sys
import numpy as np
from quire.core.config import EngineConfig
from quire.engine.resolve import resolve
from quire.ops.cpu.linear import ROW_COUNTS
from quire.plan.plan import Plan
from quire.runner.cpu_runner import CPURunner
from quire.runner.loaded import LoadedPlan
from tests.support.memory_run import GREEDY, step_of, with_seats, worst_steps

def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

plan = Plan.load(sys.argv[1])
settings = json.loads(sys.argv[2])
blocks = 400 * settings["block_size"] * plan.kv_bytes_per_token
config, memory = resolve(EngineConfig(kv_cache_memory_bytes=blocks, **settings), plan)
before = status("VmRSS")
runner = CPURunner(LoadedPlan(plan, config.num_blocks, config.block_size, "cpu"), with_seats(config))
runner._loaded.kv_cache.fill_(0.01)
for _ in range(2):
    for step in worst_steps(plan, config):
        runner.execute(step)
for count in ROW_COUNTS:
    if count <= config.max_num_seqs:
        runner.execute(step_of(np.ones(count, dtype=np.int64), config, [GREEDY] * count, 100))
    if count <= config.max_num_batched_tokens:
        runner.execute(step_of(np.array([count]), config, [GREEDY], 100))
print(json.dumps({"measured": status("VmHWM") - before, "planned": memory.total_bytes}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("family, sizes, dtype, settings", [
    (LLAMA, LLAMA_SIZES, "bfloat16", {"max_num_batched_tokens": 512, "max_num_seqs": 16, "max_model_len": 1024}),
    (LLAMA, LLAMA_SIZES, "bfloat16", {"max_num_batched_tokens": 2048, "max_num_seqs": 64, "max_model_len": 4096}),
    (GPT2, GPT2_SIZES, "float32", {"max_num_batched_tokens": 512, "max_num_seqs": 16, "max_model_len": 1024}),
])  # fmt: skip
def test_a_process_takes_what_was_planned(family, sizes, dtype, settings, tmp_path):
    model = write_model(tmp_path / "model", {**family, **sizes})
    open_plan(model, BuildConfig(load_format="dummy", dtype=dtype)).save(tmp_path / "engine")
    command = [sys.executable, "-c", _CHILD, str(tmp_path / "engine"), json.dumps({"block_size": 16, **settings})]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, check=True, capture_output=True, env=environment, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert 0.92 < found["planned"] / found["measured"] < 1.12, found
