"""GPT-2 (Radford et al. 2019): learned positions, layer norms before each block, a plain MLP, one fused q/k/v weight.

    x = wte(input_ids) + wpe(positions)
    per layer:  x = x + c_proj(attention(c_attn(ln_1(x))))
                x = x + c_proj(act(c_fc(ln_2(x))))
    logits = lm_head(ln_f(x))

Checkpoints store projections as [in_features, out_features]. The fused `c_attn` is cut into q, k and v as a weight,
so that later passes see the same three projections as in every other family.
"""

from __future__ import annotations

from quire.core.model_spec import ModelSpec
from quire.graph import functional as F
from quire.graph.layers import MLP, DecoderInputs, Embedding, LayerNorm, Linear
from quire.graph.network import Network, Tensor, current_network, net_guard
from quire.models import config_reader as bounds
from quire.models.config_reader import ConfigReader
from quire.models.decoder import (
    ACTIVATION_NAMES,
    ACTIVATIONS,
    attend,
    declare_inputs,
    mark_logits,
    split_heads,
)

PREFIXES = tuple((name, f"transformer.{name}") for name in ("wte.", "wpe.", "h.", "ln_f."))
"""The original checkpoints lack the first `transformer.`."""

IGNORED = (r"transformer\.h\.\d+\.attn\.(masked_)?bias",)
"""Causal masks."""


def read_spec(reader: ConfigReader, architecture: str, dtype: str) -> ModelSpec:
    """Read a `GPT2LMHeadModel` config.

    `reorder_and_upcast_attn` only asks for float32 attention scores, which Quire always has.

    Raises:
        ConfigError: A field cannot be honoured.
    """
    hidden = reader.integer("n_embd", bounds.MAX_WIDTH)
    heads = reader.integer("n_head", bounds.MAX_HEADS)
    if hidden % heads:
        reader.fail("n_embd", f"a multiple of n_head={heads}")
    reader.boolean("reorder_and_upcast_attn", False)
    reader.expect("add_cross_attention", False)
    return ModelSpec(
        family="gpt2",
        architecture=architecture,
        vocab_size=reader.integer("vocab_size", bounds.MAX_VOCAB),
        hidden_size=hidden,
        intermediate_size=reader.integer("n_inner", bounds.MAX_WIDTH, default=4 * hidden),
        num_layers=reader.integer("n_layer", bounds.MAX_LAYERS),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        max_position_embeddings=reader.integer("n_positions", bounds.MAX_POSITIONS),
        norm_eps=reader.number("layer_norm_epsilon", 1e-20, 1.0, 1e-5),
        hidden_act=reader.choice("activation_function", ACTIVATION_NAMES, "gelu_new"),
        dtype=dtype,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        tie_word_embeddings=reader.boolean("tie_word_embeddings", True),
        embedding_size=hidden,
        attention_scale=None if reader.boolean("scale_attn_weights", True) else 1.0,
        scale_attn_by_layer=reader.boolean("scale_attn_by_inverse_layer_idx", False),
        bos_token_id=reader.optional_integer("bos_token_id", bounds.MAX_TOKEN_ID, low=0),
        eos_token_ids=reader.token_ids("eos_token_id"),
    )


def define_network(spec: ModelSpec) -> Network:
    """Define the network of a GPT-2 model."""
    network = Network(spec.architecture)
    with net_guard(network):
        inputs = declare_inputs(spec)
        embedding = Embedding("transformer.wte", spec.vocab_size, spec.hidden_size, spec.dtype)
        positions = Embedding("transformer.wpe", spec.max_position_embeddings, spec.hidden_size, spec.dtype)
        x = embedding(inputs.input_ids) + positions(inputs.step.positions)
        for layer in range(spec.num_layers):
            prefix = f"transformer.h.{layer}"
            x = x + _attention(spec, layer, _norm(spec, f"{prefix}.ln_1")(x), inputs)
            x = x + _mlp(spec, f"{prefix}.mlp")(_norm(spec, f"{prefix}.ln_2")(x))
        mark_logits(spec, _norm(spec, "transformer.ln_f")(x), embedding)
    return network


def _norm(spec: ModelSpec, name: str) -> LayerNorm:
    return LayerNorm(name, spec.hidden_size, spec.norm_eps, spec.dtype)


def _projection(spec: ModelSpec, name: str, in_features: int, out_features: int) -> Linear:
    return Linear(name, in_features, out_features, spec.dtype, bias=True, is_transposed=True)


def _mlp(spec: ModelSpec, prefix: str) -> MLP:
    up = _projection(spec, f"{prefix}.c_fc", spec.hidden_size, spec.intermediate_size)
    down = _projection(spec, f"{prefix}.c_proj", spec.intermediate_size, spec.hidden_size)
    return MLP(up, down, ACTIVATIONS[spec.hidden_act])


def _attention(spec: ModelSpec, layer: int, x: Tensor, inputs: DecoderInputs) -> Tensor:
    prefix, width = f"transformer.h.{layer}.attn", spec.hidden_size
    network = current_network()
    weight = network.add_weight(f"{prefix}.c_attn.weight", spec.dtype, (width, 3 * width)).permute(1, 0)
    bias = network.add_weight(f"{prefix}.c_attn.bias", spec.dtype, (3 * width,))

    def part(index: int) -> Tensor:
        start, stop = index * width, (index + 1) * width
        return split_heads(spec, F.linear(x, F.slice(weight, 0, start, stop), F.slice(bias, 0, start, stop)))

    out = attend(spec, layer, part(0), part(1), part(2), inputs)
    return _projection(spec, f"{prefix}.c_proj", width, width)(out)
