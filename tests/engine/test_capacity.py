"""What fits, and what is advised where it does not: every setting that a message names is tried."""

import re
from dataclasses import replace

import pytest

from quire.builder.open import open_plan
from quire.core.config import BuildConfig, EngineConfig
from quire.core.errors import CapacityError, ConfigError
from quire.engine.capacity import divide, max_num_logits, needs_of
from quire.engine.resolve import resolve
from tests.support.dummy_models import LLAMA, write_model

MIB = 1 << 20
SIZES = {"hidden_size": 256, "intermediate_size": 1024, "vocab_size": 3000, "max_position_embeddings": 8192}


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    model = write_model(tmp_path_factory.mktemp("model"), {**LLAMA, **SIZES})
    return open_plan(model, BuildConfig(load_format="dummy", dtype="bfloat16"))


def advised(plan, config, available):
    """The settings that the error names, one by one."""
    with pytest.raises(CapacityError) as caught:
        resolve(config, plan, available)
    message = str(caught.value)
    assert re.search(r"expected at least [\d,.]+ MiB \(weights .* KV cache .*The largest term is", message) or (
        "KV cache is too small" in message
    )
    found = re.findall(r"(\w+)=([\d.]+)", message.partition("What fits: ")[2])
    return [
        {name: float(value) if name == "gpu_memory_utilization" else int(value.rstrip("."))} for name, value in found
    ]


@pytest.mark.parametrize("config", [
    EngineConfig(max_num_batched_tokens=4096),
    EngineConfig(max_num_batched_tokens=4096, gpu_memory_utilization=0.3),
    EngineConfig(kv_cache_memory_bytes=1 << 40),
    EngineConfig(kv_cache_memory_bytes=17),
    EngineConfig(max_num_batched_tokens=4096, kv_cache_memory_bytes=1 << 20),
])  # fmt: skip
def test_what_is_advised_fits(plan, config):
    needs = needs_of(config, plan, 8192)
    available = needs.total + needs.total // 20 if config.kv_cache_memory_bytes != 1 << 20 else needs.total // 2
    settings = advised(plan, config, available)
    assert settings
    for setting in settings:
        _, memory = resolve(replace(config, **setting), plan, available)
        assert memory.total_bytes <= available and memory.num_blocks >= 2


def test_where_nothing_fits_the_message_says_so(plan):
    with pytest.raises(CapacityError, match=r"No number of tokens in a step fits: .* Quantize"):
        resolve(EngineConfig(), plan, needs_of(EngineConfig(), plan, 128).weights)


def test_all_is_within_the_budget(plan):
    config = EngineConfig(gpu_memory_utilization=0.5)
    for available in (800 * MIB, 2000 * MIB, 20000 * MIB):
        scheduler, memory = resolve(config, plan, available)
        assert memory.total_bytes <= available // 2
        assert memory.num_sequences(scheduler.max_model_len) >= 1


def test_sequences_that_no_cache_holds_need_no_workspace(plan):
    small = resolve(EngineConfig(kv_cache_memory_bytes=1 << 20), plan, 20000 * MIB)
    large = resolve(EngineConfig(kv_cache_memory_bytes=1 << 30), plan, 20000 * MIB)
    assert small[0].max_model_len < large[0].max_model_len == 8192
    assert small[1].needs.workspace < large[1].needs.workspace


def test_the_advice_for_a_length_is_enough(plan):
    config = EngineConfig(max_model_len=8000, kv_cache_memory_bytes=1 << 20)
    with pytest.raises(ConfigError, match="max_model_len: expected at most") as caught:
        resolve(config, plan, 20000 * MIB)
    enough = int(re.search(r"kv_cache_memory_bytes=(\d+)", str(caught.value))[1])
    assert resolve(replace(config, kv_cache_memory_bytes=enough), plan, 20000 * MIB)[0].max_model_len == 8000


def test_logits_are_bounded(plan):
    assert max_num_logits(EngineConfig()) == 256
    assert max_num_logits(EngineConfig(max_num_seqs=2)) == 64
    assert max_num_logits(EngineConfig(max_num_seqs=2, max_num_batched_tokens=10)) == 10
    assert max_num_logits(EngineConfig(enable_chunked_prefill=False)) == 2048
    assert (
        divide(EngineConfig(), plan, 128, 20000 * MIB).needs.sampling
        < divide(EngineConfig(enable_chunked_prefill=False), plan, 128, 20000 * MIB).needs.sampling
    )


def test_a_gpu_samples_all_rows_at_once(plan, gpu):
    few, many = (needs_of(EngineConfig(device=gpu, max_num_seqs=rows), plan, 128) for rows in (64, 256))
    logits = (256 - 64) * plan.spec.vocab_size
    assert many.sampling - few.sampling >= 8 * logits, "rows with edits and with filters, each in float32"
    assert many.overhead - few.overhead >= 2 * logits, "how often each row said each token"
    eager = needs_of(EngineConfig(device=gpu, max_num_seqs=256, enforce_eager=True), plan, 128)
    assert eager.overhead < many.overhead and eager.step == many.step
