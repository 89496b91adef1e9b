"""Logprobs of the model's own logits: before penalties, bias, temperature and filters (vLLM's "raw_logprobs")."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quire.core.errors import RequestError, ShapeError
from quire.core.request import TokenLogprobs
from quire.sampling import compiled

CHUNK_ELEMENTS = 1 << 21  # float32 workspace of 8 MiB, for prompts of any length


def prompt_logprobs(logits: Tensor, next_token_ids: Sequence[int], num_logprobs: int) -> list[TokenLogprobs]:
    """Return the logprobs of a prompt's tokens.

    Args:
        logits: [num_tokens, vocab_size], floating. Row `i` predicts `next_token_ids[i]`.
        next_token_ids: The prompt's tokens, each one position after its logits.
        num_logprobs: How many most likely tokens to report beside the actual one; -1 reports the vocabulary.

    Raises:
        RequestError: A token is outside the vocabulary, or the model produced NaN or infinity.
        ShapeError: The number of rows differs from the number of tokens.
    """
    if logits.ndim != 2 or logits.shape[0] != len(next_token_ids):
        raise ShapeError(f"logits: expected [{len(next_token_ids)}, vocab_size], got {list(logits.shape)}.")
    vocab_size = logits.shape[1]
    for token_id in next_token_ids:
        if not 0 <= token_id < vocab_size:
            raise RequestError(f"prompt token: expected an id in [0, {vocab_size}), got {token_id}.")
    step = max(1, CHUNK_ELEMENTS // max(1, vocab_size))
    entries: list[TokenLogprobs] = []
    for start in range(0, len(next_token_ids), step):
        entries += _finite_logprobs(logits[start : start + step], next_token_ids[start : start + step], num_logprobs)
    return entries


def _finite_logprobs(logits: Tensor, token_ids: Sequence[int], num_logprobs: int) -> list[TokenLogprobs]:
    rows = logits.to(torch.float32)
    if not all(math.isfinite(largest) for largest in rows.amax(-1).tolist()):
        raise RequestError("prompt_logprobs: expected finite logits, got NaN or infinity. Check the model's weights.")
    report = compiled.token_logprobs if compiled.is_compiled(rows.device) else token_logprobs
    return report(compiled.as_rows(rows), token_ids, [num_logprobs] * len(token_ids))


def token_logprobs(logits: Tensor, token_ids: Sequence[int], nums_logprobs: Sequence[int]) -> list[TokenLogprobs]:
    """Return for each row the logprobs of one token and of the most likely ones, ties in order of id.

    Args:
        logits: [num_rows, vocab_size], float32. The largest of each row is finite.
        token_ids: The token to report first, one per row.
        nums_logprobs: How many most likely tokens follow, one per row; -1 for the vocabulary.
    """
    vocab_size = logits.shape[1]
    nums = [vocab_size if num < 0 else min(num, vocab_size) for num in nums_logprobs]
    logprobs = torch.log_softmax(logits, dim=-1)
    cutoffs = _cutoffs(logprobs, nums)
    table = logprobs.cpu().numpy()
    return [
        _entry(values, token_id, num, cutoff)
        for values, token_id, num, cutoff in zip(table, token_ids, nums, cutoffs, strict=True)
    ]


def _cutoffs(logprobs: Tensor, nums: Sequence[int]) -> list[float]:
    """Return the `num`-th largest logprob of each row, -inf where the whole vocabulary is wanted."""
    vocab_size = logprobs.shape[1]
    most = max((num for num in nums if num < vocab_size), default=0)
    if most == 0:
        return [-math.inf] * len(nums)
    largest = logprobs.topk(most).values.tolist()
    return [row[num - 1] if 0 < num < vocab_size else -math.inf for row, num in zip(largest, nums, strict=True)]


def _entry(values: npt.NDArray[np.float32], token_id: int, num: int, cutoff: float) -> TokenLogprobs:
    """Return one position's entry; a rank is 1 + the number of strictly more likely tokens."""
    own = values[token_id]
    rank = 1 + int(np.count_nonzero(values > own))
    if num == 0:
        return TokenLogprobs((token_id,), (float(own),), (rank,))
    candidates = np.flatnonzero(values >= np.float32(cutoff))
    best = candidates[np.argsort(-values[candidates], kind="stable")[:num]]
    best_values = values[best]
    ranks = 1 + np.searchsorted(-best_values, -best_values, side="left")
    return TokenLogprobs((token_id, *best.tolist()), (float(own), *best_values.tolist()), (rank, *ranks.tolist()))
