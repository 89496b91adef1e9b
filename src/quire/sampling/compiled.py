"""The choice and the logprobs by compiled kernels: the same order of operations, one pass over a row for each step.

Weights are whole numbers here too, of `exp((logit - largest) / temperature)`; only the exponential is not torch's, so a
weight may differ in its last bits, and with it a token if a random number falls just between two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quire.core.request import TokenLogprobs
from quire.ops.native.library import call, kernel_names, operand, run
from quire.ops.spec import FLOATS
from quire.sampling.grammar.compiler import Words
from quire.sampling.random_bits import random_bits_of, stream_start
from quire.sampling.row import SamplingRow

EDIT_BYTES = 8 + 1 + 4
"""Of one edit of a logit: which token, its kind and its value."""

_KEEP, _BAN, _ADD, _PENALIZE = range(4)

Array = npt.NDArray[np.generic]


def is_compiled(device: torch.device) -> bool:
    """Return whether there are kernels for logits on a device."""
    return device.type == "cpu" and "choose_tokens" in kernel_names()


def as_rows(logits: Tensor) -> Tensor:
    """Return logits as kernels take them: rows contiguous, in a dtype that they know."""
    known = logits if logits.dtype in FLOATS else logits.float()
    return known if known.stride(1) == 1 else known.contiguous()


class Batch:
    """What rows ask for, as kernels take it: found once, and used as long as the same rows are sampled.

    Args:
        rows: One per row of logits.
        vocab_size: Logits of a row.

    Attributes:
        rows: As given.
        vocab_size: As given.
        problems: By row why it cannot be sampled, None if it can.
        structured: Rows that have a grammar, by index; like the next one without those that have a problem.
        nums_logprobs: How many logprobs rows want, by index of those that want any.
    """

    def __init__(self, rows: Sequence[SamplingRow], vocab_size: int) -> None:
        self.rows, self.vocab_size = list(rows), vocab_size
        self.problems = [row.problem(vocab_size) for row in rows]
        usable = {index: row for index, row in enumerate(rows) if self.problems[index] is None}
        self.structured = {index: row for index, row in usable.items() if row.grammar is not None}
        self.nums_logprobs = {index: num for index, row in usable.items() if (num := row.params.logprobs) is not None}
        self._is_edited = any(row.has_edits for row in usable.values())
        self._random = {index: row for index, row in usable.items() if not row.params.is_greedy}
        self._starts = np.array([stream_start(row.params.seed or 0) for row in self._random.values()], dtype=np.uint64)
        self._places = np.array(list(self._random), dtype=np.int64)
        self._ids, self._largest = np.empty(len(rows), dtype=np.int64), np.empty(len(rows), dtype=np.float32)
        reals = np.zeros((3, len(rows)), dtype=np.float64)
        self._integers = np.zeros((2, len(rows)), dtype=np.uint64)
        for index, row in self._random.items():
            reals[:, index] = row.params.temperature, row.params.top_p, row.params.min_p
            self._integers[0, index] = max(0, row.params.top_k)
        arrays = self._ids, self._largest, reals.view(np.int64), self._integers.view(np.int64)
        self._tensors = [torch.from_numpy(array) for array in arrays]  # their memory is what the operands are
        self._operands = [operand(tensor) for tensor in self._tensors]

    def choose(
        self, logits: Tensor, masks: Mapping[int, Words], errors: Sequence[str | None]
    ) -> tuple[list[int], npt.NDArray[np.float32]]:
        """Return the chosen token of each row, -1 where there is none, and the largest logit that was left.

        Args:
            logits: [num_rows, vocab_size], float32 | bfloat16 | float16, rows contiguous.
            masks: What grammars allow, by index: a bit for each token.
            errors: By row why its choice is not wanted, None if it is.
        """
        if self._random:
            positions = [len(row.output_token_ids) for row in self._random.values()]
            self._integers[1, self._places] = random_bits_of(self._starts, np.array(positions, dtype=np.uint64))
        edits: list[Tensor | None] = [None] * 5
        if self._is_edited:
            wanted = [row if error is None else None for row, error in zip(self.rows, errors, strict=True)]
            edits = _edits(wanted, masks, self.vocab_size)
        results, parameters = self._operands[:2], self._operands[2:]
        operands = [*results, operand(logits), *parameters, *(operand(tensor) for tensor in edits)]
        run("choose_tokens", operands, num_threads=_num_threads(len(self.rows)))
        return self._ids.tolist(), self._largest


def _edits(rows: Sequence[SamplingRow | None], masks: Mapping[int, Words], vocab_size: int) -> list[Tensor | None]:
    """Return starts, ids, kinds, values and penalties as the kernel takes them."""
    parts: list[tuple[Array, int, Array | float]] = []
    counts, penalties = [0], np.ones((len(rows), 3), dtype=np.float32)
    for index, row in enumerate(rows):
        own = [] if row is None else _of_row(row, masks.get(index), vocab_size)
        parts += own
        counts.append(sum(len(ids) for ids, _, _ in own))
        if row is not None and row.counts is not None:
            params = row.params
            penalties[index] = params.repetition_penalty, params.frequency_penalty, params.presence_penalty
    ids = np.concatenate([np.asarray(ids, dtype=np.int64) for ids, _, _ in parts] or [np.zeros(0, dtype=np.int64)])
    kinds, values = np.empty(len(ids), dtype=np.uint8), np.zeros(len(ids), dtype=np.float32)
    start = 0
    for part, kind, value in parts:
        kinds[start : start + len(part)] = kind
        values[start : start + len(part)] = value
        start += len(part)
    return [torch.from_numpy(array) for array in (np.cumsum(counts), ids, kinds, values, penalties)]


def _of_row(row: SamplingRow, mask: Words | None, vocab_size: int) -> list[tuple[Array, int, Array | float]]:
    """Return ids, kind and values of what a row asks for, in the order in which it is done."""
    found: list[tuple[Array, int, Array | float]] = []
    if mask is not None:
        found.append(_of_mask(row, mask, vocab_size))
    elif row.allowed is not None:
        found.append((row.allowed, _KEEP, 0.0))
    found.append((row.banned_ids(), _BAN, 0.0))
    if row.bias is not None:
        found.append((row.bias[0], _ADD, row.bias[1]))
    if row.counts is not None:
        found.append((row.counts.token_ids, _PENALIZE, row.counts.counts))
    return found


def _of_mask(row: SamplingRow, mask: Words, vocab_size: int) -> tuple[Array, int, float]:
    """Return a mask, and what the row allows beside it, as the shorter of two lists: what is kept, or what is not."""
    is_kept = np.unpackbits(mask.view(np.uint8), count=vocab_size, bitorder="little").astype(np.bool_)
    if row.allowed is not None:
        is_kept &= np.isin(np.arange(vocab_size), row.allowed)
    kept = np.flatnonzero(is_kept)
    if 0 < len(kept) < vocab_size // 2:  # an empty list would keep everything
        return kept, _KEEP, 0.0
    return np.flatnonzero(~is_kept), _BAN, 0.0


def token_logprobs(logits: Tensor, token_ids: Sequence[int], nums_logprobs: Sequence[int]) -> list[TokenLogprobs]:
    """Return for each row the logprobs of one token and of the most likely ones, ties in order of id.

    Args:
        logits: [num_rows, vocab_size], float32 | bfloat16 | float16, rows contiguous. The largest of each is finite.
        token_ids: The token to report first, one per row.
        nums_logprobs: How many most likely tokens follow, one per row; -1 for the vocabulary.
    """
    vocab_size = logits.shape[1]
    nums = [vocab_size if num < 0 else min(num, vocab_size) for num in nums_logprobs]
    shape = len(nums), 1 + max(nums, default=0)
    ids, ranks = torch.empty(shape, dtype=torch.int64), torch.empty(shape, dtype=torch.int64)
    logprobs = torch.empty(shape)
    tensors = [ids, logprobs, ranks, logits, torch.tensor(token_ids), torch.tensor(nums)]
    call("token_logprobs", tensors, num_threads=_num_threads(len(nums)))
    entries = zip(ids.tolist(), logprobs.tolist(), ranks.tolist(), nums, strict=True)
    return [TokenLogprobs(*(tuple(each[: 1 + num]) for each in parts)) for *parts, num in entries]


def _num_threads(num_rows: int) -> int:
    """Return as many threads as have a row to work on: a team that waits for a core costs more than a row."""
    return max(1, min(torch.get_num_threads(), num_rows))


def scratch_bytes(vocab_size: int, num_threads: int) -> int:
    """Return what the kernels hold: by thread a row three times in float32, and three times in int64."""
    return num_threads * 36 * (vocab_size + 128)
