"""What users define, mixtures of experts, odd sizes, large shapes made narrow, and sizes that are impossible."""

import pytest
import torch

from quire.core.errors import ConfigError
from quire.core.mapping import Mapping
from quire.core.model_spec import ServingSpec
from quire.graph import functional as F
from quire.graph.layers import MOE, Attention, ColumnLinear, DecoderInputs, Embedding, Linear, RmsNorm, RowLinear
from quire.graph.network import Network, net_guard
from quire.graph.nodes import is_call
from quire.graph.text import network_from_text, network_to_text
from quire.plan.plan import Plan
from quire.plan.weight_source import TensorWeights
from quire.sharding.regions import possible_tp_sizes
from quire.sharding.shard import shard
from tests.sharding.small_network import plan_of, small_network
from tests.sharding.test_families import check, tokens
from tests.support.sharded_models import FAMILIES
from tests.support.sharded_run import mappings, steps_of

VOCAB, WIDTH = 211, 16


def defined(body, num_heads=4, num_kv_heads=2, head_dim=4, vocab_size=VOCAB):
    """A plan of one layer of attention and what `body` makes of the residual stream."""
    network = Network("defined")
    with net_guard(network):
        inputs = DecoderInputs.declare(1, num_kv_heads, head_dim, "float32")
        x = Embedding("embed", vocab_size, WIDTH, "float32")(inputs.input_ids)
        n = RmsNorm("norm", WIDTH, 1e-5, "float32")(x)
        q, k, v = (ColumnLinear(name, WIDTH, heads * head_dim, "float32", bias=True)(n).view(-1, heads, head_dim)
                   for name, heads in (("q", num_heads), ("k", num_kv_heads), ("v", num_kv_heads)))  # fmt: skip
        out = Attention(0, num_heads, num_kv_heads, head_dim, 0.5)(q, k, v, inputs.kv_caches[0], inputs.step)
        x = x + RowLinear("o", num_heads * head_dim, WIDTH, "float32", bias=True)(out)
        x = body(x)
        Linear("head", WIDTH, vocab_size, "float32")(x).mark_output("logits")
    generator = torch.Generator().manual_seed(3)
    weights = {name: torch.randn(spec.shape, generator=generator) / 4 for name, spec in network.weights.items()}
    spec = ServingSpec("defined", "float32", vocab_size, 1, num_kv_heads, head_dim, 64)
    return Plan(network, spec, TensorWeights(weights))


def swiglu(x):
    """Up and gate side by side, split."""
    return x + RowLinear("down", 24, WIDTH, "float32")(F.swiglu(ColumnLinear("up_gate", WIDTH, 48, "float32")(x)))


def normed_inside(x):
    """A norm over all channels between the two layers: nothing can be kept apart, but the marks are honoured."""
    wide = RmsNorm("inner", 24, 1e-5, "float32")(ColumnLinear("up", WIDTH, 24, "float32", bias=True)(x))
    return x + RowLinear("down", 24, WIDTH, "float32", bias=True)(wide)


def transposed(x):
    """Weights stored the other way round, as GPT-2's."""
    wide = ColumnLinear("up", WIDTH, 24, "float32", is_transposed=True)(x)
    return x + RowLinear("down", 24, WIDTH, "float32", is_transposed=True)(F.relu(wide) * 2.0)


def scaled(x):
    """A vector of the user's over the channels inside."""
    wide = ColumnLinear("up", WIDTH, 24, "float32")(x)
    scales = wide.network.add_weight("scales", "float32", (24,))
    return x + RowLinear("down", 24, WIDTH, "float32")(F.gelu(wide * scales + scales))


def experts(x):
    return x + MOE("moe", WIDTH, 12, num_experts=4, top_k=2, dtype="float32")(RmsNorm("n", WIDTH, 1e-5, "float32")(x))


def plain(x):
    """Three layers in a row, without marks: the second is cut one way only, and the third not at all."""
    for name in "abc":
        x = Linear(name, WIDTH, WIDTH, "float32")(x)
    return x


BODIES = (swiglu, normed_inside, transposed, scaled, experts, plain)


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_networks_of_users(body):
    plan, steps = defined(body), steps_of(tokens(1))
    for layout in ((2, 1), (4, 1)):
        check(plan, layout, steps=steps)
    check(plan, (4, 1), steps=steps, by_reference=True)
    sizes = {name: spec.shape for name, spec in shard(plan, Mapping(4, 1, tp_size=4)).network.weights.items()}
    whole = {name: spec.shape for name, spec in plan.network.weights.items()}
    kept = {name for name in whole if sizes[name] == whole[name]}
    expected = {"norm.weight", "o.bias"}
    expected |= {"inner.weight", "down.bias"} if body is normed_inside else set()
    expected |= {"moe.gate.weight", "n.weight"} if body is experts else set()
    expected |= {"c.weight"} if body is plain else set()
    assert kept == expected


def test_a_saved_network_is_cut_without_marks():
    """Engines forget marks where weights were folded: then the graph alone says it."""
    plan = defined(swiglu)
    text = network_to_text(plan.network).replace(', "shard_dim": 0', "").replace(', "shard_dim": 1', "")
    assert "shard_dim" not in text
    bare = Plan(network_from_text(text, "text"), plan.spec, plan.weights)
    first, second = (shard(each, Mapping(2, 1, tp_size=2)) for each in (plan, bare))
    assert str(first.network) == str(second.network)


@pytest.mark.parametrize("tp_size", [2, 3, 5])
def test_an_inner_width_that_does_not_divide(tp_size):
    """Channels of an MLP are dealt out as evenly as they can be: 25 to 3 ranks are 9, 8 and 8."""

    def body(x):
        return x + Linear("down", 25, WIDTH, "float32")(F.silu(Linear("up", WIDTH, 25, "float32")(x)))

    plan = defined(body, num_heads=30, num_kv_heads=30)
    parts = [shard(plan, mapping) for mapping in mappings(tp_size, 1)]
    widths = [part.network.weights["up.weight"].shape[0] for part in parts]
    assert sum(widths) == 25 and max(widths) - min(widths) <= 1
    check(plan, (tp_size, 1), steps=steps_of(tokens(2)))


@pytest.mark.parametrize("vocab_size", [211, 212, 214])
def test_a_vocabulary_that_does_not_divide(vocab_size):
    plan = defined(lambda x: x, num_heads=12, num_kv_heads=1, vocab_size=vocab_size)
    for tp_size in (2, 3, 4, 6, 12):
        parts = [shard(plan, mapping) for mapping in mappings(tp_size, 1)]
        assert {part.network.weights["head.weight"].shape[0] for part in parts} == {-(-vocab_size // tp_size)}
        check(plan, (tp_size, 1), steps=steps_of(tokens(2)))


def narrow_70b(num_layers):
    """Llama-3.1-70B's heads and layers (64 query heads, 8 KV heads, 80 layers), 4 channels a head."""
    shape = {"hidden_size": 256, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 4,
             "intermediate_size": 896, "num_hidden_layers": num_layers, "vocab_size": 501}  # fmt: skip
    return {**FAMILIES["llama"], **shape}


def build_70b(tmp_path, num_layers):
    from quire.builder.build import build
    from quire.core.config import BuildConfig
    from tests.support.dummy_models import write_model

    return build(write_model(tmp_path, narrow_70b(num_layers)), BuildConfig(load_format="dummy", dtype="float32"))


@pytest.mark.parametrize("tp_size", [8, 16])
def test_70b_heads(tp_size, tmp_path):
    plan = build_70b(tmp_path, 2)
    part = shard(plan, Mapping(tp_size, 3, tp_size=tp_size))
    assert part.spec.num_kv_heads == 1 and part.network.weights["model.layers.0.self_attn.k_proj.weight"].shape[0] == 4
    heads = [node for node in part.network.calls() if is_call(node, "attention")]
    assert {node.meta["spec"].shape[1] for node in heads} == {64 // tp_size}
    check(plan, (tp_size, 1))


@pytest.mark.slow
@pytest.mark.parametrize("layout", [(1, 2), (1, 3), (1, 4), (2, 4), (8, 2)])
def test_70b_layers(layout, tmp_path):
    check(build_70b(tmp_path, 80), layout)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "sizes"),
    [(64, 8, [1, 2, 4, 8, 16, 32, 64]), (14, 2, [1, 2, 14]), (12, 4, [1, 2, 4, 12]), (6, 6, [1, 2, 3, 6])],
)
def test_possible_sizes(heads, kv_heads, sizes):
    assert possible_tp_sizes(heads, kv_heads) == sizes


def fails(plan, message, **sizes):
    world = sizes.get("tp_size", 1) * sizes.get("pp_size", 1) * sizes.get("cp_size", 1)
    with pytest.raises(ConfigError, match=message):
        shard(plan, Mapping(world, 0, **sizes))


def test_impossible_sizes():
    plan = plan_of(small_network())
    fails(plan, r"tensor_parallel_size: expected one of 1, 2, 4 for 4 query heads and 2 KV heads, got 3", tp_size=3)
    fails(plan, r"tensor_parallel_size: expected one of 1, 2, 4 for 4 query heads .* got 8", tp_size=8)
    fails(plan, r"tensor_parallel_size: expected at most the 11 tokens there are, got 16", tp_size=16)
    fails(plan, r"pipeline_parallel_size: expected at most the 1 layers there are, got 2", pp_size=2)
    fails(plan, r"cp_size: expected 1, got 2", cp_size=2)
    fails(plan, r"moe_ep_size: expected 1, got 2", tp_size=2, moe_ep_size=2)
    fails(defined(experts, num_heads=16, num_kv_heads=16), r"expected at most 12, the channels inside .* got 16",
          tp_size=16)  # fmt: skip

    def narrow(x):
        return x + Linear("down", 3, WIDTH, "float32")(F.silu(Linear("up", WIDTH, 3, "float32")(x)))

    fails(defined(narrow), r"expected at most 3, since down has 3 input channels, got 4", tp_size=4)
