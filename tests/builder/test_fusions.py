"""The fusions: networks before and after as text, what is left alone and why, equal results for all families."""

import json

import pytest
import torch

from quire.builder.fusions.fuse_add_rms_norm import fuse_add_rms_norm
from quire.builder.fusions.fuse_gate_up import fuse_gate_up
from quire.builder.fusions.fuse_norm_quant import fuse_norm_quant
from quire.builder.fusions.fuse_qkv import fuse_qkv
from quire.builder.fusions.fuse_rope_kv_write import fuse_rope_kv_write
from quire.builder.fusions.fuse_silu_mul import fuse_silu_mul
from quire.builder.passes.drop_dead import drop_dead
from quire.builder.passes.gather_last_token import gather_last_token
from quire.builder.pipeline import FUSE
from quire.graph import functional as F
from quire.graph.layers import Linear, RmsNorm
from quire.graph.legality import DEFINED, OPTIMIZED, check_network
from quire.graph.network import Network, Tensor, net_guard
from quire.graph.text import network_from_text, network_to_text
from quire.models.registry import checkpoint_names, define_network, read_spec
from quire.weights.open import open_weights
from tests.support.hf_models import CASE_NAMES, case, save_checkpoint
from tests.support.paged_run import PagedRun
from tests.support.tolerance import assert_close


def cache(index=0, heads=2, width=4):
    return Tensor(f"kv_cache.{index}", "float32", (2, "num_blocks", heads, "block_size", width))


def step():
    names = {"block_table": ("num_seqs", "max_blocks"), "seq_lens": ("num_seqs",), "query_start_loc": ("bounds",)}
    return [Tensor(name, "int32", shape) for name, shape in names.items()]


def attention_layer(*, bias=(False, False, False), widths=(8, 8, 8), heads=((2, 4), (2, 4), (2, 4)), shared=False):
    """A network of three projections, append_kv and attention."""
    network = Network("attention")
    with net_guard(network):
        x = Tensor("x", "float32", ("num_tokens", 6))
        slots, kv = Tensor("slot_mapping", "int32", ("num_tokens",)), cache(heads=heads[1][0], width=heads[1][1])
        table = step()
        parts = [
            Linear(f"attn.{n}_proj", 6, width, "float32", has)(x)
            for n, width, has in zip("qkv", widths, bias, strict=True)
        ]
        query, key, value = (part.view(-1, *shape) for part, shape in zip(parts, heads, strict=True))
        F.append_kv(key, value, kv, slots)
        out = F.attention(query, kv, *table, 0.5).view(-1, widths[0])
        (out + parts[0] if shared else out).mark_output("y")
    return network


QKV = """\
network attention
  input  x: float32[num_tokens, 6]
  input  slot_mapping: int32[num_tokens]
  input  kv_cache.0: float32[2, num_blocks, 2, block_size, 4]
  input  block_table: int32[num_seqs, max_blocks]
  input  seq_lens: int32[num_seqs]
  input  query_start_loc: int32[bounds]
  %attn_qkv_proj = linear(x, concat(attn.{q,k,v}_proj.weight, dim=0))  : float32[num_tokens, 24]
  %attn_qkv_proj_heads = view(%attn_qkv_proj, [-1, 6, 4])  : float32[num_tokens, 6, 4]
  %attn_q = slice(%attn_qkv_proj_heads, dim=1, start=0, stop=2)  : float32[num_tokens, 2, 4]
  %attn_k = slice(%attn_qkv_proj_heads, dim=1, start=2, stop=4)  : float32[num_tokens, 2, 4]
  %attn_v = slice(%attn_qkv_proj_heads, dim=1, start=4, stop=6)  : float32[num_tokens, 2, 4]
  append_kv(%attn_k, %attn_v, kv_cache.0, slot_mapping)
  %attention = attention(%attn_q, kv_cache.0, block_table, seq_lens, query_start_loc, scale=0.5)  : float32[num_tokens, 2, 4]
  %view_3 = view(%attention, [-1, 8])  : float32[num_tokens, 8]
  output y = %view_3"""  # noqa: E501


def test_fuse_qkv():
    network = attention_layer()
    assert fuse_qkv(network).done == ["attn_qkv_proj"]
    assert str(network) == QKV
    assert fuse_qkv(network).count == 0, "a second run finds nothing"


def test_qkv_that_is_stored_as_one_needs_no_concat():
    network = Network("stored")
    with net_guard(network):
        x, slots, kv = Tensor("x", "float32", ("n", 6)), Tensor("slot_mapping", "int32", ("n",)), cache()
        weight = network.add_weight("c_attn.weight", "float32", (24, 6))
        query, key, value = (F.linear(x, F.slice(weight, 0, 8 * i, 8 * i + 8)).view(-1, 2, 4) for i in range(3))
        F.append_kv(key, value, kv, slots)
        F.attention(query, kv, *step(), 0.5).mark_output("y")
    assert fuse_qkv(network).count == 1
    drop_dead(network)
    assert "= linear(x, c_attn.weight)" in str(network) and "concat" not in str(network)


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"bias": (True, False, True)}, "only some of the layers have a bias"),
        ({"shared": True}, "a projection is used elsewhere, too"),
    ],
)
def test_qkv_that_cannot_be_joined(options, reason):
    network = attention_layer(**options)
    before = str(network)
    assert fuse_qkv(network).missed == {"append_kv": reason}
    assert str(network) == before


def test_qkv_with_biases_joins_them():
    network = attention_layer(bias=(True, True, True))
    assert fuse_qkv(network).count == 1
    assert "concat(attn.{q,k,v}_proj.bias, dim=0)" in str(network)


def mlp(act=F.silu, swap=False, same=True):
    network = Network("mlp")
    with net_guard(network):
        x = Tensor("x", "float32", ("num_tokens", 6))
        gate = act(Linear("mlp.gate_proj", 6, 10, "float32")(x))
        up = Linear("mlp.up_proj", 6, 10, "float32")(x if same else F.relu(x))
        Linear("mlp.down_proj", 10, 6, "float32")(up * gate if swap else gate * up).mark_output("y")
    return network


GATE_UP = """\
network mlp
  input  x: float32[num_tokens, 6]
  %mlp_gate_up_proj = linear(x, concat(mlp.{gate,up}_proj.weight, dim=0))  : float32[num_tokens, 20]
  %mlp_gate = slice(%mlp_gate_up_proj, dim=-1, start=0, stop=10)  : float32[num_tokens, 10]
  %mlp_up = slice(%mlp_gate_up_proj, dim=-1, start=10, stop=20)  : float32[num_tokens, 10]
  %silu = silu(%mlp_gate)  : float32[num_tokens, 10]
  %mul = mul(%silu, %mlp_up)  : float32[num_tokens, 10]
  %mlp_down_proj = linear(%mul, mlp.down_proj.weight)  : float32[num_tokens, 6]
  output y = %mlp_down_proj"""

SILU_MUL = """\
network mlp
  input  x: float32[num_tokens, 6]
  %mlp_gate_up_proj = linear(x, concat(mlp.{gate,up}_proj.weight, dim=0))  : float32[num_tokens, 20]
  %silu_mul = silu_mul(%mlp_gate_up_proj)  : float32[num_tokens, 10]
  %mlp_down_proj = linear(%silu_mul, mlp.down_proj.weight)  : float32[num_tokens, 6]
  output y = %mlp_down_proj"""


def test_fuse_gate_up_then_silu_mul():
    network = mlp()
    assert fuse_silu_mul(network).missed == {"mul": "gate and up are not side by side in one tensor"}
    assert fuse_gate_up(network).done == ["mlp_gate_up_proj"]
    assert str(network) == GATE_UP
    assert fuse_silu_mul(network).done == ["silu_mul"]
    assert str(network) == SILU_MUL
    assert fuse_gate_up(network).count == fuse_silu_mul(network).count == 0


def test_gate_and_up_in_the_other_order_and_with_another_activation():
    swapped, gelu = mlp(swap=True), mlp(act=F.gelu)
    assert fuse_gate_up(swapped).count == fuse_silu_mul(swapped).count == 1
    assert fuse_gate_up(gelu).count == 1
    assert fuse_silu_mul(gelu).count == 0 and not fuse_silu_mul(gelu).missed


def test_gate_and_up_of_several_inputs_are_left_alone():
    assert fuse_gate_up(mlp(same=False)).missed == {"mul": "the layers do not read the same input"}


def test_silu_of_the_second_half_is_left_alone():
    network = Network("halves")
    with net_guard(network):
        x = Tensor("x", "float32", ("n", 8))
        (F.silu(F.slice(x, -1, 4, 8)) * F.slice(x, -1, 0, 4)).mark_output("y")
    assert fuse_silu_mul(network).missed == {"mul": "gate and up are not the first and the second half of one tensor"}


def residual(*, late_weight=False, broadcast=False):
    network = Network("residual")
    with net_guard(network):
        x = Tensor("x", "float32", ("num_tokens", 6))
        y = Tensor("y", "float32", (1, 6) if broadcast else ("num_tokens", 6))
        total = x + y
        normed = RmsNorm("norm", 6, 1e-5, "float32")(total)
        (total + Linear("proj", 6, 6, "float32")(normed)).mark_output("z")
    return network


ADD_NORM = """\
network residual
  input  x: float32[num_tokens, 6]
  input  y: float32[num_tokens, 6]
  %norm, %add = add_rms_norm(y, x, norm.weight, eps=1e-05)  : float32[num_tokens, 6], float32[num_tokens, 6]
  %proj = linear(%norm, proj.weight)  : float32[num_tokens, 6]
  %add_1 = add(%add, %proj)  : float32[num_tokens, 6]
  output z = %add_1"""


def test_fuse_add_rms_norm():
    network = residual()
    assert fuse_add_rms_norm(network).done == ["norm_and_sum"]
    assert str(network) == ADD_NORM
    assert fuse_add_rms_norm(network).count == 0


def test_a_sum_of_several_shapes_is_left_alone():
    assert fuse_add_rms_norm(residual(broadcast=True)).missed == {"norm": "its sum is not of two tensors of one shape"}


def rotated(*, other_angles=False, key_used=False, early=False):
    network = Network("rotated")
    with net_guard(network):
        query, key, value = (Tensor(name, "float32", ("n", 2, 4)) for name in ("query", "key", "value"))
        positions, slots, kv = Tensor("positions", "int32", ("n",)), Tensor("slot_mapping", "int32", ("n",)), cache()
        table = F.rope_table(16, 4)
        q = F.rope(query, positions, table)
        k = F.rope(key, positions, F.rope_table(16, 4, theta=5.0) if other_angles else table)
        used = F.relu(q) if early else None
        F.append_kv(k, value, kv, slots)
        out = F.attention(q, kv, *step(), 0.5)
        out = out + used if used is not None else out
        (out + k if key_used else out).mark_output("y")
    return network


ROPE = """\
  %rope_table = rope_table(max_position=16, dim=4)  : float32[16, 4]
  %rope_append_kv = rope_append_kv(query, key, value, positions, %rope_table, kv_cache.0, slot_mapping)  : float32[n, 2, 4]
  %attention = attention(%rope_append_kv, kv_cache.0, block_table, seq_lens, query_start_loc, scale=0.5)  : float32[n, 2, 4]
  output y = %attention"""  # noqa: E501


def test_fuse_rope_kv_write():
    network = rotated()
    assert fuse_rope_kv_write(network).done == ["rope_append_kv"]
    assert str(network).endswith(ROPE)


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"other_angles": True}, "queries and keys are rotated by different angles"),
        ({"key_used": True}, "the rotated keys are used elsewhere, too"),
        ({"early": True}, "the rotated queries are used before the cache is written"),
    ],
)
def test_rotations_that_cannot_be_fused(options, reason):
    assert fuse_rope_kv_write(rotated(**options)).missed == {"append_kv": reason}


def rounded(maker, *, used_twice=False):
    network = Network("rounded")
    with net_guard(network):
        x = maker(Tensor("x", "float32", ("n", 8)))
        values, scales = F.quantize_rows(x)
        width = x.shape[-1]
        weight = network.add_weight("w", "int8", (6, width))
        out = F.linear_w8a8(values, scales, weight, network.add_weight("s", "float32", (6,)), dtype="float32")
        out.mark_output("y")
        if used_twice:
            x.mark_output("x")
    return network


NORM_QUANT = """\
  %quantize_rows_0, %quantize_rows_1 = rms_norm_quant(x, norm.weight, eps=1e-05)  : int8[n, 8], float32[n, 1]
  %linear_w8a8 = linear_w8a8(%quantize_rows_0, %quantize_rows_1, w, s, dtype='float32')  : float32[n, 6]
  output y = %linear_w8a8"""


def test_fuse_norm_quant():
    network = rounded(RmsNorm("norm", 8, 1e-5, "float32"))
    assert fuse_norm_quant(network).done == ["norm_quant"]
    assert NORM_QUANT.splitlines()[0] in str(network)
    gated = rounded(F.silu_mul)
    assert fuse_norm_quant(gated).done == ["silu_mul_quant"]
    kept = rounded(RmsNorm("norm", 8, 1e-5, "float32"), used_twice=True)
    assert fuse_norm_quant(kept).missed == {"quantize_rows": "its input is used unrounded, too"}
    other = rounded(F.relu)
    reason = "what makes its input, relu, has no form that rounds"
    assert fuse_norm_quant(other).missed == {"quantize_rows": reason}


def test_fuse_add_norm_quant_keeps_the_sum():
    network = Network("sum")
    with net_guard(network):
        x, y = Tensor("x", "float32", ("n", 8)), Tensor("y", "float32", ("n", 8))
        normed, total = F.add_rms_norm(x, y, network.add_weight("norm.weight", "float32", (8,)), 1e-5)
        values, scales = F.quantize_rows(normed)
        weight, s = network.add_weight("w", "int8", (8, 8)), network.add_weight("s", "float32", (8,))
        (F.linear_w8a8(values, scales, weight, s, dtype="float32") + total).mark_output("z")
    again = network_from_text(network_to_text(network), "before")
    assert fuse_norm_quant(network).count == 1
    check_network(network, OPTIMIZED)
    generator = torch.Generator().manual_seed(0)
    inputs = {name: torch.randn(5, 8, generator=generator) for name in ("x", "y")}
    weights = {
        "norm.weight": torch.randn(8, generator=generator),
        "w": torch.randint(-127, 127, (8, 8), generator=generator).to(torch.int8),
        "s": torch.rand(8, generator=generator),
    }
    assert torch.equal(network.run(inputs, weights)["z"], again.run(inputs, weights)["z"])


@pytest.mark.parametrize("name", CASE_NAMES)
def test_every_fusion_keeps_the_outputs_of_every_family(name, tmp_path):
    """Each pass alone on top of those before, against the network as defined, by the reference interpreter."""
    save_checkpoint(name, tmp_path)
    spec = read_spec(json.loads((tmp_path / "config.json").read_text()))
    network = define_network(spec)
    source = open_weights(tmp_path, network.weights, checkpoint_names(spec).canonical)
    weights = {weight: source.read(weight) for weight in source.names()}
    ids = [[3, 5, 7, 11, 13], [17, 2]]
    expected = torch.cat(PagedRun(network, spec, weights, 2, 16).step(ids))
    for fusion in FUSE:
        fusion(network)
        check_network(network, DEFINED)
        assert_close(torch.cat(PagedRun(network, spec, weights, 2, 16).step(ids)), expected)
    drop_dead(network)
    gather_last_token(network)
    drop_dead(network)
    check_network(network, OPTIMIZED)
    again = network_from_text(network_to_text(network), "saved")
    assert str(again).count("\n") == str(network).count("\n")


def test_a_two_layer_llama_fits_on_a_screen():
    network = define_network(read_spec({**case("llama").config.to_dict(), "architectures": ["LlamaForCausalLM"]}))
    for run in (*FUSE, gather_last_token, drop_dead):
        run(network)
    lines = str(network).splitlines()
    assert len(lines) <= 45
    per_layer = [line for line in lines if "model_layers_0" in line.partition("=")[0]]
    assert [line.split("= ")[1].split("(")[0] for line in per_layer] == [
        "rms_norm", "linear", "view", "slice", "slice", "slice", "linear", "add_rms_norm", "linear", "linear",
    ]  # fmt: skip
