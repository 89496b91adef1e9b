"""How many blocks there are on devices that are not here."""

import pytest

from quire.builder.open import open_plan
from quire.core.config import BuildConfig, EngineConfig
from quire.core.errors import CapacityError, ConfigError
from quire.engine.resolve import resolve
from quire.plan.memory import ProcessMemory
from quire.runner.device import PROCESS
from quire.simulation.capacity import scheduler_config
from quire.simulation.parts import parts_of
from quire.simulation.timing.fitting import Roof, measured_hardware
from quire.simulation.timing.hardware import hardware_named
from tests.support.dummy_models import LLAMA, write_model

NOTHING = ProcessMemory(code_bytes=0, slack=0.0)


def device(memory_bytes):
    return measured_hardware("cpu", Roof(1e10, 1e12), memory_bytes)


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return open_plan(write_model(tmp_path_factory.mktemp("llama"), LLAMA), BuildConfig(load_format="dummy"))


def test_a_pool_is_what_the_engine_would_have(plan):
    config = EngineConfig(max_num_seqs=8, max_num_batched_tokens=64, device="cpu")
    planned = scheduler_config([plan], config, device(1 << 30), PROCESS)
    real, _ = resolve(config, plan, 1 << 30)
    assert planned.num_blocks == real.num_blocks and planned.max_model_len == real.max_model_len == 512


def test_the_smallest_stage_decides_and_ranks_hold_parts(plan):
    config = EngineConfig(max_num_seqs=512, max_num_batched_tokens=64, pipeline_parallel_size=2)
    parts = [part.plan for part in parts_of(plan, config, 8)]
    memory = device(6 << 20)
    both = scheduler_config(parts, config, memory, NOTHING)
    each = [scheduler_config([part], config, memory, NOTHING).num_blocks for part in parts]
    assert both.num_blocks == min(each) and both.num_batches == 2
    assert min(each) > 1.5 * scheduler_config([plan], config, memory, NOTHING).num_blocks


def test_what_does_not_fit_is_said(plan):
    with pytest.raises(CapacityError, match="memory budget is too small"):
        scheduler_config([plan], EngineConfig(), device(1 << 18), NOTHING)
    config = EngineConfig(max_model_len=513)
    with pytest.raises(ConfigError, match="max_model_len: expected at most 512"):
        scheduler_config([plan], config, hardware_named("H100"), NOTHING)
    config = EngineConfig(max_model_len=512, max_num_seqs=1, max_num_batched_tokens=16, kv_cache_memory_bytes=50_000)
    with pytest.raises(CapacityError, match="which the KV cache of a here holds"):
        scheduler_config([plan], config, device(1 << 30), NOTHING)
