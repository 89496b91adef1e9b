"""A small Llama in plain torch, with the parameter names of a Hugging Face checkpoint.

The module tree is named so that `state_dict()` is already the checkpoint: `model.layers.0.self_attn.q_proj.weight`
and so on. It knows nothing about text, tokens' meaning, or files.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class TinyConfig:
    """Sizes of the model; the defaults are quire-tiny.

    Example:
        >>> TinyConfig().num_heads * TinyConfig().head_dim
        256
    """

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 768
    num_layers: int = 6
    num_heads: int = 8
    num_kv_heads: int = 4
    head_dim: int = 32
    max_position_embeddings: int = 2048
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    initializer_range: float = 0.02


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last dimension, computed in float32."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalise `hidden`, [..., hidden_size]; same shape and dtype out."""
        return F.rms_norm(hidden.float(), self.weight.shape, self.weight.float(), self.eps).to(hidden.dtype)


def rope_tables(config: TinyConfig) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotary angles, each [max_position_embeddings, head_dim], float32.

    Source: Su et al. 2021, "RoFormer", in the half-split layout that Llama checkpoints use.
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    inverse_frequencies = config.rope_theta**-exponents
    angles = torch.outer(torch.arange(config.max_position_embeddings, dtype=torch.float32), inverse_frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotary embedding to `heads`, [batch, num_heads, seq_len, head_dim]; same shape and dtype out."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat((-second, first), dim=-1) * sin


class Attention(nn.Module):
    """Causal grouped-query attention with rotary positions."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        query_size = config.num_heads * config.head_dim
        kv_size = config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Attend within each row of `hidden`, [batch, seq_len, hidden_size]; `cos`, `sin`: [seq_len, head_dim]."""
        batch, seq_len, _ = hidden.shape
        heads_shape = (batch, seq_len, -1, self.config.head_dim)
        query = rotate(self.q_proj(hidden).view(heads_shape).transpose(1, 2), cos, sin)
        key = rotate(self.k_proj(hidden).view(heads_shape).transpose(1, 2), cos, sin)
        value = self.v_proj(hidden).view(heads_shape).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        output: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(batch, seq_len, -1))
        return output


class MLP(nn.Module):
    """The gated feed-forward block: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Transform `hidden`, [..., hidden_size]; same shape out."""
        output: Tensor = self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))
        return output


class DecoderLayer(nn.Module):
    """Pre-norm attention and feed-forward, each with a residual."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """One layer over `hidden`, [batch, seq_len, hidden_size]; same shape out."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), cos, sin)
        output: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return output


class Decoder(nn.Module):
    """Embedding, layers and final norm: everything below the logits."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        cos, sin = rope_tables(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Hidden states [batch, seq_len, hidden_size] for `input_ids`, [batch, seq_len], int64."""
        hidden: Tensor = self.embed_tokens(input_ids)
        seq_len = input_ids.shape[1]
        cos, sin = self.get_buffer("cos")[:seq_len], self.get_buffer("sin")[:seq_len]
        for layer in self.layers:
            hidden = layer(hidden, cos.to(hidden.dtype), sin.to(hidden.dtype))
        output: Tensor = self.norm(hidden)
        return output


class TinyLlama(nn.Module):
    """The whole language model; the output projection is the embedding, transposed.

    Example:
        >>> TinyLlama(TinyConfig())(torch.zeros(1, 3, dtype=torch.int64)).shape
        torch.Size([1, 3, 4096])
    """

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.model = Decoder(config)
        self.config = config

    def init_weights(self, generator: torch.Generator) -> None:
        """Fill every weight from `generator`; the two projections into the residual are scaled by 1/sqrt(2 layers)."""
        std = self.config.initializer_range
        residual_std = std / (2 * self.config.num_layers) ** 0.5
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                nn.init.ones_(parameter)
                continue
            into_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            nn.init.normal_(parameter, std=residual_std if into_residual else std, generator=generator)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits [batch, seq_len, vocab_size] for `input_ids`, [batch, seq_len], int64."""
        return F.linear(self.model(input_ids), self.model.embed_tokens.weight)

    def loss(self, input_ids: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats, a float32 scalar; `targets`: [batch, seq_len], int64, -100 is ignored."""
        logits = self(input_ids).float()
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
