"""A mixture of experts by the same packed products as a linear layer, so that every token keeps its bits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from quire.ops.cpu import linear
from quire.ops.cpu.elementwise import silu
from quire.ops.cpu.linear import PackedLinear


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
