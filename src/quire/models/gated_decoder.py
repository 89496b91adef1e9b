"""The decoder of Llama and its kin: RMS norms, rotary positions, grouped-query attention, a gated MLP.

    x = embed_tokens(input_ids)
    per layer:  x = x + o_proj(attention(rope(q_proj(n)), rope(k_proj(n)), v_proj(n)))   with n = input_layernorm(x)
                x = x + down_proj(act(gate_proj(n)) * up_proj(n))                with n = post_attention_layernorm(x)
    logits = lm_head(norm(x))

Families differ only in numbers of the `ModelSpec`: biases, norms on queries and keys, windows, rope scaling.
"""

from __future__ import annotations

from quire.core.model_spec import ModelSpec
from quire.graph import functional as F
from quire.graph.layers import DecoderInputs, Embedding, GatedMLP, Linear, RmsNorm
from quire.graph.network import Network, Tensor, net_guard
from quire.models.decoder import ACTIVATIONS, attend, declare_inputs, mark_logits, split_heads

PREFIXES = (
    ("embed_tokens.", "model.embed_tokens."),
    ("layers.", "model.layers."),
    ("norm.", "model.norm."),
)
"""Checkpoints saved from the model without its head lack the first `model.`."""

IGNORED = (r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",)
"""Buffers that follow from the config."""


def define_network(spec: ModelSpec) -> Network:
    """Define the network of a Llama-like model."""
    network = Network(spec.architecture)
    with net_guard(network):
        inputs = declare_inputs(spec)
        table = _rope_table(spec)
        embedding = Embedding("model.embed_tokens", spec.vocab_size, spec.hidden_size, spec.dtype)
        x = embedding(inputs.input_ids)
        for layer in range(spec.num_layers):
            x = x + _attention(spec, layer, _norm(spec, f"model.layers.{layer}.input_layernorm")(x), table, inputs)
            x = x + _mlp(spec, layer)(_norm(spec, f"model.layers.{layer}.post_attention_layernorm")(x))
        mark_logits(spec, _norm(spec, "model.norm")(x), embedding)
    return network


def _norm(spec: ModelSpec, name: str, width: int | None = None) -> RmsNorm:
    return RmsNorm(name, width or spec.hidden_size, spec.norm_eps, spec.dtype)


def _rope_table(spec: ModelSpec) -> Tensor:
    rope = spec.rope
    assert rope is not None, f"{spec.architecture} needs rotary positions"
    return F.rope_table(
        spec.max_position_embeddings,
        spec.head_dim,
        theta=rope.theta,
        kind=rope.kind,
        factor=rope.factor,
        original_max_position=rope.original_max_position,
        low_freq_factor=rope.low_freq_factor,
        high_freq_factor=rope.high_freq_factor,
        beta_fast=rope.beta_fast,
        beta_slow=rope.beta_slow,
        attention_factor=1.0 if rope.attention_factor is None else rope.attention_factor,
    )


def _attention(spec: ModelSpec, layer: int, x: Tensor, table: Tensor, inputs: DecoderInputs) -> Tensor:
    prefix = f"model.layers.{layer}.self_attn"
    q_width, kv_width = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim

    def heads(name: str, width: int) -> Tensor:
        return split_heads(spec, Linear(f"{prefix}.{name}", spec.hidden_size, width, spec.dtype, spec.qkv_bias)(x))

    query, key, value = heads("q_proj", q_width), heads("k_proj", kv_width), heads("v_proj", kv_width)
    if spec.has_qk_norm:
        query = _norm(spec, f"{prefix}.q_norm", spec.head_dim)(query)
        key = _norm(spec, f"{prefix}.k_norm", spec.head_dim)(key)
    query, key = (F.rope(t, inputs.step.positions, table) for t in (query, key))
    out = attend(spec, layer, query, key, value, inputs)
    return Linear(f"{prefix}.o_proj", q_width, spec.hidden_size, spec.dtype, spec.o_bias)(out)


def _mlp(spec: ModelSpec, layer: int) -> GatedMLP:
    prefix, wide, narrow = f"model.layers.{layer}.mlp", spec.intermediate_size, spec.hidden_size
    return GatedMLP(
        gate=Linear(f"{prefix}.gate_proj", narrow, wide, spec.dtype, spec.mlp_bias),
        up=Linear(f"{prefix}.up_proj", narrow, wide, spec.dtype, spec.mlp_bias),
        down=Linear(f"{prefix}.down_proj", wide, narrow, spec.dtype, spec.mlp_bias),
        act=ACTIVATIONS[spec.hidden_act],
    )
