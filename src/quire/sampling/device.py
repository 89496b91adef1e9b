"""`SamplingState`: what a GPU knows of running samples, so that a step needs nothing from the host but who is in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quire.core.errors import RequestError
from quire.core.request import TokenLogprobs
from quire.ops.triton.step import sampling as kernels
from quire.ops.triton.step.sampling_kernels import ALLOWED, FIELDS, LISTED, NOT_FINITE, PENALTIES, SEEN_IN_PROMPT
from quire.sampling.grammar.compiler import Words, num_words
from quire.sampling.row import SampledToken, SamplingRow

_Words = npt.NDArray[np.int64]
_LARGEST_COUNT = (1 << 15) - 1


class SamplingState:
    """Owns the parameters and histories of rows on a device, by slot.

    A row is told once with `set_row`; the device counts its tokens itself from then on. Tables for penalties and for
    allowed ids are made when the first row needs them, or with `allocate_edits` before graphs are captured.

    Args:
        max_rows: Number of slots.
        vocab_size: Logits of a row.
        device: Where the logits will be.
    """

    def __init__(self, max_rows: int, vocab_size: int, device: torch.device | str) -> None:
        self._sizes = (max_rows, vocab_size)
        self._device = torch.device(device)
        self._parameters = torch.zeros(max_rows, len(FIELDS), dtype=torch.int64, device=self._device)
        self._counts: Tensor | None = None
        self._masks: Tensor | None = None
        self._staged: dict[int, SamplingRow] = {}

    def set_row(self, slot: int, row: SamplingRow) -> None:
        """Put a sample, as it is now, into a slot; the device learns of it before the next `sample`.

        Raises:
            RequestError: It names a token outside the vocabulary, or asks for more logprobs than a device reports.
        """
        problem = row.problem(self._sizes[1])
        if problem is not None:
            raise RequestError(problem)
        num_logprobs = row.params.logprobs or 0
        if not 0 <= num_logprobs <= kernels.MAX_LOGPROBS:
            raise RequestError(f"logprobs: expected at most {kernels.MAX_LOGPROBS} on a GPU, got {num_logprobs}.")
        self._staged[slot] = row

    def num_bytes(self) -> int:
        """Return the bytes held on the device."""
        return sum(t.nbytes for t in (self._parameters, self._counts, self._masks) if t is not None)

    def allocate_edits(self) -> None:
        """Make the tables that rows with penalties or allowed ids need."""
        max_rows, vocab_size = self._sizes
        if self._counts is None:
            self._counts = torch.zeros(max_rows, vocab_size, dtype=torch.int16, device=self._device)
        if self._masks is None:
            self._masks = torch.zeros(max_rows, num_words(vocab_size), dtype=torch.int32, device=self._device)

    def flush(self) -> None:
        """Send what `set_row` staged: one copy from pinned memory, and its parts into their tables."""
        if not self._staged:
            return
        rows, self._staged = self._staged, {}
        penalized = {slot: row for slot, row in rows.items() if row.counts is not None}
        allowed = {slot: row.allowed for slot, row in rows.items() if row.allowed is not None}
        if penalized or allowed:
            self.allocate_edits()
        slots, parameters, counted, flat, counts, masked, words = self._upload(
            np.fromiter(rows, np.int64),
            np.concatenate([_parameters(row) for row in rows.values()]),
            np.fromiter(penalized, np.int64),
            *_counts(penalized, self._sizes[1]),
            np.fromiter(allowed, np.int64),
            np.concatenate([_mask(ids, self._sizes[1]) for ids in allowed.values()] or [_words()]),
        )
        self._parameters.index_copy_(0, slots, parameters.view(len(rows), -1))
        if self._counts is not None and penalized:
            self._counts.index_fill_(0, counted, 0)
            self._counts.view(-1).index_copy_(0, flat, counts.to(torch.int16))
        if self._masks is not None and allowed:
            self._masks.index_copy_(0, masked, words.to(torch.int32).view(len(allowed), -1))

    def set_masks(self, rows: Mapping[int, SamplingRow], masks: Sequence[Words]) -> None:
        """Send what grammars allow in the next `sample`, after `flush`.

        Args:
            rows: By slot.
            masks: One for each of them.
        """
        self.allocate_edits()
        assert self._masks is not None
        allowed = [
            words if row.allowed is None else words & _mask(row.allowed, self._sizes[1]).astype(np.int32)
            for row, words in zip(rows.values(), masks, strict=True)
        ]
        slots = self._on_device(torch.from_numpy(np.fromiter(rows, np.int64)))
        self._masks.index_copy_(0, slots, self._on_device(torch.from_numpy(np.stack(allowed))))

    def sample(
        self, logits: Tensor, slots: Tensor, kinds: kernels.Kinds, edits: kernels.Edits | None = None
    ) -> kernels.Sampled:
        """Sample one token per row; see `ops.triton.step.sampling.sample`. May be captured in a graph after `flush`."""
        self.flush()
        state = kernels.RowState(self._parameters)
        if kinds.is_edited:
            state = kernels.RowState(self._parameters, self._counts, self._masks)
        return kernels.sample(logits, slots, state, kinds, edits)

    def edits_of(self, rows: Mapping[int, SamplingRow]) -> kernels.Edits | None:
        """Return this step's biases and bans, on the device; None if there are none.

        Bad words and `min_tokens` look at the tokens that the host knows of: whoever runs ahead of it waits for rows
        that have them.

        Args:
            rows: By index into the logits.
        """
        entries = [(index, *pair) for index, row in rows.items() for pair in _listed(row)]
        if not entries:
            return None
        indices, ids = (np.concatenate([np.broadcast_to(e[k], len(e[1])) for e in entries]) for k in (0, 1))
        values = np.concatenate([e[2] for e in entries]).astype(np.float32).view(np.int32).astype(np.int64)
        on_device = self._upload(indices.astype(np.int64), ids.astype(np.int64), values)
        rows_, token_ids, bits = (words.to(torch.int32) for words in on_device)
        return kernels.Edits(rows_, token_ids, bits.view(torch.float32))

    def _upload(self, *parts: _Words) -> Sequence[Tensor]:
        """Return arrays on the device, sent in one copy."""
        words = self._on_device(torch.from_numpy(np.concatenate(parts)))
        return torch.split(words, [len(part) for part in parts])

    def _on_device(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory().to(self._device, non_blocking=True) if self._device.type == "cuda" else tensor


def state_bytes(max_rows: int, vocab_size: int) -> int:
    """Return the most bytes that a `SamplingState` holds."""
    return max_rows * (8 * len(FIELDS) + 2 * vocab_size + 4 * num_words(vocab_size))


def kinds_of(rows: Iterable[SamplingRow]) -> kernels.Kinds:
    """Return what a step with these rows has to compute."""
    params = [(row.params, row.has_edits) for row in rows]
    nums = [p.logprobs for p, _ in params if p.logprobs is not None]
    return kernels.Kinds(
        is_random=any(not p.is_greedy for p, _ in params),
        is_filtered=any(p.top_k > 0 or p.top_p < 1 for p, _ in params),
        is_edited=any(has_edits for _, has_edits in params),
        num_logprobs=max(nums, default=None),
    )


def tokens_of(sampled: kernels.Sampled, rows: Sequence[SamplingRow]) -> list[SampledToken]:
    """Return what each row got, as `quire.sampling.sampler.sample` says it.

    Args:
        sampled: Copied to the host.
        rows: One per row of it.
    """
    ids, statuses = sampled.token_ids.tolist(), sampled.statuses.tolist()
    return [
        SampledToken(token_id, _logprobs(sampled, index, row))
        if status == 0
        else SampledToken(-1, None, _error(status))
        for index, (token_id, status, row) in enumerate(zip(ids, statuses, rows, strict=True))
    ]


def _logprobs(sampled: kernels.Sampled, index: int, row: SamplingRow) -> TokenLogprobs | None:
    num = row.params.logprobs
    if num is None or sampled.logprobs is None or sampled.logprob_ids is None or sampled.ranks is None:
        return None
    ids, values, ranks = (t[index, : 1 + num].tolist() for t in (sampled.logprob_ids, sampled.logprobs, sampled.ranks))
    return TokenLogprobs(tuple(ids), tuple(values), tuple(ranks))


def _error(status: int) -> str:
    if status == NOT_FINITE:
        return "logits: expected finite numbers, got NaN or infinity. Check the model's weights and the penalties."
    return "no token is left to sample: all logits are -inf. Relax allowed_token_ids, bad_words or min_tokens."


def _words(*values: int) -> _Words:
    return np.array(values, dtype=np.int64)


def _parameters(row: SamplingRow) -> _Words:
    """Return a row's words, in the order of `FIELDS`."""
    params = row.params
    floats = [getattr(params, name) for name in FIELDS[:6]]
    is_masked = row.allowed is not None or row.grammar is not None
    flags = is_masked * ALLOWED | (row.counts is not None) * PENALTIES | row.has_edits * LISTED
    seed = np.array([(params.seed or 0) % (1 << 64)], dtype=np.uint64).view(np.int64)
    integers = _words(params.top_k, int(seed[0]), len(row.output_token_ids), flags)
    return np.concatenate([np.array(floats, dtype=np.float64).view(np.int64), integers])


def _counts(rows: Mapping[int, SamplingRow], vocab_size: int) -> tuple[_Words, _Words]:
    """Return where in the flat table each distinct token of the rows is, and its count."""
    flat, counts = [_words()], [_words()]
    for slot, row in rows.items():
        assert row.counts is not None
        generated = np.minimum(row.counts.counts.astype(np.int64), _LARGEST_COUNT)
        flat.append(row.counts.token_ids + slot * vocab_size)
        counts.append(np.where(generated > 0, generated, SEEN_IN_PROMPT))
    return np.concatenate(flat), np.concatenate(counts)


def _mask(token_ids: npt.NDArray[np.int64], vocab_size: int) -> _Words:
    """Return a bit for each token, the lowest first, in words of 32."""
    bits = np.zeros(num_words(vocab_size) * 32, dtype=np.uint8)
    bits[token_ids] = 1
    return np.packbits(bits, bitorder="little").view(np.int32).astype(np.int64)


def _listed(row: SamplingRow) -> Iterable[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
    """Return ids and values that are added to a row's logits: its bias, and what it bans now."""
    banned = row.banned_ids()
    if row.bias is not None:
        yield row.bias
    if len(banned):
        yield banned, np.full(len(banned), -np.inf, dtype=np.float32)
