"""From a step's rows to the tensors that the network takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from quire.core.request import ScheduledRow
from quire.runner.rows import Row


@dataclass(frozen=True, slots=True)
class StepInputs:
    """The network's inputs but for the KV caches, and where each row's logits are.

    Attributes:
        tensors: By input name, int32.
        prompt_logits: Per row the range of logits rows that belong to prompt positions (empty unless asked for).
        sampled_logits: Per row the logits row to sample from, -1 if none.
    """

    tensors: dict[str, torch.Tensor]
    prompt_logits: list[range]
    sampled_logits: list[int]


def build_inputs(scheduled: Sequence[ScheduledRow], rows: Sequence[Row], block_size: int) -> StepInputs:
    """Lay out a step.

    Args:
        scheduled: Each row's share.
        rows: The rows themselves, in the same order.
        block_size: Tokens in a KV cache block.
    """
    counts = np.array([s.num_scheduled_tokens for s in scheduled], dtype=np.int32)
    starts = np.array([s.num_computed_tokens for s in scheduled], dtype=np.int32)
    query_start_loc = np.zeros(len(counts) + 1, dtype=np.int32)
    np.cumsum(counts, out=query_start_loc[1:])
    positions = np.arange(query_start_loc[-1], dtype=np.int32) + np.repeat(starts - query_start_loc[:-1], counts)
    input_ids = np.concatenate(
        [r.token_ids[s.num_computed_tokens : s.num_computed_tokens + s.num_scheduled_tokens]
         for s, r in zip(scheduled, rows, strict=True)]
    ).astype(np.int32)  # fmt: skip
    seq_lens = starts + counts
    table = _block_table(rows, seq_lens, block_size)
    row_of_token = np.repeat(np.arange(len(rows)), counts)
    slots = table[row_of_token, positions // block_size] * block_size + positions % block_size
    prompt_logits, sampled_logits, logits_indices = _wanted_logits(scheduled, rows, query_start_loc)
    arrays = {
        "input_ids": input_ids,
        "positions": positions,
        "slot_mapping": slots.astype(np.int32),
        "block_table": table,
        "seq_lens": seq_lens,
        "query_start_loc": query_start_loc,
        "logits_indices": np.array(logits_indices, dtype=np.int32),
    }
    return StepInputs({k: torch.from_numpy(a) for k, a in arrays.items()}, prompt_logits, sampled_logits)


def _block_table(rows: Sequence[Row], seq_lens: np.ndarray, block_size: int) -> np.ndarray:
    """Return [num_rows, max_blocks] int32, padded with block 0."""
    used = -(-seq_lens // block_size)
    table = np.zeros((len(rows), int(used.max())), dtype=np.int32)
    for i, row in enumerate(rows):
        table[i, : used[i]] = row.block_table[: used[i]]
    return table


def _wanted_logits(
    scheduled: Sequence[ScheduledRow], rows: Sequence[Row], query_start_loc: np.ndarray
) -> tuple[list[range], list[int], list[int]]:
    """Choose the tokens whose logits are needed: prompt positions if asked for, and the last of sampled rows."""
    prompt_logits: list[range] = []
    sampled_logits: list[int] = []
    indices: list[int] = []
    for s, row, start in zip(scheduled, rows, query_start_loc.tolist(), strict=False):
        first = len(indices)
        if row.sampling.params.prompt_logprobs is not None:
            until = min(s.num_computed_tokens + s.num_scheduled_tokens, row.num_prompt_tokens - 1)
            indices.extend(range(start, start + max(0, until - s.num_computed_tokens)))
        prompt_logits.append(range(first, len(indices)))
        sampled_logits.append(len(indices) if s.is_sampled else -1)
        if s.is_sampled:
            indices.append(start + s.num_scheduled_tokens - 1)
    return prompt_logits, sampled_logits, indices
