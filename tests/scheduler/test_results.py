"""What a result means: the rules of `Scheduler.update`, `abort` and `finish`, one at a time."""

from __future__ import annotations

import pytest

from quire.core.request import ModelOutput, RowOutput, SampleUpdate, TokenLogprobs
from quire.scheduler.scheduler import Scheduler
from tests.scheduler.fake_runner import prompt_logprobs_of
from tests.scheduler.scheduler_world import SchedulerWorld, make_config, make_request


def answer(scheduler: Scheduler, *token_ids: int, error: str | None = None) -> list[SampleUpdate]:
    """One step in which every sampled row gets `token_ids`."""
    scheduled = scheduler.schedule()
    rows = []
    for share in scheduled.rows:
        ids = token_ids if share.is_sampled else ()
        logprobs = tuple(TokenLogprobs((token_id,), (0.0,), (1,)) for token_id in ids)
        rows.append(RowOutput(share.row_id, ids, logprobs, error=error))
    updates = scheduler.update(scheduled, ModelOutput(tuple(rows)))
    scheduler.check_integrity()
    return updates


def outcome(scheduler: Scheduler, *steps: int) -> list[tuple[tuple[int, ...], str | None, int | str | None]]:
    """Answer one token per step and return (new ids, finish reason, stop reason) of each."""
    updates = [answer(scheduler, token_id)[0] for token_id in steps]
    return [(update.new_token_ids, update.finish_reason, update.stop_reason) for update in updates]


def scheduler_with(max_model_len: int = 32, **params: object) -> Scheduler:
    """A scheduler with one request of a two-token prompt; 6 is the end-of-sequence token."""
    scheduler = Scheduler(make_config(max_model_len=max_model_len))
    scheduler.add(make_request("a", [1, 2], **({"ignore_eos": False} | params)))  # type: ignore[arg-type]
    return scheduler


@pytest.mark.parametrize(
    ("params", "steps", "reason", "stop_reason"),
    [
        ({}, [3, 6], "stop", None),
        ({"ignore_eos": True}, [3, 6, 6, 6], "length", None),
        ({"stop_token_ids": [5]}, [3, 5], "stop", 5),
        ({"stop_token_ids": [6]}, [3, 6], "stop", None),
        ({"stop_token_ids": [6], "ignore_eos": True}, [3, 6], "stop", 6),
        ({"min_tokens": 3, "stop_token_ids": [5]}, [6, 5, 5], "stop", 5),
        ({"min_tokens": 2}, [6, 6], "stop", None),
        ({"max_tokens": 1}, [3], "length", None),
        ({"max_tokens": 2}, [3, 6], "stop", None),
        ({"max_tokens": None, "ignore_eos": True}, [3] * 30, "length", None),
    ],
)
def test_endings(params: dict[str, object], steps: list[int], reason: str, stop_reason: int | None) -> None:
    scheduler = scheduler_with(**params)
    results = outcome(scheduler, *steps)
    assert results[:-1] == [((token_id,), None, None) for token_id in steps[:-1]]
    assert results[-1] == ((steps[-1],), reason, stop_reason)
    assert not scheduler.has_unfinished() and scheduler.kv_cache.num_free_blocks == 16


def test_max_model_len_ends_with_length() -> None:
    assert outcome(scheduler_with(max_model_len=4, max_tokens=9), 3, 3)[-1] == ((3,), "length", None)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"stop_token_ids": [5]}, set()),
        ({"stop_token_ids": [5], "min_tokens": 1}, {5, 6}),
        ({"stop_token_ids": [5], "min_tokens": 1, "ignore_eos": True}, {5}),
    ],
)
def test_ids_the_sampler_must_avoid(params: dict[str, object], expected: set[int]) -> None:
    assert scheduler_with(**params).schedule().new_rows[0].stop_token_ids == expected


def test_several_ids_at_once_are_cut_at_the_end() -> None:
    (update,) = answer(scheduler_with(stop_token_ids=[5]), 3, 5, 4)
    assert (update.new_token_ids, update.finish_reason, update.stop_reason) == ((3, 5), "stop", 5)
    assert update.new_logprobs is not None and [entry.token_ids for entry in update.new_logprobs] == [(3,), (5,)]
    (update,) = answer(scheduler_with(max_tokens=2), 3, 3, 3)
    assert (update.new_token_ids, update.finish_reason) == ((3, 3), "length")


def test_several_ids_are_all_computed_in_the_next_step() -> None:
    scheduler = scheduler_with(max_tokens=9)
    answer(scheduler, 3, 4, 5)
    (share,) = scheduler.schedule().rows
    assert (share.num_computed_tokens, share.num_scheduled_tokens, share.is_sampled) == (2, 3, True)


def test_no_id_means_the_last_token_is_computed_again() -> None:
    scheduler = scheduler_with()
    assert answer(scheduler) == []
    (share,) = scheduler.schedule().rows
    assert (share.num_computed_tokens, share.num_scheduled_tokens, share.is_sampled) == (1, 1, True)


def test_an_error_ends_only_its_row() -> None:
    world = SchedulerWorld(make_config())
    world.add(make_request("a", [1, 2]))
    world.add(make_request("b", [1, 2]))
    scheduled = world.scheduler.schedule()
    good = world.runner.execute(scheduled).rows[1]
    updates = world.scheduler.update(scheduled, ModelOutput((RowOutput(0, error="not finite"), good)))
    assert (updates[0].finish_reason, updates[0].stop_reason, updates[0].new_token_ids) == ("error", "not finite", ())
    world.hear(updates)
    world.drain()
    assert world.samples["b", 0].finish_reason == "length"


def test_abort_tells_of_every_unfinished_sample_and_frees_now() -> None:
    scheduler = scheduler_with(n=3)
    answer(scheduler, 3)
    assert scheduler.kv_cache.num_free_blocks < 16
    updates = scheduler.abort("a")
    assert [(update.request_id, update.index, update.finish_reason) for update in updates] == [
        ("a", index, "abort") for index in range(3)
    ]
    assert scheduler.kv_cache.num_free_blocks == 16 and not scheduler.has_unfinished()
    assert scheduler.abort("a") == []
    scheduler.check_integrity()


def test_results_of_a_row_aborted_in_between_are_dropped() -> None:
    scheduler = scheduler_with()
    scheduled = scheduler.schedule()
    scheduler.abort("a")
    scheduler.add(make_request("a", [1, 2]))
    assert scheduler.update(scheduled, ModelOutput((RowOutput(0, (3,)),))) == []
    scheduler.check_integrity()
    (new,) = scheduler.schedule().new_rows
    assert new.row_id == 1 and new.token_ids == (1, 2)


def test_finish_ends_one_sample_now() -> None:
    scheduler = scheduler_with(n=2, max_tokens=9)
    answer(scheduler, 3)
    free = scheduler.kv_cache.num_free_blocks
    answer(scheduler, 3)
    assert scheduler.kv_cache.num_free_blocks == free - 1, "the fork has its own block now"
    update = scheduler.finish("a", 0, "stop", "###")
    assert update is not None and (update.index, update.finish_reason, update.stop_reason) == (0, "stop", "###")
    assert scheduler.kv_cache.num_free_blocks == free
    assert scheduler.finish("a", 0, "stop", "###") is None
    assert scheduler.finish("unknown", 0, "stop") is None
    assert [update.index for update in answer(scheduler, 3)] == [1]


def test_prompt_logprobs_come_once_and_whole() -> None:
    world = SchedulerWorld(make_config(max_num_batched_tokens=3))
    world.add(make_request("a", [1, 2, 3, 4, 5, 6, 0, 1], prompt_logprobs=0, n=2, max_tokens=3))
    updates = []
    while world.unfinished:
        updates += world.step()
    given = [update.prompt_logprobs for update in updates if update.prompt_logprobs is not None]
    assert given == [prompt_logprobs_of([1, 2, 3, 4, 5, 6, 0, 1], 0, 7)]
    assert updates[0].prompt_logprobs is not None and updates[0].new_token_ids


def test_prompt_logprobs_of_a_single_token_are_empty() -> None:
    world = SchedulerWorld(make_config())
    world.add(make_request("a", [1], prompt_logprobs=0))
    assert world.step()[0].prompt_logprobs == ()


@pytest.mark.parametrize("num_steps", [1, 3])
def test_prompt_logprobs_survive_preemption(num_steps: int) -> None:
    """Preempted before they are complete, the pieces start over; after, they are not owed any more."""
    world = SchedulerWorld(make_config(max_num_batched_tokens=4))
    world.add(make_request("a", [1] * 10, prompt_logprobs=0, max_tokens=3))
    for _ in range(num_steps):
        world.step()
    world.scheduler._preempt(world.scheduler._running.rows[0])
    world.step()
    (held,) = world.runner.rows.values()
    assert (held.new.params.prompt_logprobs is None) == (num_steps == 3)
    world.drain()
    assert world.counts["prompt_logprobs"] == 1
