"""Whatever happens around it, a request ends exactly once, with the tokens it would have got alone."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from quire.core.config import SchedulerConfig
from quire.core.request import Request
from quire.core.sampling_params import SamplingParams
from tests.scheduler.fake_runner import VOCAB
from tests.scheduler.scheduler_world import EOS, SchedulerWorld, random_config, random_operation

CONFIGS = st.builds(
    SchedulerConfig,
    max_model_len=st.integers(2, 30),
    max_num_seqs=st.integers(1, 5),
    max_num_batched_tokens=st.integers(1, 20),
    block_size=st.integers(1, 4),
    num_blocks=st.integers(2, 16),
    max_num_prefill_tokens=st.integers(1, 20),
    enable_prefix_caching=st.booleans(),
    enable_chunked_prefill=st.booleans(),
    scheduling_policy=st.sampled_from(["fcfs", "priority"]),
    num_batches=st.integers(1, 3),
)


class SchedulerMachine(RuleBasedStateMachine):
    """The operations of `SchedulerWorld` in any order."""

    @initialize(config=CONFIGS, oddity=st.sampled_from([0.0, 0.0, 0.2]), max_ahead=st.integers(0, 2))
    def start(self, config: SchedulerConfig, oddity: float, max_ahead: int) -> None:
        self.world = SchedulerWorld(config, oddity=oddity, max_ahead=max_ahead)
        self.num_added = 0

    def has_unfinished(self) -> bool:
        return bool(self.world.unfinished)

    @rule(
        prompt=st.lists(st.integers(1, 2), min_size=1, max_size=12),
        n=st.sampled_from([1, 1, 2, 4]),
        max_tokens=st.integers(1, 8),
        stop_token_ids=st.sets(st.integers(0, VOCAB - 1), max_size=2),
        ignore_eos=st.booleans(),
        is_logged=st.booleans(),
        priority=st.integers(0, 2),
    )
    def add(self, prompt, n, max_tokens, stop_token_ids, ignore_eos, is_logged, priority) -> None:  # type: ignore[no-untyped-def]
        self.num_added += 1
        params = SamplingParams(
            n=n,
            seed=self.num_added % 3,
            max_tokens=max_tokens,
            min_tokens=max_tokens // 2 if priority else 0,
            stop_token_ids=sorted(stop_token_ids),
            ignore_eos=ignore_eos,
            prompt_logprobs=0 if is_logged else None,
        )
        tokens = tuple(prompt[: self.world.config.max_model_len - 1])
        self.world.add(Request(f"request-{self.num_added}", tokens, params, EOS, priority=priority))

    @precondition(has_unfinished)
    @rule(count=st.integers(1, 4))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.world.step()

    @precondition(has_unfinished)
    @rule(data=st.data(), is_in_step=st.booleans())
    def abort(self, data: st.DataObject, is_in_step: bool) -> None:
        request_id, _ = data.draw(st.sampled_from(self.world.unfinished))
        if is_in_step:
            self.world.step(aborted=request_id)
        else:
            self.world.abort(request_id)

    @precondition(has_unfinished)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        self.world.finish(*data.draw(st.sampled_from(self.world.unfinished)))

    @rule()
    def reset(self) -> None:
        self.world.scheduler.reset_prefix_cache()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.drain()


SchedulerMachine.TestCase.settings = settings(
    max_examples=80,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestSchedulerMachine = SchedulerMachine.TestCase


def drive(seed: int, operations: int, max_ahead: int = 0) -> Counter[str]:
    """Do `operations` random things in a random world, then let it end; return what happened."""
    rng = random.Random(seed)
    world = SchedulerWorld(random_config(rng), seed, oddity=rng.choice((0.0, 0.0, 0.1)), max_ahead=max_ahead)
    for number in range(operations):
        random_operation(world, rng, number)
    world.drain()
    return world.counts


@pytest.mark.parametrize("max_ahead", (0, 1, 2))
@pytest.mark.parametrize("seed", range(30))
def test_random_operations(seed: int, max_ahead: int) -> None:
    drive(seed, 250, max_ahead)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1250))
def test_many_random_operations(seed: int) -> None:
    drive(seed, 2000, max_ahead=seed % 3)


@pytest.mark.parametrize("max_ahead", (0, 1))
def test_random_operations_reach_every_path(max_ahead: int) -> None:
    """The volume above means something."""
    counts = sum((drive(seed, 200, max_ahead) for seed in range(20)), Counter())
    for path in ("stop", "length", "abort", "error", "hit", "out_of_blocks", "lost_fork", "prompt_logprobs"):
        assert counts[path] > 10, f"{path}: {counts}"
    assert counts["limited prefill"] > 10
    assert not max_ahead or counts["left to others"] > 2, "batches in flight share the rows"
    assert counts["back at once"] > 0, "preempted and admitted again in one step"
