"""The passes of sharding: what each changes of a network as text, what it leaves alone, what stays equal."""

import difflib

import pytest
import torch

from quire.core.errors import BuildError, ConfigError
from quire.core.mapping import Mapping
from quire.distributed.tensors.threads import run_threads, thread_communicators
from quire.graph import functional as F
from quire.graph.layers import Linear
from quire.graph.legality import check_network
from quire.graph.network import Network, Tensor, net_guard
from quire.ops.op import Tactic
from quire.ops.registry import OPS
from quire.sharding import shard as door
from quire.sharding.cut_stages import cut_stages
from quire.sharding.fuse_all_reduce_add_rms_norm import fuse_all_reduce_add_rms_norm, has_kernel
from quire.sharding.insert_collectives import insert_collectives
from quire.sharding.shard import SHARDED, shard
from quire.sharding.shard_linear import shard_linear
from tests.sharding.small_network import VOCAB, plan_of, small_network
from tests.support.sharded_run import run, run_sharded, steps_of
from tests.support.tolerance import assert_close

RANK_1_OF_2 = Mapping(2, 1, tp_size=2)


def changes(network, run_pass):
    """Run a pass; return its matches and the lines of the network's text before and after that differ."""
    before = str(network).splitlines()
    matches = run_pass(network)
    lines = difflib.unified_diff(before, str(network).splitlines(), n=0, lineterm="")
    return matches, "\n".join(line for line in lines if not line.startswith(("---", "+++", "@@")))


SHARD_LINEAR = """\
-  input  kv_cache.0: float32[2, num_blocks, 2, block_size, 4]
-  %embed_rows = embedding(input_ids, embed.weight)  : float32[num_tokens, 8]
+  input  kv_cache.0: float32[2, num_blocks, 1, block_size, 4]
+  %embed_rows = sharded_embedding(input_ids, embed.weight, start=5, skip=1)  : float32[num_tokens, 8]
-  %_0_qkv_proj = linear(%_0_norm, concat(0.{q,k,v}_proj.weight, dim=0))  : float32[num_tokens, 32]
-  %_0_qkv_proj_heads = view(%_0_qkv_proj, [-1, 8, 4])  : float32[num_tokens, 8, 4]
-  %_0_q = slice(%_0_qkv_proj_heads, dim=1, start=0, stop=4)  : float32[num_tokens, 4, 4]
-  %_0_k = slice(%_0_qkv_proj_heads, dim=1, start=4, stop=6)  : float32[num_tokens, 2, 4]
-  %_0_v = slice(%_0_qkv_proj_heads, dim=1, start=6, stop=8)  : float32[num_tokens, 2, 4]
+  %_0_qkv_proj = linear(%_0_norm, concat(0.{q,k,v}_proj.weight, dim=0))  : float32[num_tokens, 16]
+  %_0_qkv_proj_heads = view(%_0_qkv_proj, [-1, 4, 4])  : float32[num_tokens, 4, 4]
+  %_0_q = slice(%_0_qkv_proj_heads, dim=1, start=0, stop=2)  : float32[num_tokens, 2, 4]
+  %_0_k = slice(%_0_qkv_proj_heads, dim=1, start=2, stop=3)  : float32[num_tokens, 1, 4]
+  %_0_v = slice(%_0_qkv_proj_heads, dim=1, start=3, stop=4)  : float32[num_tokens, 1, 4]
-  %attention = attention(%_0_q, kv_cache.0, block_table, seq_lens, query_start_loc, scale=0.5)  : float32[num_tokens, 4, 4]
-  %view_3 = view(%attention, [-1, 16])  : float32[num_tokens, 16]
+  %attention = attention(%_0_q, kv_cache.0, block_table, seq_lens, query_start_loc, scale=0.5)  : float32[num_tokens, 2, 4]
+  %view_3 = view(%attention, [-1, 8])  : float32[num_tokens, 8]
-  %_0_up = linear(%_0_mlp_norm, 0.up.weight)  : float32[num_tokens, 12]
-  %gelu = gelu(%_0_up)  : float32[num_tokens, 12]
+  %_0_up = linear(%_0_mlp_norm, 0.up.weight)  : float32[num_tokens, 6]
+  %gelu = gelu(%_0_up)  : float32[num_tokens, 6]
-  %head = linear(%norm, head.weight)  : float32[num_tokens, 11]
+  %head = linear(%norm, head.weight)  : float32[num_tokens, 6]"""  # noqa: E501


def test_shard_linear():
    network = small_network()
    plan = plan_of(network)
    whole = {name: plan.weights.read(name) for name in network.weights}
    found = []
    matches, text = changes(network, lambda network: found.append(shard_linear(network, plan.weights, RANK_1_OF_2)))
    ((matches, weights),) = found
    assert text == SHARD_LINEAR
    assert matches.done == ["embed_rows", "head", "_0_qkv_proj", "_0_o_proj", "_0_up", "_0_down"] and not matches.missed
    expected = {
        "embed.weight": whole["embed.weight"][5:],
        "head.weight": whole["head.weight"][5:],
        "0.q_proj.weight": whole["0.q_proj.weight"][8:],
        "0.k_proj.weight": whole["0.k_proj.weight"][4:],
        "0.v_proj.weight": whole["0.v_proj.weight"][4:],
        "0.o_proj.weight": whole["0.o_proj.weight"][:, 8:],
        "0.up.weight": whole["0.up.weight"][6:],
        "0.down.weight": whole["0.down.weight"][:, 6:],
    }
    assert set(network.weights) == set(whole)
    for name in whole:
        assert torch.equal(weights.read(name), expected.get(name, whole[name])), name
        assert weights.spec(name) == network.weights[name]


INSERT_COLLECTIVES = """\
-  %_0_norm = rms_norm(%embed_rows, 0.norm.weight, eps=1e-05)  : float32[num_tokens, 8]
+  %embed_rows_whole = all_reduce(%embed_rows)  : float32[num_tokens, 8]
+  %_0_norm = rms_norm(%embed_rows_whole, 0.norm.weight, eps=1e-05)  : float32[num_tokens, 8]
-  %_0_o_proj = linear(%view_3, 0.o_proj.weight, 0.o_proj.bias)  : float32[num_tokens, 8]
-  %_0_mlp_norm, %add = add_rms_norm(%_0_o_proj, %embed_rows, 0.mlp_norm.weight, eps=1e-05)  : float32[num_tokens, 8], float32[num_tokens, 8]
+  %_0_o_proj = linear(%view_3, 0.o_proj.weight)  : float32[num_tokens, 8]
+  %_0_o_proj_whole = all_reduce(%_0_o_proj)  : float32[num_tokens, 8]
+  %_0_o_proj_whole_and_bias = add(%_0_o_proj_whole, 0.o_proj.bias)  : float32[num_tokens, 8]
+  %_0_mlp_norm, %add = add_rms_norm(%_0_o_proj_whole_and_bias, %embed_rows_whole, 0.mlp_norm.weight, eps=1e-05)  : float32[num_tokens, 8], float32[num_tokens, 8]
-  %norm, _ = add_rms_norm(%_0_down, %add, norm.weight, eps=1e-05)  : float32[num_tokens, 8], float32[num_tokens, 8]
+  %_0_down_whole = all_reduce(%_0_down)  : float32[num_tokens, 8]
+  %norm, _ = add_rms_norm(%_0_down_whole, %add, norm.weight, eps=1e-05)  : float32[num_tokens, 8], float32[num_tokens, 8]
-  output logits = %head
+  %head_whole = all_gather(%head, width=11)  : float32[num_tokens, 11]
+  output logits = %head_whole"""  # noqa: E501


def sharded_network():
    network = small_network()
    shard_linear(network, plan_of(network).weights, RANK_1_OF_2)
    return network


def test_insert_collectives():
    matches, text = changes(network := sharded_network(), insert_collectives)
    assert text == INSERT_COLLECTIVES
    assert matches.done == ["embed_rows_whole", "_0_o_proj_whole", "_0_down_whole", "head_whole"]
    assert insert_collectives(network).count == 0, "a second run finds nothing"
    check_network(network, SHARDED)


FUSE = """\
-  %_0_down_whole = all_reduce(%_0_down)  : float32[num_tokens, 8]
-  %norm, _ = add_rms_norm(%_0_down_whole, %add, norm.weight, eps=1e-05)  : float32[num_tokens, 8], float32[num_tokens, 8]
+  %norm, _ = all_reduce_add_rms_norm(%_0_down, %add, norm.weight, eps=1e-05)  : float32[num_tokens, 8], float32[num_tokens, 8]"""  # noqa: E501


def test_fuse_all_reduce_add_rms_norm():
    network = sharded_network()
    insert_collectives(network)
    matches, text = changes(network, fuse_all_reduce_add_rms_norm)
    assert text == FUSE and matches.done == ["norm_and_sum"]
    assert fuse_all_reduce_add_rms_norm(network).count == 0
    check_network(network, SHARDED)


def test_fusing_leaves_alone_what_others_use():
    network = Network("shared")
    with net_guard(network):
        x = Tensor("x", "float32", ("num_tokens", 4))
        total = network.call(OPS["all_reduce"], x)
        normed, _ = F.add_rms_norm(total, x, network.add_weight("w", "float32", (4,)), 1e-5)
        (normed + total).mark_output("y")
    matches = fuse_all_reduce_add_rms_norm(network)
    assert matches.count == 0 and list(matches.missed.values()) == ["the sum over ranks is used elsewhere, too"]


def test_fusing_is_off_without_a_kernel_and_changes_no_bit(monkeypatch):
    assert not has_kernel("cpu")
    plan = plan_of(small_network())
    assert "all_reduce_add" not in str(shard(plan, RANK_1_OF_2, device="cpu").network)
    steps = steps_of([[[1, 2, 3], [4]], [[5], [6]]])
    apart = run_sharded(plan, 2, 1, steps, by_reference=True)
    tactic = Tactic("all_reduce_add_rms_norm", "kernel", lambda *arguments: None)
    monkeypatch.setattr("quire.sharding.fuse_all_reduce_add_rms_norm.tactics_for", lambda op, device: [tactic])
    assert "all_reduce_add_rms_norm" in str(shard(plan, RANK_1_OF_2, device="cpu").network)
    monkeypatch.setattr(
        "tests.support.sharded_run.shard", lambda plan, mapping: door.shard(plan, mapping, device="cpu")
    )
    together = run_sharded(plan, 2, 1, steps, by_reference=True)
    assert all(torch.equal(a, b) for a, b in zip(together, apart, strict=True))


STAGE_0 = """\
-  input  positions: int32[num_tokens]
-  input  kv_cache.1: float32[2, num_blocks, 2, block_size, 4]
-  %_1_norm, %add_1 = add_rms_norm(%_0_down, %add, 1.norm.weight, eps=1e-05)  : float32[num_tokens, 8], float32[num_tokens, 8]
-  ...
-  output logits = %head
+  %add_1 = add(%_0_down, %add)  : float32[num_tokens, 8]
+  send(%add_1, rank=1)"""  # noqa: E501
STAGE_1 = """\
-  input  positions: int32[num_tokens]
-  input  kv_cache.0: float32[2, num_blocks, 2, block_size, 4]
-  ...
-  %_1_norm, %add_1 = add_rms_norm(%_0_down, %add, 1.norm.weight, eps=1e-05)  : float32[num_tokens, 8], float32[num_tokens, 8]
+  %add_1_received = recv(input_ids, width=8, dtype='float32', rank=0)  : float32[num_tokens, 8]
+  %_1_norm = rms_norm(%add_1_received, 1.norm.weight, eps=1e-05)  : float32[num_tokens, 8]
-  %_1_mlp_norm, %add_2 = add_rms_norm(%_1_o_proj, %add_1, 1.mlp_norm.weight, eps=1e-05)  : float32[num_tokens, 8], float32[num_tokens, 8]
+  %_1_mlp_norm, %add_2 = add_rms_norm(%_1_o_proj, %add_1_received, 1.mlp_norm.weight, eps=1e-05)  : float32[num_tokens, 8], float32[num_tokens, 8]"""  # noqa: E501


def lines_of(text, sign):
    return [line for line in text.splitlines() if line.startswith(sign)]


@pytest.mark.parametrize(("rank", "expected", "done"), [(0, STAGE_0, ["send"]), (1, STAGE_1, ["add_1_received"])])
def test_cut_stages(rank, expected, done):
    network = small_network(2)
    matches, text = changes(network, lambda network: cut_stages(network, Mapping(2, rank, pp_size=2)))
    assert matches.done == done
    assert lines_of(text, "+") == lines_of(expected, "+")
    shown = [line for line in lines_of(expected, "-") if line != "-  ..."]
    assert [line for line in lines_of(text, "-") if line in shown] == shown
    check_network(network, SHARDED)
    assert set(network.weights) == {
        name for name in small_network(2).weights
        if name.startswith(("embed", "0.") if rank == 0 else ("1.", "norm", "head"))
    }  # fmt: skip


@pytest.mark.parametrize("stages", [(1, 3), (3, 1), (2, 2), None])
def test_stages_may_be_uneven(stages):
    plan, steps = plan_of(small_network(4), 4), steps_of([[[1, 2, 3], [4]], [[5], [6]]])
    parts = [shard(plan, Mapping(2, rank, pp_size=2, pp_partition=stages)) for rank in range(2)]
    assert tuple(part.spec.num_layers for part in parts) == (stages or (2, 2))
    assert [list(part.kv_caches) for part in parts] == [
        [f"kv_cache.{i}" for i in range(4)][: parts[0].spec.num_layers],
        [f"kv_cache.{i}" for i in range(4)][parts[0].spec.num_layers :],
    ]
    _, logits = run_threads(thread_communicators(pp_size=2), lambda c: run(parts[c.mapping.rank], steps))
    assert all(torch.equal(a, b) for a, b in zip(logits, run(plan, steps), strict=True))


def test_stages_that_are_none():
    plan = plan_of(small_network(2), 2)
    with pytest.raises(ConfigError, match=r"pp_partition: expected 2 layers in all, got 2, 1"):
        shard(plan, Mapping(2, 0, pp_size=2, pp_partition=(2, 1)))
    with pytest.raises(ConfigError, match=r"pipeline_parallel_size: expected at most the 2 layers there are, got 3"):
        shard(plan, Mapping(3, 0, pp_size=3))


def test_the_whole_plan_is_left_alone():
    plan = plan_of(small_network())
    text = str(plan.network)
    part = shard(plan, RANK_1_OF_2)
    assert str(plan.network) == text and part.network is not plan.network
    assert (part.spec.num_kv_heads, part.spec.num_layers, part.spec.vocab_size) == (1, 1, VOCAB)
    assert [entry["pass"] for entry in part.report["sharding"]] == [
        "round_whole_rows",
        "shard_linear",
        "insert_collectives",
    ]
    assert shard(plan, Mapping()) is plan


def test_nothing_to_cut_between_layers():
    network = Network("rows")
    with net_guard(network):
        x = Tensor("x", "float32", (4, 8))
        caches = [Tensor(f"kv_cache.{i}", "float32", (2, "num_blocks", 2, "block_size", 4)) for i in range(2)]
        slots = Tensor("slot_mapping", "int32", (4,))
        for i, cache in enumerate(caches):
            x = Linear(f"{i}", 8, 8, "float32")(x)
            F.append_kv(x.view(4, 2, 4), x.view(4, 2, 4), cache, slots)
        x.mark_output("logits")
    with pytest.raises(BuildError, match=r"expected a place between the layers 0 and 1 .* got none; run it with 1"):
        cut_stages(network, Mapping(2, 0, pp_size=2))


def test_a_small_network_in_all_layouts():
    plan, steps = plan_of(small_network(3), 3), steps_of([[[1, 2, 3], [4]], [[5], [6]], [[7, 8], [9]]])
    alone = run(plan, steps)
    for layout in [(2, 1), (4, 1), (1, 3), (2, 3), (4, 2)]:
        for a, b in zip(run_sharded(plan, *layout, steps), alone, strict=True):
            assert_close(a, b)
