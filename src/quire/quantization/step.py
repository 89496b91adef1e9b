"""The inputs of one step of a decoder, made up for measuring: whole sequences from their first token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from quire.graph.network import Network
from quire.graph.nodes import spec

BLOCK_SIZE = 16


def step_inputs(network: Network, batch: Sequence[Sequence[int]]) -> dict[fx.Node, torch.Tensor]:
    """Return the values of a step's inputs by node, KV caches excepted.

    Args:
        network: A decoder; with the input `logits_indices`, logits of all tokens are asked for.
        batch: Token ids of each sequence, at least one each.
    """
    lens = [len(sample) for sample in batch]
    blocks = [-(-length // BLOCK_SIZE) for length in lens]
    table = torch.zeros(len(batch), max(blocks), dtype=torch.int32)
    slots, next_block = [], 1
    for row, (length, count) in enumerate(zip(lens, blocks, strict=True)):
        table[row, :count] = torch.arange(next_block, next_block + count)
        slots.append(torch.arange(length) + next_block * BLOCK_SIZE)
        next_block += count
    values = {
        "input_ids": torch.tensor([token for sample in batch for token in sample]),
        "positions": torch.cat([torch.arange(length) for length in lens]),
        "slot_mapping": torch.cat(slots),
        "block_table": table,
        "seq_lens": torch.tensor(lens),
        "query_start_loc": torch.tensor([0, *lens]).cumsum(0),
        "logits_indices": torch.arange(sum(lens)),
    }
    nodes = {str(node.target): node for node in network.graph.nodes if node.op == "placeholder"}
    return {nodes[name]: value.int() for name, value in values.items() if name in nodes}


def kv_cache(node: fx.Node, inputs: Mapping[fx.Node, Any]) -> torch.Tensor:
    """Return an empty KV cache of the declared shape with as many blocks as the step's block table names."""
    table = next(value for key, value in inputs.items() if key.target == "block_table")
    sizes = {"num_blocks": int(table.max()) + 1, "block_size": BLOCK_SIZE}
    declared = spec(node)
    shape = [size if isinstance(size, int) else sizes[size] for size in declared.shape]
    return torch.zeros(shape, dtype=declared.dtype)
