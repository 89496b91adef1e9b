"""`sample`: one step of the whole batch. A row that cannot be sampled fails alone.

Order of operations as in vLLM: logprobs of the raw logits are what is reported; then allowed ids, grammars, banned ids,
bias and penalties; greedy rows take the largest; the others go through temperature, min_p, top_k and top_p to a random
choice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from quire.core.errors import ShapeError
from quire.core.log import get_logger
from quire.core.request import TokenLogprobs
from quire.sampling import compiled
from quire.sampling.choice import choose_greedily, choose_randomly
from quire.sampling.edits import apply_edits
from quire.sampling.grammar.compiler import Words
from quire.sampling.grammar.masks import masks_of
from quire.sampling.logprobs import token_logprobs
from quire.sampling.row import SampledToken, SamplingRow

_log = get_logger(__name__)
# Logits worked on at once, per thread: bounds the workspace (about 32 bytes each) and keeps it in the cache.
CHUNK_ELEMENTS = 1 << 18


def sample(logits: Tensor, rows: Sequence[SamplingRow]) -> list[SampledToken]:
    """Sample one token per row.

    What a row gets depends on its logits, parameters, seed and history alone, bit for bit. Rows are not told what they
    got: call `SamplingRow.append` when the token is accepted.

    Args:
        logits: [num_rows, vocab_size], floating; computed in float32. Not mutated.
        rows: One per row of `logits`.

    Returns:
        One result per row. A row whose logits hold NaN or infinity, that has no token left, that names a token
        outside the vocabulary, or with which anything else goes wrong carries an `error`.

    Raises:
        ShapeError: `logits` is not a floating matrix with one row per entry of `rows`.
    """
    return Sampler().sample(logits, rows)


class Sampler:
    """Samples as `sample` does, and looks at what rows ask for once, as long as the same rows come again."""

    def __init__(self) -> None:
        self._batch: compiled.Batch | None = None

    def sample(self, logits: Tensor, rows: Sequence[SamplingRow]) -> list[SampledToken]:
        """Sample one token per row; see the function `sample`."""
        if logits.ndim != 2 or logits.shape[0] != len(rows) or not logits.is_floating_point():
            raise ShapeError(
                f"logits: expected floating [{len(rows)}, vocab_size], got {logits.dtype} {list(logits.shape)}."
            )
        if not rows:
            return []
        try:
            if compiled.is_compiled(logits.device):
                return _sample_compiled(compiled.as_rows(logits), self._batch_of(rows, logits.shape[1]))
            return _sample(logits, rows)
        except Exception as error:
            if len(rows) > 1:  # a row gets the same alone: all but the one at fault
                return [sample(logits[index : index + 1], [row])[0] for index, row in enumerate(rows)]
            _log.exception("a row could not be sampled")
            return [SampledToken(-1, None, f"{type(error).__name__} while a token was chosen.")]

    def _batch_of(self, rows: Sequence[SamplingRow], vocab_size: int) -> compiled.Batch:
        batch = self._batch
        if batch is None or batch.rows != rows or batch.vocab_size != vocab_size:
            batch = self._batch = compiled.Batch(rows, vocab_size)
        return batch


def _sample(logits: Tensor, rows: Sequence[SamplingRow]) -> list[SampledToken]:
    step = rows_together(logits.shape[1], torch.get_num_threads())
    results: list[SampledToken] = []
    for start in range(0, len(rows), step):
        chunk = logits[start : start + step].to(torch.float32).contiguous()
        results += _sample_chunk(chunk, rows[start : start + step])
    return results


def _sample_compiled(logits: Tensor, batch: compiled.Batch) -> list[SampledToken]:
    """Return what `sample` does, by kernels that take all rows at once."""
    errors = batch.problems.copy()
    masks = _masks(batch.structured, errors)
    token_ids, largest = batch.choose(logits, masks, errors)
    if min(token_ids) < 0:
        for index, token_id in enumerate(token_ids):
            if token_id < 0 and errors[index] is None:
                errors[index] = _unusable(float(largest[index]))
    if not any(errors) and not batch.nums_logprobs:
        return list(map(SampledToken, token_ids))
    logprobs: dict[int, TokenLogprobs] = {}
    wanted = [index for index in batch.nums_logprobs if errors[index] is None]
    step = rows_together(logits.shape[1], torch.get_num_threads())
    for some in (wanted[start : start + step] for start in range(0, len(wanted), step)):
        nums = [batch.nums_logprobs[index] for index in some]
        entries = compiled.token_logprobs(_take(logits, some), [token_ids[index] for index in some], nums)
        logprobs |= zip(some, entries, strict=True)
    return [
        SampledToken(token_id, logprobs.get(index)) if error is None else SampledToken(-1, None, error)
        for index, (token_id, error) in enumerate(zip(token_ids, errors, strict=True))
    ]


def rows_together(vocab_size: int, num_threads: int) -> int:
    """Return how many rows are worked on at once where that takes memory."""
    return max(1, CHUNK_ELEMENTS * num_threads // max(1, vocab_size))


def _sample_chunk(logits: Tensor, rows: Sequence[SamplingRow]) -> list[SampledToken]:
    errors = [row.problem(logits.shape[1]) for row in rows]
    _find_unusable(logits, errors)
    edited = _edit(logits, rows, errors)
    token_ids = _choose(edited, rows, errors)
    logprobs = _logprobs(logits, rows, token_ids)
    return [SampledToken(token_ids.get(index, -1), logprobs.get(index), error) for index, error in enumerate(errors)]


def _find_unusable(logits: Tensor, errors: list[str | None]) -> None:
    """Write an error for every row from which nothing can be chosen. NaN wins every maximum, so one pass tells."""
    for index, largest in enumerate(logits.amax(-1).tolist()):
        if errors[index] is None and not math.isfinite(largest):
            errors[index] = _unusable(largest)


def _unusable(largest: float) -> str:
    """Return why nothing can be chosen from logits whose largest is not finite."""
    if largest == -math.inf:
        return "no token is left to sample: all logits are -inf. Relax allowed_token_ids, bad_words or min_tokens."
    return f"logits: expected finite numbers, got {largest}. Check the model's weights and the penalties."


def _edit(logits: Tensor, rows: Sequence[SamplingRow], errors: list[str | None]) -> Tensor:
    """Return the logits after the rows' edits: a copy if there are any. Rows left without a token get an error."""
    edits = {index: row for index, row in enumerate(rows) if row.has_edits and errors[index] is None}
    if not edits:
        return logits
    masks = _masks(edits, errors)
    edited = logits.clone()
    apply_edits(edited, {index: row for index, row in edits.items() if errors[index] is None}, masks)
    _find_unusable(edited, errors)
    return edited


def _masks(rows: Mapping[int, SamplingRow], errors: list[str | None]) -> dict[int, Words]:
    """Return what grammars allow, by index. Rows whose grammar fails get an error."""
    masks, problems = masks_of(rows)
    for index, problem in problems.items():
        errors[index] = problem
    return masks


def _choose(logits: Tensor, rows: Sequence[SamplingRow], errors: Sequence[str | None]) -> dict[int, int]:
    """Return the chosen token of every row without an error, by index."""
    usable = [index for index, error in enumerate(errors) if error is None]
    greedy = [index for index in usable if rows[index].params.is_greedy]
    random = [index for index in usable if not rows[index].params.is_greedy]
    chosen: dict[int, int] = {}
    if greedy:
        every = choose_greedily(logits)
        chosen |= {index: every[index] for index in greedy}
    if random:
        drawn = choose_randomly(_take(logits, random), [rows[index] for index in random])
        chosen |= dict(zip(random, drawn, strict=True))
    return chosen


def _logprobs(logits: Tensor, rows: Sequence[SamplingRow], token_ids: dict[int, int]) -> dict[int, TokenLogprobs]:
    """Return the raw logprobs of the rows that want them and have a token, by index."""
    nums = {index: num for index in token_ids if (num := rows[index].params.logprobs) is not None}
    if not nums:
        return {}
    entries = token_logprobs(_take(logits, list(nums)), [token_ids[index] for index in nums], list(nums.values()))
    return dict(zip(nums, entries, strict=True))


def _take(logits: Tensor, indices: list[int]) -> Tensor:
    """Return the rows of `logits` at `indices`, without a copy if that is all of them."""
    if indices == list(range(logits.shape[0])):
        return logits
    return logits.index_select(0, torch.tensor(indices, device=logits.device))
