"""Loads on a cluster: by hand where steps take a second, and what must hold for any load."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.core.errors import ConfigError
from quire.simulation.cluster import simulate
from quire.simulation.load import PlannedRequest
from quire.simulation.replica import Replica
from quire.simulation.settings import ROUTERS
from quire.simulation.summary import summarize
from tests.simulation.clockwork import Clockwork, cluster

REQUEST = st.builds(
    PlannedRequest,
    st.floats(0, 30),
    st.integers(1, 70),
    st.integers(1, 20),
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 20)), max_size=2).map(tuple),
)


def test_two_requests_by_hand():
    load = [PlannedRequest(0.0, 10, 3), PlannedRequest(1.5, 10, 2)]
    outcome = simulate(cluster(), load)
    first, second = outcome.requests
    # Steps end at 1, 2, 3 and 4; the second request comes in the middle of one and is seen at its end.
    assert (first.scheduled_s, first.first_s, list(first.gaps_s), first.last_s) == (0.0, 1.0, [1.0, 1.0], 3.0)
    assert (second.scheduled_s, second.first_s, list(second.gaps_s), second.last_s) == (2.0, 3.0, [1.0], 4.0)
    result = summarize(outcome, cluster(), price_per_hour=9.0)
    assert result["duration_s"] == 4.0 and result["output_tokens_per_s"] == 5 / 4 and result["num_steps"] == 4
    assert result["ttft_ms"]["p50"] == pytest.approx(1250) and result["queue_ms"]["mean"] == pytest.approx(250)
    assert result["itl_ms"] == {"p50": 1000.0, "p90": 1000.0, "p99": 1000.0, "mean": 1000.0}
    assert result["cost"]["price"] == pytest.approx(4 / 3600 * 9)
    assert result["cost"]["price_per_million_tokens"] == pytest.approx(4 / 3600 * 9 / 5 * 1e6)
    assert result["busy_share"] == 1.0


def test_a_long_prompt_takes_steps_of_the_budget():
    times = Clockwork(step_s=0.0, token_s=0.1)
    (request,) = simulate(cluster(times), [PlannedRequest(0.0, 40, 1)]).requests
    assert [shape.num_tokens for shape in times.shapes] == [32, 8] and request.first_s == pytest.approx(4.0)
    assert [shape.attended[None].prefill_pairs for shape in times.shapes] == [32 * 33 // 2, 40 * 41 // 2 - 32 * 33 // 2]


def test_an_idle_replica_waits_for_the_next_request():
    outcome = simulate(cluster(), [PlannedRequest(0.0, 4, 1), PlannedRequest(100.0, 4, 1)])
    assert [request.last_s for request in outcome.requests] == [1.0, 101.0]
    assert summarize(outcome, cluster())["busy_share"] == pytest.approx(2 / 101)


def test_the_host_works_beside_the_device_where_it_is_ahead():
    load = [PlannedRequest(0.0, 4, 11)]
    serial = simulate(cluster(Clockwork(1.0, host_s=0.5)), load).end_s
    ahead = simulate(cluster(Clockwork(1.0, host_s=0.5, is_ahead=True)), load).end_s
    assert serial == pytest.approx(11 * 1.5) and ahead == pytest.approx(11 * 1.0 + 0.5)


def test_two_stages_work_on_two_batches_at_once():
    load = [PlannedRequest(0.0, 4, 10) for _ in range(4)]
    times = Clockwork(1.0, num_stages=2)
    outcome = simulate(cluster(times, num_batches=2), load)
    # Each of two batches needs 10 rounds of two seconds; the second begins a second later, and they overlap.
    assert outcome.end_s == pytest.approx(21.0)
    assert {shape.num_rows for shape in times.shapes} == {2}
    assert outcome.replicas[0].busy_s == pytest.approx([20.0, 20.0])
    alone = simulate(cluster(Clockwork(1.0, num_stages=2), num_batches=2), load[:1])
    assert alone.end_s == pytest.approx(20.0)  # nobody fills the other stage


def test_a_small_pool_preempts_and_all_end():
    load = [PlannedRequest(0.0, 8, 20) for _ in range(6)]
    outcome = simulate(cluster(num_blocks=16), load)
    result = summarize(outcome, cluster())
    assert result["num_preemptions"] > 0 and result["num_done"] == 6
    assert outcome.end_s > simulate(cluster(), load).end_s


def test_shared_prefixes_are_found_and_save_time():
    load = [PlannedRequest(5.0 * i, 24, 1, ((0, 20),)) for i in range(4)]
    times = Clockwork(step_s=0.0, token_s=0.1)
    outcome = simulate(cluster(times), load)
    assert [request.num_cached_tokens for request in outcome.requests] == [0, 20, 20, 20]
    assert summarize(outcome, cluster())["prefix_hit_share"] == pytest.approx(60 / 96)
    assert [request.first_s - request.planned.due_s for request in outcome.requests] == pytest.approx(
        [2.4, 0.4, 0.4, 0.4]
    )


def test_what_cannot_run_is_refused_and_counted():
    load = [PlannedRequest(0.0, 64, 1), PlannedRequest(0.0, 4, 1)]
    outcome = simulate(cluster(), load)
    assert "max_model_len" in outcome.requests[0].refusal and not outcome.requests[0].is_done
    result = summarize(outcome, cluster())
    assert (result["num_refused"], result["num_done"]) == (1, 1)


def test_nothing_comes_of_nothing():
    result = summarize(simulate(cluster(), []), cluster(), 1.0)
    assert result["output_tokens_per_s"] == 0 and result["ttft_ms"] is None and result["cost"]["price"] == 0


def test_an_unknown_router_is_an_error():
    with pytest.raises(ConfigError, match="router: expected one of round_robin"):
        simulate(cluster(router="random"), [])
    with pytest.raises(ConfigError, match="replicas: expected"):
        cluster(num_replicas=0)


@settings(max_examples=60, deadline=None)
@given(st.lists(REQUEST, max_size=25), st.integers(1, 3), st.sampled_from(ROUTERS),
       st.integers(1, 3), st.booleans(), st.integers(18, 60))  # fmt: skip
def test_all_requests_end_all_blocks_return_and_no_clock_goes_back(load, replicas, router, stages, is_ahead, blocks):
    clocks: dict[int, float] = {}

    def watched(replica, step=Replica.step):
        step(replica)
        assert replica.now_s >= clocks.get(replica.number, 0.0)
        clocks[replica.number] = replica.now_s

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Replica, "step", watched)
        times = Clockwork(0.25, 0.01, 0.03, stages, is_ahead)
        outcome = simulate(cluster(times, replicas, router, num_blocks=blocks, num_batches=stages), load)
    assert len(outcome.requests) == len(load)
    for request in outcome.requests:
        planned = request.planned
        assert request.is_done != bool(request.refusal)
        if request.is_done:
            wanted = min(planned.num_output_tokens, 64 - planned.num_prompt_tokens)
            assert request.num_output_tokens == wanted == len(request.gaps_s) + 1
            assert planned.due_s <= request.scheduled_s <= request.first_s <= request.last_s <= outcome.end_s
            assert all(gap > 0 for gap in request.gaps_s)
    for replica in outcome.replicas:
        cache = replica.scheduler.kv_cache
        replica.scheduler.check_integrity()
        assert cache.num_free_blocks == cache.num_blocks and replica.is_idle
        assert (replica.num_unfinished, replica.num_prompt_tokens) == (0, 0)
        assert max(replica.busy_s) <= outcome.end_s + 1e-9


@given(st.lists(REQUEST, min_size=1, max_size=12), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_the_same_load_has_the_same_outcome(load, replicas):
    one, other = (simulate(cluster(Clockwork(0.2, 0.01), replicas, "longest_prefix"), load) for _ in range(2))
    assert summarize(one, cluster()) == summarize(other, cluster())
    assert [request.gaps_s for request in one.requests] == [request.gaps_s for request in other.requests]


def test_more_replicas_and_faster_devices_are_no_slower():
    load = [PlannedRequest(0.1 * i, 20, 12) for i in range(40)]
    ends = [simulate(cluster(Clockwork(0.2, 0.02), n, "least_load"), load).end_s for n in (1, 2, 4, 8)]
    assert ends == sorted(ends, reverse=True) and ends[0] > 1.5 * ends[1]
    slower = [simulate(cluster(Clockwork(0.2, token_s), 2), load).end_s for token_s in (0.0, 0.01, 0.02)]
    assert slower == sorted(slower)


def test_bubbles_are_what_uneven_stages_leave():
    class Uneven(Clockwork):
        def of(self, shape):
            return super().of(shape)._replace(stages=(1.0, 3.0))

    outcome = simulate(cluster(Uneven(num_stages=2), num_batches=2), [PlannedRequest(0.0, 4, 8) for _ in range(4)])
    result = summarize(outcome, replace(cluster(), num_devices=2))
    assert result["bubble_share"] == pytest.approx(1 - 2 / 3) and result["cost"]["devices"] == 2
