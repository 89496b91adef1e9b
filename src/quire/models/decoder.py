"""What every decoder family shares: the inputs of a step, attention over the cache, activations, the logits."""

from __future__ import annotations

from collections.abc import Callable

from quire.core.model_spec import ModelSpec
from quire.graph import functional as F
from quire.graph.layers import Attention, DecoderInputs, Embedding, Linear
from quire.graph.network import Tensor


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, "tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
}
"""By the name in `ModelSpec.hidden_act`."""

ACTIVATION_NAMES = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""From the name in `config.json` to the one in `ModelSpec.hidden_act`."""


def declare_inputs(spec: ModelSpec) -> DecoderInputs:
    """Declare the inputs of a decoder in the current network."""
    return DecoderInputs.declare(spec.num_layers, spec.num_kv_heads, spec.head_dim, spec.dtype)


def split_heads(spec: ModelSpec, x: Tensor) -> Tensor:
    """Return [num_tokens, heads * head_dim] as [num_tokens, heads, head_dim]."""
    width = x.shape[-1]
    assert isinstance(width, int), f"the width of {x} is symbolic"
    return x.view(-1, width // spec.head_dim, spec.head_dim)


def attend(spec: ModelSpec, layer: int, query: Tensor, key: Tensor, value: Tensor, inputs: DecoderInputs) -> Tensor:
    """Append keys and values to the layer's cache and attend over it.

    Args:
        spec: The model's numbers.
        layer: Index of the layer.
        query: [num_tokens, num_heads, head_dim].
        key: [num_tokens, num_kv_heads, head_dim].
        value: Same shape as `key`.
        inputs: The network's inputs.

    Returns:
        [num_tokens, num_heads * head_dim].
    """
    scale = spec.head_dim**-0.5 if spec.attention_scale is None else spec.attention_scale
    if spec.scale_attn_by_layer:
        scale /= layer + 1
    attention = Attention(layer, spec.num_heads, spec.num_kv_heads, spec.head_dim, scale, spec.window(layer))
    return attention(query, key, value, inputs.kv_caches[layer], inputs.step)


def mark_logits(spec: ModelSpec, x: Tensor, embedding: Embedding) -> None:
    """Project [num_tokens, embedding_size] to the vocabulary and mark the output `logits`."""
    if spec.tie_word_embeddings:
        logits = F.linear(x, embedding.weight)
    else:
        logits = Linear("lm_head", embedding.width, spec.vocab_size, spec.dtype)(x)
    logits.mark_output("logits")
