"""OPT (Zhang et al. 2022, https://arxiv.org/abs/2205.01068): learned positions, layer norms, a plain MLP.

    x = project_in(embed_tokens(input_ids)) + embed_positions(positions + 2)
    per layer:  x = x + out_proj(attention(norm(x)))       norm before (most sizes) ...
                x = norm(x + out_proj(attention(x)))       ... or after the addition (350m)
                the same around fc2(act(fc1(x)))
    logits = lm_head(project_out(final_layer_norm(x)))

The projections exist only where the embedding is narrower than the model (350m), the last norm only with norms before.
"""

from __future__ import annotations

from collections.abc import Callable

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

PREFIXES = (("decoder.", "model.decoder."),)
"""Checkpoints saved from the model without its head lack the first `model.`."""

IGNORED = (r"model\.decoder\.version",)
"""Marks of the training framework."""

_POSITION_OFFSET = 2  # the first two rows of the position table stood for padding
_NORM_EPS = 1e-5


def read_spec(reader: ConfigReader, architecture: str, dtype: str) -> ModelSpec:
    """Read an `OPTForCausalLM` config.

    Raises:
        ConfigError: A field cannot be honoured.
    """
    hidden = reader.integer("hidden_size", bounds.MAX_WIDTH)
    heads = reader.integer("num_attention_heads", bounds.MAX_HEADS)
    if hidden % heads:
        reader.fail("hidden_size", f"a multiple of num_attention_heads={heads}")
    reader.expect("layer_norm_elementwise_affine", True)
    reader.expect("learned_embeddings", True)
    is_pre_norm = reader.boolean("do_layer_norm_before", True)
    bias = reader.boolean("enable_bias", True)
    return ModelSpec(
        family="opt",
        architecture=architecture,
        vocab_size=reader.integer("vocab_size", bounds.MAX_VOCAB),
        hidden_size=hidden,
        intermediate_size=reader.integer("ffn_dim", bounds.MAX_WIDTH),
        num_layers=reader.integer("num_hidden_layers", bounds.MAX_LAYERS),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        max_position_embeddings=reader.integer("max_position_embeddings", bounds.MAX_POSITIONS),
        norm_eps=_NORM_EPS,
        hidden_act=reader.choice("activation_function", ACTIVATION_NAMES, "relu"),
        dtype=dtype,
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=bias,
        tie_word_embeddings=reader.boolean("tie_word_embeddings", True),
        embedding_size=reader.integer("word_embed_proj_dim", bounds.MAX_WIDTH, default=hidden),
        is_post_norm=not is_pre_norm,
        has_final_norm=is_pre_norm and not reader.boolean("_remove_final_layer_norm", False),
        bos_token_id=reader.optional_integer("bos_token_id", bounds.MAX_TOKEN_ID, low=0),
        eos_token_ids=reader.token_ids("eos_token_id"),
    )


def define_network(spec: ModelSpec) -> Network:
    """Define the network of an OPT model."""
    network = Network(spec.architecture)
    with net_guard(network):
        inputs = declare_inputs(spec)
        embedding = Embedding("model.decoder.embed_tokens", spec.vocab_size, spec.embedding_size, spec.dtype)
        x = embedding(inputs.input_ids)
        if spec.embedding_size != spec.hidden_size:
            x = Linear("model.decoder.project_in", spec.embedding_size, spec.hidden_size, spec.dtype)(x)
        x = x + _positions(spec, inputs)
        for layer in range(spec.num_layers):
            x = _layer(spec, layer, x, inputs)
        if spec.has_final_norm:
            x = _norm(spec, "model.decoder.final_layer_norm")(x)
        if spec.embedding_size != spec.hidden_size:
            x = Linear("model.decoder.project_out", spec.hidden_size, spec.embedding_size, spec.dtype)(x)
        mark_logits(spec, x, embedding)
    return network


def _norm(spec: ModelSpec, name: str) -> LayerNorm:
    return LayerNorm(name, spec.hidden_size, spec.norm_eps, spec.dtype)


def _positions(spec: ModelSpec, inputs: DecoderInputs) -> Tensor:
    """Look positions up in the table without its first two rows."""
    num_rows = spec.max_position_embeddings + _POSITION_OFFSET
    shape = (num_rows, spec.hidden_size)
    table = current_network().add_weight("model.decoder.embed_positions.weight", spec.dtype, shape)
    return F.embedding(inputs.step.positions, F.slice(table, 0, _POSITION_OFFSET, num_rows))


def _layer(spec: ModelSpec, layer: int, x: Tensor, inputs: DecoderInputs) -> Tensor:
    prefix = f"model.decoder.layers.{layer}"
    mlp = MLP(
        up=Linear(f"{prefix}.fc1", spec.hidden_size, spec.intermediate_size, spec.dtype, spec.mlp_bias),
        down=Linear(f"{prefix}.fc2", spec.intermediate_size, spec.hidden_size, spec.dtype, spec.mlp_bias),
        act=ACTIVATIONS[spec.hidden_act],
    )

    def residual(x: Tensor, norm: LayerNorm, block: Callable[[Tensor], Tensor]) -> Tensor:
        return norm(x + block(x)) if spec.is_post_norm else x + block(norm(x))

    x = residual(x, _norm(spec, f"{prefix}.self_attn_layer_norm"), lambda h: _attention(spec, layer, h, inputs))
    return residual(x, _norm(spec, f"{prefix}.final_layer_norm"), mlp)


def _attention(spec: ModelSpec, layer: int, x: Tensor, inputs: DecoderInputs) -> Tensor:
    def project(name: str, bias: bool) -> Linear:
        name = f"model.decoder.layers.{layer}.self_attn.{name}"
        return Linear(name, spec.hidden_size, spec.hidden_size, spec.dtype, bias)

    names = ("q_proj", "k_proj", "v_proj")
    query, key, value = (split_heads(spec, project(name, spec.qkv_bias)(x)) for name in names)
    return project("out_proj", spec.o_bias)(attend(spec, layer, query, key, value, inputs))
