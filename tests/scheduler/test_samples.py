"""Parallel samples: one computes the prompt, the others are forked from it."""

from __future__ import annotations

import pytest

from quire.core.request import ModelOutput, RowOutput
from tests.scheduler.scheduler_world import SchedulerWorld, make_config, make_request


@pytest.mark.parametrize("is_caching", [False, True])
@pytest.mark.parametrize("num_prompt_tokens", [1, 6, 8])
def test_the_prompt_is_computed_once(num_prompt_tokens: int, is_caching: bool) -> None:
    world = SchedulerWorld(make_config(enable_prefix_caching=is_caching, max_model_len=64))
    world.add(make_request("a", [1] * num_prompt_tokens, n=4, seed=10, max_tokens=5))
    assert (world.scheduler.num_running, world.scheduler.num_waiting) == (0, 4)
    world.step()
    assert (world.scheduler.num_running, world.scheduler.num_waiting) == (1, 3)
    scheduled = world.scheduler.schedule()
    assert [share.num_scheduled_tokens for share in scheduled.rows] == [1] * 4
    assert [new.params.seed for new in scheduled.new_rows] == [11, 12, 13]
    assert all(new.params.n == 1 for new in scheduled.new_rows)
    num_shared = (num_prompt_tokens - 1) // 4
    tables = [new.block_ids for new in scheduled.new_rows]
    assert len({table[:num_shared] for table in tables}) == 1, "whole blocks stay shared"
    assert len({table[num_shared] for table in tables}) == 3, "the block that is written does not"
    world.hear(world.scheduler.update(scheduled, world.runner.execute(scheduled)))
    world.drain()
    assert len({tuple(world.tokens("a", index)) for index in range(4)}) > 1


def test_a_leader_that_ends_with_its_first_token_leaves_its_prompt_to_the_others() -> None:
    world = SchedulerWorld(make_config(enable_prefix_caching=False))
    world.add(make_request("a", [1] * 8, n=3, max_tokens=1))
    world.step()
    assert world.samples["a", 0].finish_reason == "length"
    assert [share.num_scheduled_tokens for share in world.scheduler.schedule().rows] == [1, 1]


def test_forks_wait_for_a_seat_and_lose_the_fork_when_memory_runs_out() -> None:
    world = SchedulerWorld(make_config(enable_prefix_caching=False, num_blocks=4, max_num_seqs=1))
    world.add(make_request("a", [1] * 6, n=3, max_tokens=5))
    world.drain()
    assert world.counts["lost_fork"] >= 1 and world.counts["length"] == 3


def test_a_waiting_fork_cannot_block_a_row_before_it() -> None:
    """Nobody runs, forks hold blocks, and one of higher priority needs the whole pool."""
    config = make_config(num_blocks=4, max_num_seqs=1, scheduling_policy="priority")
    world = SchedulerWorld(config)
    world.add(make_request("a", [1] * 6, n=3, priority=1, max_tokens=1))
    world.step()
    world.add(make_request("b", [2] * 12, priority=0, max_tokens=1))
    world.drain()


@pytest.mark.parametrize("cause", ["error", "finish", "finish held"])
def test_another_sample_takes_over_when_the_leader_dies_in_its_prompt(cause: str) -> None:
    world = SchedulerWorld(make_config(max_num_batched_tokens=3))
    world.add(make_request("a", [1, 2, 1, 2, 1, 2], n=3, prompt_logprobs=0, max_tokens=3))
    scheduled = world.scheduler.schedule()
    output = world.runner.execute(scheduled)
    if cause == "error":
        output = ModelOutput((RowOutput(0, error="not finite"),))
    world.hear(world.scheduler.update(scheduled, output))
    if cause == "finish":
        world.finish("a", 0)
    elif cause == "finish held":
        world.finish("a", 1)
        world.finish("a", 0)
    world.drain()
    reasons = [world.samples["a", index].finish_reason for index in range(3)]
    assert reasons == {"error": ["error", "length", "length"], "finish": ["stop", "length", "length"]}.get(
        cause, ["stop", "stop", "length"]
    )
    assert world.counts["prompt_logprobs"] == 1


def test_samples_are_requests_of_their_own_with_the_next_seeds() -> None:
    world = SchedulerWorld(make_config(max_num_batched_tokens=5))
    world.add(make_request("a", [1, 2, 1, 2, 1], n=4, seed=3, max_tokens=6))
    for index in range(4):
        world.add(make_request(f"alone-{index}", [1, 2, 1, 2, 1], seed=3 + index, max_tokens=6))
    world.drain()
    for index in range(4):
        assert world.tokens("a", index) == world.tokens(f"alone-{index}")
