"""What a layout costs, against counting by hand, and stages by counted cost."""

from itertools import product

import pytest

from quire.core.errors import ConfigError
from quire.core.mapping import Mapping
from quire.sharding.cost import Exchange, balanced_stages, layout_costs, rank_cost
from quire.sharding.shard import shard
from tests.sharding.small_network import HEAD_DIM, HEADS, INNER, KV_HEADS, VOCAB, WIDTH, plan_of, small_network
from tests.support.sharded_models import family_plan

_LAYER = WIDTH * (HEADS + 2 * KV_HEADS) * HEAD_DIM + HEADS * HEAD_DIM * WIDTH + 2 * WIDTH * INNER


def test_bytes_of_ranks():
    plan = plan_of(small_network(2), 2)
    costs = layout_costs(plan, 2, 1)
    for cost in costs:
        rows = -(-VOCAB // 2)
        whole = 2 * (WIDTH + 2 * WIDTH) + WIDTH  # norms and the bias of o_proj
        assert cost.weight_bytes == 4 * (2 * rows * WIDTH + 2 * _LAYER // 2 + whole)
        assert cost.kv_bytes_per_token == 2 * 2 * (KV_HEADS // 2) * HEAD_DIM * 4 and cost.layers == 2
        assert [each.kind for each in cost.exchanges] == ["all_reduce"] * 5 + ["all_gather"]
    assert layout_costs(plan, 4, 1)[0].kv_bytes_per_token == costs[0].kv_bytes_per_token, "KV heads are on two ranks"


def test_bytes_of_a_step():
    plan = plan_of(small_network(2), 2)
    first, second = layout_costs(plan, 2, 1)
    # Five sums of 8 channels, and 6 of 11 logits, of all tokens.
    assert first.sent_bytes(3, 2) == 5 * 3 * WIDTH * 4 + 3 * 6 * 4 == 552 and first.link_bytes(3, 2) == {1: 552}
    assert second.link_bytes(3, 2) == {0: 552} and first.least_bytes(3, 2) == 552
    assert first.sent_bytes(0, 0) == 0
    stages = layout_costs(plan, 1, 2)
    assert [cost.sent_bytes(3, 2) for cost in stages] == [3 * WIDTH * 4, 0]
    assert stages[0].link_bytes(3, 2) == {1: 96} and [cost.layers for cost in stages] == [1, 1]


def test_exchanges_against_their_minimum():
    small = Exchange("all_reduce", (0, 1, 2, 3), 16, "num_tokens", 4)
    assert small.sent_bytes(10) == 240 == small.least_bytes(10)
    assert small.sent_bytes(10, 160) == 480 and small.sent_bytes(11, 160) == 264
    gather = Exchange("all_gather", (0, 1, 2, 3), 16, "num_logits", 4)
    assert gather.sent_bytes(10) == 480 == gather.least_bytes(10)
    send = Exchange("send", (1, 5), 16, "num_tokens", 4)
    assert send.sent_bytes(10) == 160 and send.least_bytes(10) == 40


def test_links_of_both_kinds():
    plan = plan_of(small_network(2), 2)
    costs = layout_costs(plan, 2, 2)
    assert {tuple(sorted(cost.link_bytes(1, 1))) for cost in costs} == {(1, 2), (0, 3), (3,), (2,)}
    assert sum(cost.weight_bytes for cost in costs) > sum(
        rank_cost(shard(plan, Mapping(2, r, pp_size=2)), Mapping(2, r, pp_size=2)).weight_bytes for r in range(2)
    ), "norms are on every rank"


@pytest.mark.parametrize("pp_size", [1, 2, 3, 4])
def test_balanced_stages_leave_room_for_the_head(pp_size, tmp_path):
    plan = family_plan(tmp_path, "llama")
    layer = 64 * (8 + 2 * 4) * 8 + 64 * 64 + 3 * 64 * 96 + 2 * 64
    head = 211 * 64
    found = balanced_stages(plan, pp_size)
    assert sum(found) == 4 and len(found) == pp_size

    def largest(stages):
        return max([count * layer for count in stages[:-1]] + [stages[-1] * layer + head])

    others = [stages for stages in product(range(1, 5), repeat=pp_size) if sum(stages) == 4]
    assert largest(found) == min(map(largest, others))
    with pytest.raises(ConfigError, match=r"pipeline_parallel_size: expected at most the 4 layers"):
        balanced_stages(plan, 5)
