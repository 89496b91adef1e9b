"""Layers: ops with their weights, for writing models. A layer is named as in the checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from quire.graph import functional as F
from quire.graph.network import Tensor, current_network


@dataclass(frozen=True, slots=True)
class Linear:
    """`x @ weight.T + bias` with `<name>.weight` [out_features, in_features] and `<name>.bias`.

    Attributes:
        name: Prefix in the checkpoint.
        in_features: Width of x.
        out_features: Width of the result.
        dtype: Of the weights.
        bias: Whether there is a bias.
        is_transposed: Whether the checkpoint stores [in_features, out_features], as GPT-2 does.
    """

    name: str
    in_features: int
    out_features: int
    dtype: str
    bias: bool = False
    is_transposed: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to [*rows, in_features]; returns [*rows, out_features]."""
        network = current_network()
        shape = (self.out_features, self.in_features)
        stored = shape[::-1] if self.is_transposed else shape
        weight = network.add_weight(f"{self.name}.weight", self.dtype, stored)
        if self.is_transposed:
            weight = weight.permute(1, 0)
        bias = network.add_weight(f"{self.name}.bias", self.dtype, (self.out_features,)) if self.bias else None
        return F.linear(x, weight, bias)


@dataclass(frozen=True, slots=True)
class Embedding:
    """Rows of `<name>.weight` [num_rows, width]."""

    name: str
    num_rows: int
    width: int
    dtype: str

    @property
    def weight(self) -> Tensor:
        """The table, for example to tie the output projection to it."""
        return current_network().add_weight(f"{self.name}.weight", self.dtype, (self.num_rows, self.width))

    def __call__(self, ids: Tensor) -> Tensor:
        """Look up [*rows] ids; returns [*rows, width]."""
        return F.embedding(ids, self.weight)


@dataclass(frozen=True, slots=True)
class RmsNorm:
    """Root mean square norm over the last dimension with `<name>.weight` [width]."""

    name: str
    width: int
    eps: float
    dtype: str

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise [*rows, width]."""
        return F.rms_norm(x, current_network().add_weight(f"{self.name}.weight", self.dtype, (self.width,)), self.eps)


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """Layer norm over the last dimension with `<name>.weight` and `<name>.bias` [width]."""

    name: str
    width: int
    eps: float
    dtype: str

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise [*rows, width]."""
        network = current_network()
        weight = network.add_weight(f"{self.name}.weight", self.dtype, (self.width,))
        bias = network.add_weight(f"{self.name}.bias", self.dtype, (self.width,))
        return F.layer_norm(x, weight, bias, self.eps)


@dataclass(frozen=True, slots=True)
class AttentionInputs:
    """The inputs of a step that every attention layer reads.

    Attributes:
        positions: [num_tokens], int32: position of each token in its sequence.
        slot_mapping: [num_tokens], int32: KV cache slot of each token.
        block_table: [num_seqs, max_blocks], int32.
        seq_lens: [num_seqs], int32.
        query_start_loc: [num_boundaries], int32, num_seqs + 1 of them.
    """

    positions: Tensor
    slot_mapping: Tensor
    block_table: Tensor
    seq_lens: Tensor
    query_start_loc: Tensor


@dataclass(frozen=True, slots=True)
class Attention:
    """Write this step's keys and values into the layer's KV cache, then attend over it.

    Attributes:
        layer: Index of the layer; its cache is the input `kv_cache.<layer>`.
        num_heads: Query heads.
        num_kv_heads: Key and value heads.
        head_dim: Width of a head.
        scale: Multiplies the scores.
        window: How many latest positions a query sees; None sees all.
    """

    layer: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int | None = None

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, kv_cache: Tensor, step: AttentionInputs) -> Tensor:
        """Attend with [num_tokens, heads, head_dim] tensors; returns [num_tokens, num_heads * head_dim]."""
        F.append_kv(key, value, kv_cache, step.slot_mapping)
        out = F.attention(
            query, kv_cache, step.block_table, step.seq_lens, step.query_start_loc, self.scale, self.window
        )
        return out.view(-1, self.num_heads * self.head_dim)


@dataclass(frozen=True, slots=True)
class MLP:
    """`down(act(up(x)))`."""

    up: Linear
    down: Linear
    act: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to [*rows, hidden_size]."""
        return self.down(self.act(self.up(x)))


@dataclass(frozen=True, slots=True)
class GatedMLP:
    """`down(act(gate(x)) * up(x))` (Shazeer 2020, https://arxiv.org/abs/2002.05202)."""

    gate: Linear
    up: Linear
    down: Linear
    act: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to [*rows, hidden_size]."""
        return self.down(self.act(self.gate(x)) * self.up(x))
