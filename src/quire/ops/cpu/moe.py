"""A mixture of experts by the same packed products as a linear layer, so that every token keeps its bits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from quire.ops.cpu import linear
from quire.ops.cpu.elementwise import silu, silu_bytes
from quire.ops.cpu.linear import PackedLinear
from quire.ops.spec import TensorLike, TensorSpec, num_bytes, sizes_of


class PackedExpert(NamedTuple):
    """The three weights of one expert."""

    gate: PackedLinear
    up: PackedLinear
    down: PackedLinear


def pack(gate: Tensor, up: Tensor, down: Tensor) -> tuple[PackedExpert, ...]:
    """Pack the stacked weights [num_experts, out_features, in_features] expert by expert."""
    return tuple(PackedExpert(*map(linear.pack, weights)) for weights in zip(gate, up, down, strict=True))


def run(
    x: Tensor, expert_ids: Tensor, expert_weights: Tensor, gate: tuple[PackedExpert, ...], up: None, down: None
) -> Tensor:
    """Return each token's weighted sum of experts; see `ops.linear.moe`."""
    out = torch.zeros(x.shape, dtype=torch.float32)
    for index, expert in enumerate(gate):
        tokens, places = (expert_ids == index).nonzero(as_tuple=True)
        if len(tokens) == 0:
            continue
        chosen = x[tokens]
        inner = silu(linear.run(chosen, expert.gate)) * linear.run(chosen, expert.up)
        scaled = linear.run(inner, expert.down).float() * expert_weights[tokens, places].unsqueeze(-1)
        out.index_add_(0, tokens, scaled)
    return out.to(x.dtype)


def packed_bytes(gate: TensorLike, up: TensorLike, down: TensorLike) -> int | None:
    """Return the bytes of all packed experts; None if they keep the weights as they are."""
    sizes = [linear.packed_bytes(_expert(weight)) for weight in (gate, up, down)]
    return None if None in sizes else sizes_of(gate)[0] * sum(size for size in sizes if size is not None)


def moe_bytes(x: TensorLike, expert_ids: TensorLike, gate: TensorLike, down: TensorLike, **rest: object) -> int:
    """Return the most bytes that `run` holds when one expert gets all tokens."""
    inner = TensorSpec((*sizes_of(x)[:-1], sizes_of(gate)[1]), x.dtype)
    kept = num_bytes(x, torch.float32) + num_bytes(x) + 17 * num_bytes(expert_ids) // expert_ids.dtype.itemsize
    widening = linear.linear_bytes(x, _expert(gate)) + silu_bytes(inner)
    narrowing = linear.linear_bytes(inner, _expert(down)) + 2 * num_bytes(x, torch.float32)
    return kept + num_bytes(inner) + max(widening, narrowing)


def _expert(weights: TensorLike) -> TensorSpec:
    return TensorSpec(sizes_of(weights)[1:], weights.dtype)
