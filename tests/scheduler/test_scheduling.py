"""Who runs, and how much of it: the rules of `Scheduler.schedule`, one at a time."""

from __future__ import annotations

import pytest

from quire.core.errors import CapacityError, RequestError
from quire.core.request import SchedulerOutput
from tests.scheduler.scheduler_world import SchedulerWorld, make_config, make_request


def world_of(**changes: object) -> SchedulerWorld:
    return SchedulerWorld(make_config(**changes))


def shares(scheduled: SchedulerOutput) -> list[tuple[int, int, int, bool]]:
    return [(r.row_id, r.num_computed_tokens, r.num_scheduled_tokens, r.is_sampled) for r in scheduled.rows]


def step(world: SchedulerWorld) -> list[tuple[int, int, int, bool]]:
    """One step of the scheduler and the fake runner; return the shares."""
    scheduled = world.scheduler.schedule()
    world.hear(world.scheduler.update(scheduled, world.runner.execute(scheduled)))
    return shares(scheduled)


def test_nothing_to_run_is_an_empty_output() -> None:
    world = world_of()
    assert world.scheduler.schedule() == SchedulerOutput()
    assert not world.scheduler.has_unfinished()


def test_a_request_from_prompt_to_end() -> None:
    world = world_of()
    world.add(make_request("a", [1, 2, 3, 4, 5], max_tokens=3))
    assert [step(world) for _ in range(3)] == [[(0, 0, 5, True)], [(0, 5, 1, True)], [(0, 6, 1, True)]]
    assert world.samples["a", 0].finish_reason == "length"
    assert world.scheduler.kv_cache.num_free_blocks == 16


def test_blocks_and_removal_of_an_ended_row() -> None:
    world = world_of()
    world.add(make_request("a", [1, 2], max_tokens=1))
    step(world)
    assert world.scheduler.kv_cache.num_free_blocks == 16
    assert world.scheduler.schedule() == SchedulerOutput(), "the removal waits for a step with rows"
    world.add(make_request("b", [1, 2], max_tokens=1))
    assert world.scheduler.schedule().removed_row_ids == (0,)


def test_a_long_prompt_takes_what_is_left_of_the_budget() -> None:
    world = world_of(max_num_batched_tokens=4)
    world.add(make_request("a", [1, 2], max_tokens=6))
    step(world)
    world.add(make_request("b", [1] * 7, max_tokens=2))
    assert step(world) == [(0, 2, 1, True), (1, 0, 3, False)]
    assert step(world) == [(0, 3, 1, True), (1, 3, 3, False)]
    assert step(world) == [(0, 4, 1, True), (1, 6, 1, True)]


def test_a_prefill_ahead_leaves_a_token_to_each_decode_behind() -> None:
    world = world_of(max_num_batched_tokens=4, scheduling_policy="priority", enable_prefix_caching=False)
    for name in "ab":
        world.add(make_request(name, [1], priority=1, max_tokens=8))
    step(world)
    world.add(make_request("urgent", [1] * 9, priority=0, max_tokens=2))
    step(world)
    assert step(world) == [(2, 2, 2, False), (0, 2, 1, True), (1, 2, 1, True)]


def test_a_long_prompt_leaves_a_part_to_those_that_are_done_with_it() -> None:
    world = world_of(max_num_batched_tokens=16, enable_prefix_caching=False, num_blocks=40, max_model_len=64)
    world.add(make_request("long", [1] * 40, max_tokens=2))
    world.add(make_request("short", [2] * 7, max_tokens=2))
    world.add(make_request("other", [3] * 40, max_tokens=2))
    assert step(world) == [(0, 0, 9, False), (1, 0, 7, True)]
    assert step(world) == [(0, 9, 15, False), (1, 7, 1, True)], "nobody is done with half of it"
    for name in "abc":
        world.add(make_request(name, [4] * 3, max_tokens=1))
    assert step(world) == [(0, 24, 16, True)], "they do not overtake the other long one"
    assert step(world) == [(0, 40, 1, True), (2, 0, 9, False), (3, 0, 3, True), (4, 0, 3, True)]


def test_a_long_prompt_gives_way_to_running_prompts_and_not_to_those_without_a_seat_or_blocks() -> None:
    world = world_of(
        max_num_batched_tokens=8, enable_prefix_caching=False, num_blocks=30, max_num_seqs=2, max_model_len=128
    )
    world.add(make_request("first", [1] * 4, priority=0, max_tokens=1))
    world.add(make_request("second", [1] * 8, priority=1, max_tokens=1))
    assert step(world) == [(0, 0, 4, True), (1, 0, 4, False)]
    world.add(make_request("third", [2] * 30, max_tokens=1))
    world.add(make_request("fourth", [2] * 2, max_tokens=1))
    assert step(world) == [(1, 4, 4, True), (2, 0, 4, False)], "a seat is not free before this step ends"
    assert step(world) == [(2, 4, 6, False), (3, 0, 2, True)]
    world.add(make_request("fifth", [2] * 100, max_tokens=1))
    assert step(world) == [(2, 10, 8, False)], "what is behind is longer"


def test_a_long_prompt_beside_decodes_takes_no_more_than_the_share_of_prefill() -> None:
    world = world_of(max_num_batched_tokens=16, max_num_prefill_tokens=4, enable_prefix_caching=False)
    world.add(make_request("a", [1, 2], max_tokens=6))
    step(world)
    world.add(make_request("b", [1] * 11, max_tokens=2))
    world.add(make_request("c", [2] * 3, max_tokens=2))
    assert step(world) == [(0, 2, 1, True), (1, 0, 4, False)], "nothing is left for c"
    assert step(world) == [(0, 3, 1, True), (1, 4, 4, False)]
    assert step(world) == [(0, 4, 1, True), (1, 8, 3, True), (2, 0, 1, False)]
    world.abort("a")
    assert step(world) == [(1, 11, 1, True), (2, 1, 2, True)], "b decodes now"


def test_a_prompt_alone_takes_the_whole_step() -> None:
    world = world_of(max_num_batched_tokens=16, max_num_prefill_tokens=4)
    world.add(make_request("a", [1] * 14, max_tokens=2))
    assert step(world) == [(0, 0, 14, True)]


def test_the_first_seat_is_told_once() -> None:
    world = world_of(max_num_seqs=1)
    for name in "ab":
        world.add(make_request(name, [1, 2], max_tokens=2))
    step(world)
    assert world.scheduler.take_seated() == [("a", 0)] and world.scheduler.take_seated() == []
    world.drain()
    assert world.seated == [("b", 0)]


def test_more_rows_than_budget_are_served_in_order() -> None:
    world = world_of(max_num_batched_tokens=2, enable_prefix_caching=False)
    for name in "abc":
        world.add(make_request(name, [1], max_tokens=3))
    assert [row[0] for row in step(world)] == [0, 1]
    assert [row[0] for row in step(world)] == [0, 1]
    assert [row[0] for row in step(world)] == [0, 1]
    assert [row[0] for row in step(world)] == [2]


def test_without_chunked_prefill_a_prompt_waits_until_it_fits_whole() -> None:
    world = world_of(max_num_batched_tokens=8, enable_chunked_prefill=False)
    world.add(make_request("a", [1] * 3, max_tokens=3))
    world.add(make_request("b", [2] * 6, max_tokens=3))
    world.add(make_request("c", [1] * 1, max_tokens=3))
    assert step(world) == [(0, 0, 3, True)], "b does not fit, and c may not overtake it"
    assert step(world) == [(0, 3, 1, True), (1, 0, 6, True), (2, 0, 1, True)]


def test_without_chunked_prefill_a_prompt_over_the_budget_is_still_split() -> None:
    world = world_of(max_num_batched_tokens=8, enable_chunked_prefill=False)
    world.add(make_request("a", [1], max_tokens=8))
    world.add(make_request("b", [2] * 19, max_tokens=2))
    sizes = [[row[2] for row in step(world)] for _ in range(4)]
    assert sizes == [[1, 7], [1, 7], [1, 5], [1, 1]]


def test_seats_are_limited_and_taken_in_order_of_arrival() -> None:
    world = world_of(max_num_seqs=2)
    for name, length in zip("abc", (4, 2, 1), strict=True):
        world.add(make_request(name, [1] * length, priority=-length, max_tokens=length))
    assert [row[0] for row in step(world)] == [0, 1]
    assert (world.scheduler.num_running, world.scheduler.num_waiting) == (2, 1)
    assert [row[0] for row in step(world)] == [0, 1]
    assert [row[0] for row in step(world)] == [0, 2]


def test_priority_before_arrival() -> None:
    world = world_of(max_num_seqs=1, scheduling_policy="priority")
    for name, priority in zip("abcd", (2, 1, 1, 0), strict=True):
        world.add(make_request(name, [1], priority=priority, max_tokens=1))
    assert [step(world)[0][0] for _ in range(4)] == [3, 1, 2, 0]


def test_admission_needs_blocks_for_the_whole_prompt_at_once() -> None:
    world = world_of(num_blocks=7, max_num_batched_tokens=4, enable_prefix_caching=False)
    world.add(make_request("a", [1] * 10, max_tokens=3))
    step(world)
    assert world.scheduler.kv_cache.num_free_blocks == 3
    world.add(make_request("b", [1] * 13, max_tokens=3))
    world.add(make_request("c", [1] * 3, max_tokens=3))
    for _ in range(4):
        assert {row[0] for row in step(world)} == {0}
    assert {row[0] for row in step(world)} == {1}


def test_a_prefix_hit_is_whole_blocks_below_the_last_token() -> None:
    world = world_of()
    world.add(make_request("a", [*range(6), 0, 0], max_tokens=2))
    step(world)
    for name in ("same", "other"):
        tail = [0, 0] if name == "same" else [0, 0, 0]
        world.add(make_request(name, [*range(6), *tail], max_tokens=1))
    assert step(world)[1:] == [(1, 4, 4, True), (2, 8, 1, True)]
    assert world.samples["same", 0].num_cached_tokens == 4
    assert world.samples["other", 0].num_cached_tokens == 8
    cache = world.scheduler.kv_cache
    assert (cache.num_query_tokens, cache.num_hit_tokens) == (8 + 8 + 9, 12)


def test_one_of_many_prompts_that_begin_alike_computes_the_beginning() -> None:
    world = world_of(max_num_seqs=3)
    beginning = [5] * 8
    for name in "abc":
        world.add(make_request(name, [*beginning, ord(name)], max_tokens=2))
    world.add(make_request("other", [7] * 5, max_tokens=2))
    world.add(make_request("last", [8] * 5, max_tokens=2))
    assert step(world) == [(0, 0, 9, True)], "the two behind it keep the other two seats"
    assert step(world) == [(0, 9, 1, True), (1, 8, 1, True), (2, 8, 1, True)]
    assert [world.samples[name, 0].num_cached_tokens for name in "abc"] == [0, 8, 8]


def test_who_waits_for_a_beginning_lets_others_pass_and_goes_on_when_it_is_lost() -> None:
    world = world_of(max_num_batched_tokens=8)
    beginning = [5] * 12
    world.add(make_request("a", [*beginning, 1], max_tokens=2))
    world.add(make_request("b", [*beginning, 2], max_tokens=2))
    world.add(make_request("other", [7] * 2, max_tokens=4))
    assert step(world) == [(0, 0, 8, False)]
    assert step(world) == [(0, 8, 5, True), (2, 0, 2, True)], "of the beginning two blocks of three are there"
    assert step(world) == [(0, 13, 1, True), (2, 2, 1, True), (1, 12, 1, True)]
    world = world_of(max_num_batched_tokens=8)
    world.add(make_request("a", [*beginning, 1], max_tokens=2))
    world.add(make_request("b", [*beginning, 2], max_tokens=2))
    assert step(world) == [(0, 0, 8, False)]
    world.hear(world.scheduler.abort("a"))
    assert step(world) == [(1, 8, 5, True)]


def test_the_last_sampled_token_is_not_computed_and_so_never_found() -> None:
    """The next turn of a chat finds the blocks of the answer, but not one that the answer's last token completes."""
    world = world_of()
    world.add(make_request("a", [1] * 5, max_tokens=3))
    for _ in range(3):
        step(world)
    world.add(make_request("b", [1] * 5 + world.tokens("a") + [2], max_tokens=1))
    assert step(world) == [(1, 4, 5, True)]
    world.add(make_request("c", [1] * 5 + world.tokens("a") + [2], max_tokens=1))
    assert step(world) == [(2, 8, 1, True)]


@pytest.mark.parametrize("change", [{"salt": "b"}, {"prompt_logprobs": 0}])
def test_no_prefix_hit_for_another_salt_or_when_prompt_logprobs_are_owed(change: dict[str, object]) -> None:
    world = world_of()
    world.add(make_request("a", [1] * 9, salt="a", max_tokens=1))
    step(world)
    world.add(make_request("b", [1] * 9, **({"salt": "a", "max_tokens": 1} | change)))  # type: ignore[arg-type]
    assert step(world) == [(1, 0, 9, True)]


def test_no_prefix_hit_after_a_reset() -> None:
    world = world_of()
    world.add(make_request("a", [1] * 9, max_tokens=1))
    step(world)
    world.scheduler.reset_prefix_cache()
    world.add(make_request("b", [1] * 9, max_tokens=1))
    assert step(world) == [(1, 0, 9, True)]


def two_rows_and_no_block(**changes: object) -> SchedulerWorld:
    """Two rows with 4 tokens in one block each; both need a second, and one is left."""
    world = world_of(num_blocks=4, enable_prefix_caching=False, **changes)
    world.add(make_request("a", [1] * 3, priority=1, max_tokens=6))
    world.add(make_request("b", [2] * 3, priority=0, max_tokens=6))
    step(world)
    step(world)
    return world


def test_when_blocks_run_out_the_latest_arrival_starts_over() -> None:
    world = two_rows_and_no_block()
    scheduled = world.scheduler.schedule()
    assert shares(scheduled) == [(0, 4, 1, True)] and scheduled.removed_row_ids == (1,)
    assert world.scheduler.num_preemptions == {"out_of_blocks": 1, "lost_fork": 0}
    world.hear(world.scheduler.update(scheduled, world.runner.execute(scheduled)))
    world.add(make_request("c", [1]))
    before = world.tokens("b").copy()
    while not (scheduled := world.scheduler.schedule()).new_rows:
        world.hear(world.scheduler.update(scheduled, world.runner.execute(scheduled)))
    new = scheduled.new_rows[0]
    assert new.row_id == 1 and new.num_prompt_tokens == 3, "first in the queue, under its old id"
    assert list(new.token_ids) == [2, 2, 2, *before], "and with the tokens it had"
    world.hear(world.scheduler.update(scheduled, world.runner.execute(scheduled)))
    world.drain()


def test_when_blocks_run_out_the_lowest_priority_starts_over() -> None:
    world = two_rows_and_no_block(scheduling_policy="priority")
    scheduled = world.scheduler.schedule()
    assert shares(scheduled) == [(1, 4, 1, True)] and scheduled.removed_row_ids == (0,)


def test_a_preempted_row_finds_its_own_blocks_again() -> None:
    world = world_of(num_blocks=6)
    world.add(make_request("a", [1] * 7, max_tokens=6))
    world.add(make_request("b", [2] * 7, max_tokens=6))
    while not world.scheduler.num_preemptions["out_of_blocks"]:
        step(world)
    world.abort("a")
    assert step(world)[0][1] == 8
    world.drain()


def test_too_long_for_the_model() -> None:
    world = world_of(max_model_len=8)
    with pytest.raises(RequestError, match=r"1 to 7 tokens.*max_model_len=8, got 8"):
        world.scheduler.add(make_request("a", [1] * 8))
    world.add(make_request("a", [1] * 7))
    with pytest.raises(RequestError, match="'a'"):
        world.scheduler.add(make_request("a", [1]))


def test_a_request_that_can_never_fit_is_refused_with_what_would() -> None:
    world = world_of(num_blocks=4, max_model_len=100)
    with pytest.raises(CapacityError) as error:
        world.scheduler.add(make_request("a", [1] * 9, max_tokens=5))
    for words in ("grow to 14 needs 4", "pool has 3", "max_tokens of at most 4", "max_model_len=13", "at least 4"):
        assert words in str(error.value)
    with pytest.raises(CapacityError, match="a prompt of at most 12 tokens"):
        world.scheduler.add(make_request("a", [1] * 13, max_tokens=1))
    assert not world.scheduler.has_unfinished()
    world.add(make_request("a", [1] * 9, max_tokens=4))
    world.drain()
    assert len(world.tokens("a")) == 4


def test_check_integrity_sees_damage() -> None:
    world = world_of()
    world.add(make_request("a", [1] * 9, max_tokens=4))
    step(world)
    row = world.scheduler._running.rows[0]
    row.table.block_ids.append(row.table.block_ids[0])
    with pytest.raises(AssertionError):
        world.scheduler.check_integrity()
    row.table.block_ids.pop()
    world.scheduler._running.rows.clear()
    with pytest.raises(AssertionError, match="no queue"):
        world.scheduler.check_integrity()


def ahead(world: SchedulerWorld, count: int) -> list[list[int]]:
    """Schedule steps without taking results; return the row ids of each, and take the results in the end."""
    steps = [world.scheduler.schedule() for _ in range(count)]
    for each in steps:
        if each.rows:
            world.hear(world.scheduler.update(each, world.runner.execute(each)))
    return [[share.row_id for share in each.rows] for each in steps]


def test_batches_in_flight_share_the_rows() -> None:
    world = world_of(num_batches=2, max_num_seqs=8, num_blocks=40)
    for name in "abcde":
        world.add(make_request(name, [1], max_tokens=8))
    assert ahead(world, 3) == [[0, 1, 2], [3, 4], []], "each row in one of them, and no step for nobody"
    assert ahead(world, 2) == [[0, 1, 2], [3, 4]]
    world.add(make_request("f", [2], max_tokens=8))
    assert ahead(world, 2) == [[0, 1, 2], [3, 4, 5]]
    for name in "abc":
        world.abort(name)
    assert ahead(world, 2) == [[3, 4], [5]], "shared out anew"


def test_a_prompt_goes_on_in_each_batch_while_others_wait_for_their_tokens() -> None:
    world = world_of(num_batches=2, max_num_batched_tokens=4, enable_prefix_caching=False)
    world.add(make_request("a", [1], max_tokens=8))
    step(world)
    world.add(make_request("b", [1] * 9, max_tokens=2))
    first, second = world.scheduler.schedule(), world.scheduler.schedule()
    assert shares(first) == [(0, 1, 1, True)] and shares(second) == [(1, 0, 4, False)]
    third = world.scheduler.schedule()
    assert shares(third) == [(1, 4, 4, False)], "its tokens are known"
    for each in (first, second, third):
        world.hear(world.scheduler.update(each, world.runner.execute(each)))


def test_a_long_prompt_is_shared_out_over_batches() -> None:
    world = world_of(num_batches=2, max_num_batched_tokens=512, max_model_len=600, num_blocks=200)
    world.add(make_request("a", [1] * 400, max_tokens=2))
    steps = [world.scheduler.schedule() for _ in range(3)]
    assert [shares(each) for each in steps] == [[(0, 0, 200, False)], [(0, 200, 200, True)], []]
    for each in steps[:2]:
        world.hear(world.scheduler.update(each, world.runner.execute(each)))
    world.add(make_request("b", [2] * 30, max_tokens=2))
    assert [shares(world.scheduler.schedule()) for _ in range(2)] == [[(0, 400, 1, True)], [(1, 0, 30, True)]]
    with_one = world_of(max_num_batched_tokens=512, max_model_len=600, num_blocks=200)
    with_one.add(make_request("a", [1] * 400, max_tokens=2))
    assert step(with_one) == [(0, 0, 400, True)]
