"""What calls cost, by hand for a small model, and what queries see, by counting."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.builder.estimate import estimate_quantized
from quire.builder.open import open_plan
from quire.core.config import BuildConfig
from quire.core.mapping import Mapping
from quire.core.request import ScheduledRow, SchedulerOutput
from quire.graph.network import Network, Tensor, net_guard
from quire.ops.registry import OPS
from quire.plan.memory import flops_per_token
from quire.sharding.shard import shard
from quire.simulation.timing.costs import Attended, network_costs, step_shape
from tests.support.dummy_models import LLAMA, MISTRAL, write_model

DUMMY = BuildConfig(load_format="dummy", dtype="bfloat16")


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return open_plan(write_model(tmp_path_factory.mktemp("llama"), LLAMA), DUMMY)


def products(costs, weight, rows):
    return [cost for cost in costs.calls if cost.flops and weight in cost.call and cost.rows == rows]


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12)), min_size=1, max_size=5),
       st.sampled_from([None, 1, 3, 7, 50]))  # fmt: skip
def test_what_queries_see_is_what_counting_finds(rows, window):
    seen = [
        [range(max(0, position + 1 - window) if window else 0, position + 1) for position in range(start, start + n)]
        for start, n in rows
    ]
    decode = sum(len(keys[0]) for keys in seen if len(keys) == 1)
    pairs = sum(len(each) for keys in seen if len(keys) > 1 for each in keys)
    distinct = sum(len(set().union(*keys)) for keys in seen if len(keys) > 1)
    scheduled = [ScheduledRow(i, start, n, is_sampled=i % 2 == 0) for i, (start, n) in enumerate(rows)]
    shape = step_shape(SchedulerOutput(tuple(scheduled), num_scheduled_tokens=sum(n for _, n in rows)), (window,))
    assert shape.attended == {window: Attended(decode, distinct, pairs)}
    assert shape.num_tokens == sum(n for _, n in rows) and shape.num_rows == len(rows)
    assert shape.num_logits == -(-len(rows) // 2)


def test_products_have_two_operations_for_each_weight(plan):
    costs = network_costs(plan.network)
    assert sum(cost.count * cost.flops for cost in costs.calls) == flops_per_token(plan.network)
    (down,) = [
        c for c in costs.calls if c.call.startswith("linear") and "[48, 80]" in c.call and c.rows == "num_tokens"
    ]
    assert (down.count, down.flops, down.fixed_bytes, down.row_bytes) == (1, 2 * 48 * 80, 2 * 48 * 80, 2 * (48 + 80))
    assert down.arithmetic == "bfloat16" and down.num_bytes(10) == 2 * 48 * 80 + 10 * 2 * (48 + 80)
    (logits,) = products(costs, "[211, 48]", "num_logits")
    assert logits.fixed_bytes == 2 * 211 * 48


def test_tables_are_read_by_rows(plan):
    (embedding,) = [cost for cost in network_costs(plan.network).calls if cost.call.startswith("embedding")]
    assert (embedding.fixed_bytes, embedding.row_bytes, embedding.flops) == (0, 2 * 2 * 48, 0)


def test_attention_reads_keys_and_values_once_for_each_group_of_heads(plan):
    (cost,) = network_costs(plan.network).attention
    assert (cost.count, cost.window, cost.is_narrow) == (2, None, False)
    assert cost.pair_flops == 4 * 4 * 16 and cost.key_bytes == 2 * 2 * 16 * 2 and cost.query_bytes == 2 * 4 * 16 * 2


def test_windows_are_those_of_the_layers(tmp_path):
    plan = open_plan(write_model(tmp_path, MISTRAL), DUMMY)
    assert network_costs(plan.network).windows == (20,)


def test_quantized_weights_are_as_small_as_they_are_stored(plan):
    settings = BuildConfig(load_format="dummy", dtype="bfloat16", quantization="w8a8", kv_cache_dtype="int8")
    quantized = estimate_quantized(plan, settings)
    costs = network_costs(quantized.network)
    (down,) = products(costs, "[48, 80]", "num_tokens")
    assert down.arithmetic == "int8" and down.flops == 2 * 48 * 80
    assert down.fixed_bytes == 48 * 80 + 48 * 4  # a scale for each output channel
    assert costs.attention[0].is_narrow and costs.attention[0].key_bytes == 2 * 2 * 16


def test_experts_are_read_as_far_as_rows_choose_them():
    network = Network("experts")
    with net_guard(network):
        x = Tensor("x", "bfloat16", ("num_tokens", 8))
        ids = Tensor("ids", "int32", ("num_tokens", 2))
        shares = Tensor("shares", "float32", ("num_tokens", 2))
        names = {"gate": (4, 6, 8), "up": (4, 6, 8), "down": (4, 8, 6)}
        weights = [network.add_weight(name, "bfloat16", shape) for name, shape in names.items()]
        network.mark_output(network.call(OPS["moe"], x, ids, shares, *weights), "out")
    (cost,) = network_costs(network).calls
    assert cost.fixed_bytes == 3 * 4 * 6 * 8 * 2 and cost.flops == 2 * 3 * 2 * 6 * 8  # two experts of three products
    assert cost.num_bytes(1) - cost.row_bytes == cost.fixed_bytes / 2  # one row reads two of four
    assert cost.num_bytes(2) - 2 * cost.row_bytes == cost.fixed_bytes * 3 / 4  # the second one half of what is left


def test_ranks_share_products_and_exchange_sums(plan):
    whole = network_costs(plan.network)
    half = network_costs(shard(plan, Mapping(2, 0, tp_size=2)).network)
    sizes = [{c.rows: sum(x.count * x.flops for x in costs.calls if x.rows == c.rows) for c in costs.calls}
             for costs in (whole, half)]  # fmt: skip
    assert sizes[1]["num_tokens"] == sizes[0]["num_tokens"] / 2
    assert half.attention[0].key_bytes == whole.attention[0].key_bytes / 2
    assert not any(cost.call.startswith(("all_reduce", "all_gather")) for cost in half.calls)


def test_stages_share_layers(plan):
    first, last = (network_costs(shard(plan, Mapping(2, rank, pp_size=2)).network) for rank in (0, 1))
    assert first.attention[0].count == last.attention[0].count == 1
    assert not any(cost.call.startswith(("send", "recv")) for cost in (*first.calls, *last.calls))
