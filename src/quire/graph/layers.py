"""Layers: ops with their weights, for writing models. A layer is named as in the checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from quire.core.errors import ShapeError
from quire.graph import functional as F
from quire.graph.network import Tensor, all_or_nothing, current_network


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

    shards: ClassVar[tuple[int | None, int | None]] = None, None
    """Dimensions of [out_features, in_features] and of the bias along which ranks share them; None: each holds all."""

    @all_or_nothing
    def __call__(self, x: Tensor) -> Tensor:
        """Apply to [*rows, in_features]; returns [*rows, out_features]."""
        network = current_network()
        shape, (shard_dim, bias_shard_dim) = (self.out_features, self.in_features), self.shards
        if self.is_transposed:
            stored_dim = None if shard_dim is None else 1 - shard_dim
            weight = network.add_weight(f"{self.name}.weight", self.dtype, shape[::-1], stored_dim).permute(1, 0)
        else:
            weight = network.add_weight(f"{self.name}.weight", self.dtype, shape, shard_dim)
        bias = None
        if self.bias:
            bias = network.add_weight(f"{self.name}.bias", self.dtype, (self.out_features,), bias_shard_dim)
        return F.linear(x, weight, bias)


@dataclass(frozen=True, slots=True)
class ColumnLinear(Linear):
    """A `Linear` whose output channels ranks share under tensor parallelism, such as q_proj or up_proj.

    On one rank it is a `Linear`. What differs is a mark on its weights, `shard_dim` 0, by which they can be cut when a
    Plan is loaded; it is kept, saved included, as long as the weights are the checkpoint's own.
    """

    shards: ClassVar[tuple[int | None, int | None]] = 0, 0


@dataclass(frozen=True, slots=True)
class RowLinear(Linear):
    """A `Linear` whose input channels ranks share under tensor parallelism, such as o_proj or down_proj.

    On one rank it is a `Linear`. What differs is a mark on its weight, `shard_dim` 1, by which it can be cut when a
    Plan is loaded; it is kept, saved included, as long as the weight is the checkpoint's own. The ranks' results are to
    be summed, and the bias, which is not cut, added once.
    """

    shards: ClassVar[tuple[int | None, int | None]] = 1, None


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

    @all_or_nothing
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

    @all_or_nothing
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

    @all_or_nothing
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
class DecoderInputs:
    """All that a runtime gives a decoder in a step.

    Attributes:
        input_ids: [num_tokens], int32: new tokens of all sequences, one sequence after the other.
        step: What attention reads.
        kv_caches: Per layer [2, num_blocks, num_kv_heads, block_size, head_dim].
    """

    input_ids: Tensor
    step: AttentionInputs
    kv_caches: tuple[Tensor, ...]

    @classmethod
    @all_or_nothing
    def declare(cls, num_layers: int, num_kv_heads: int, head_dim: int, dtype: str) -> DecoderInputs:
        """Declare them in the current network, under the names by which the runtime gives them.

        Args:
            num_layers: Layers with attention; the cache of each is the input `kv_cache.<layer>`.
            num_kv_heads: Key and value heads.
            head_dim: Width of a head.
            dtype: Of keys and values.
        """
        input_ids = Tensor("input_ids", "int32", ("num_tokens",))
        step = AttentionInputs(
            positions=Tensor("positions", "int32", ("num_tokens",)),
            slot_mapping=Tensor("slot_mapping", "int32", ("num_tokens",)),
            block_table=Tensor("block_table", "int32", ("num_seqs", "max_blocks")),
            seq_lens=Tensor("seq_lens", "int32", ("num_seqs",)),
            query_start_loc=Tensor("query_start_loc", "int32", ("num_boundaries",)),
        )
        shape = (2, "num_blocks", num_kv_heads, "block_size", head_dim)
        caches = tuple(Tensor(f"kv_cache.{layer}", dtype, shape) for layer in range(num_layers))
        return cls(input_ids, step, caches)


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

    @all_or_nothing
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

    @all_or_nothing
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

    @all_or_nothing
    def __call__(self, x: Tensor) -> Tensor:
        """Apply to [*rows, hidden_size]."""
        return self.down(self.act(self.gate(x)) * self.up(x))


@dataclass(frozen=True, slots=True)
class MOE:
    """A mixture of experts: a router chooses `top_k` gated MLPs for each token, and their results are weighed.

    Weights are `<name>.gate.weight` of the router, and `<name>.experts.<expert>.<projection>.weight` of each expert.

    Attributes:
        name: Prefix in the checkpoint.
        hidden_size: Width of x and of the result.
        intermediate_size: Width inside an expert.
        num_experts: How many there are.
        top_k: How many a token is given to.
        dtype: Of the weights.
        is_normalized: Whether the weights of the chosen experts are made to sum to 1.
        projections: Names of an expert's gate, up and down projection in the checkpoint.
    """

    name: str
    hidden_size: int
    intermediate_size: int
    num_experts: int
    top_k: int
    dtype: str
    is_normalized: bool = True
    projections: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= self.num_experts:
            raise ShapeError(f"{self.name}: expected top_k in [1, num_experts={self.num_experts}], got {self.top_k}.")

    @all_or_nothing
    def __call__(self, x: Tensor) -> Tensor:
        """Apply to [num_tokens, hidden_size].

        Router probabilities are a softmax in float32. Normalised, those of the chosen experts are the softmax over the
        chosen experts' logits alone.
        """
        logits = Linear(f"{self.name}.gate", self.hidden_size, self.num_experts, self.dtype)(x).cast("float32")
        chosen, expert_ids = F.topk(logits if self.is_normalized else F.softmax(logits), self.top_k)
        expert_weights = F.softmax(chosen) if self.is_normalized else chosen
        wide, narrow = self.intermediate_size, self.hidden_size
        shapes = ((wide, narrow), (wide, narrow), (narrow, wide))
        stacked = (self._stack(*pair) for pair in zip(self.projections, shapes, strict=True))
        return F.moe(x, expert_ids, expert_weights, *stacked)

    def _stack(self, projection: str, shape: tuple[int, int]) -> Tensor:
        """Return the weights of one projection of all experts, [num_experts, out_features, in_features]."""
        network, names = current_network(), (f"{self.name}.experts.{i}.{projection}" for i in range(self.num_experts))
        weights = [network.add_weight(f"{name}.weight", self.dtype, shape) for name in names]
        return F.concat(weights, 0).view(self.num_experts, *shape)
