"""A real engine is driven through steps of many shapes, within its limits."""

import pytest

from quire.builder.open import open_plan
from quire.core.config import BuildConfig, EngineConfig, SchedulerConfig
from quire.engine.llm_engine import LLMEngine
from quire.simulation.timing.measuring import KNOTS, TimedScheduler, measure, sessions
from tests.support.dummy_models import LLAMA, write_model


@pytest.fixture
def engine(tmp_path):
    plan = open_plan(write_model(tmp_path, LLAMA), BuildConfig(load_format="dummy"))
    made = LLMEngine(plan, EngineConfig(device="cpu", max_num_seqs=6, max_num_batched_tokens=64, max_model_len=200))
    yield made
    made.close()


def test_shapes_that_decide_are_among_the_steps(engine):
    engine.loop.scheduler = scheduler = TimedScheduler(engine.loop.scheduler_config, (None,))
    steps = measure(engine, scheduler, vocab_size=211, limit_s=60)
    shapes = [step.shape for step in steps]
    assert {shape.num_tokens for shape in shapes} >= {knot for knot in KNOTS if knot <= 64}
    assert {shape.num_rows for shape in shapes if shape.num_tokens == shape.num_rows} >= {1, 2, 4, 6}
    mixed = [shape for shape in shapes if shape.num_rows < shape.num_tokens and shape.attended[None].decode_keys]
    pieces = [shape for shape in shapes if shape.attended[None].prefill_keys > shape.num_tokens == 64]
    assert mixed and pieces, "prompts beside rows that decode, and a prompt whose second piece sees the first"
    assert all(0 < step.seconds < 10 for step in steps) and not engine.has_unfinished_requests()


def test_the_time_limit_holds_after_the_first_session(engine):
    engine.loop.scheduler = scheduler = TimedScheduler(engine.loop.scheduler_config, (None,))
    assert measure(engine, scheduler, vocab_size=211, limit_s=1e-9) == []


@pytest.mark.parametrize("length", [4, 33, 5000])
@pytest.mark.parametrize("seqs", [1, 7, 256])
def test_probes_stay_within_limits(length, seqs):
    config = SchedulerConfig(length, seqs, 2048, 16, 1000)
    for probes in sessions(config):
        assert all(1 <= probe.num_prompt_tokens < length for probe in probes)
        assert len([probe for probe in probes if probe.at_step == 0]) <= max(seqs, 1)
