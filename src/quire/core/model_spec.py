"""What a model is, as numbers: `ModelSpec` defines its network, `ServingSpec` is what a Plan keeps of it."""

from __future__ import annotations

from dataclasses import dataclass

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary position embedding (Su et al. 2021, https://arxiv.org/abs/2104.09864) and its scaling.

    Attributes:
        theta: Base of the wavelengths.
        kind: "default", "linear", "llama3" or "yarn".
        factor: How many times the context was stretched.
        original_max_position: Context length before stretching (llama3, yarn).
        low_freq_factor: llama3: wavelengths above original / this are stretched by `factor`.
        high_freq_factor: llama3: wavelengths below original / this are left alone.
        beta_fast: yarn: rotations over the original context above which a dimension is left alone.
        beta_slow: yarn: rotations below which a dimension is stretched by `factor`.
        attention_factor: yarn: multiplies cos and sin; None means 0.1 ln(factor) + 1.
    """

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    original_max_position: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The numbers that define a decoder-only model, read from `config.json` by `models/`.

    Attributes:
        family: File in `models/` that turns this into a network: "llama", "qwen2", "opt", ...
        architecture: Name in `config.json`, for example "LlamaForCausalLM".
        vocab_size: Rows of the embedding.
        hidden_size: Width of the residual stream.
        intermediate_size: Width inside the MLP.
        num_layers: Decoder layers.
        num_heads: Query heads.
        num_kv_heads: Key and value heads; divides `num_heads`.
        head_dim: Width of a head.
        max_position_embeddings: Longest sequence the model was made for.
        norm_eps: Epsilon of its norms.
        hidden_act: Activation of the MLP.
        dtype: "float32", "bfloat16" or "float16": of weights, activations and KV cache.
        rope: None for learned positions.
        sliding_windows: Per layer, how many latest tokens a query sees (itself included); None sees all.
        qkv_bias: Whether the q, k and v projections have a bias.
        o_bias: Whether the output projection has a bias.
        mlp_bias: Whether the MLP's projections have a bias.
        has_qk_norm: Whether queries and keys are normalised per head (Qwen3).
        tie_word_embeddings: Whether the embedding is the output projection, too.
        embedding_size: Width of the embedding table when it differs from `hidden_size` (OPT-350m), else `hidden_size`.
        is_post_norm: Whether norms come after the residual addition (OPT-350m).
        has_final_norm: Whether a norm precedes the output projection.
        attention_scale: Multiplies the attention scores; None means head_dim ** -0.5.
        scale_attn_by_layer: Whether attention is further divided by layer index + 1 (GPT-2 option).
        bos_token_id: From the config, if any.
        eos_token_ids: From the config; generation_config.json may add more.
    """

    family: str
    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    norm_eps: float
    hidden_act: str
    dtype: str
    rope: RopeSpec | None = None
    sliding_windows: tuple[int | None, ...] = ()
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    has_qk_norm: bool = False
    tie_word_embeddings: bool = False
    embedding_size: int = 0
    is_post_norm: bool = False
    has_final_norm: bool = True
    attention_scale: float | None = None
    scale_attn_by_layer: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    def window(self, layer: int) -> int | None:
        """Return the sliding window of a layer in tokens, None for full attention."""
        return self.sliding_windows[layer] if self.sliding_windows else None


@dataclass(frozen=True, slots=True)
class ServingSpec:
    """What a runtime must know of a model beside its network; the same for built-in models and a user's own.

    Attributes:
        architecture: What the model is called, for example "LlamaForCausalLM".
        dtype: "float32", "bfloat16" or "float16": of keys and values before any are quantized.
        vocab_size: Width of the logits.
        num_layers: Layers with a KV cache.
        num_kv_heads: Key and value heads.
        head_dim: Width of a head.
        max_position_embeddings: Longest sequence the model was made for.
        eos_token_ids: Ids that end a sample; generation_config.json and the tokenizer may add more.
    """

    architecture: str
    dtype: str
    vocab_size: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    eos_token_ids: tuple[int, ...] = ()
