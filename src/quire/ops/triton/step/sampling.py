"""Sampling: logits of a batch become token ids on the device, by the rules of `quire.sampling`; nothing is copied back.

Greedy rows are read once. Thresholds are found without sorting: a histogram of probabilities says how far down they can
be, what lies above that is gathered, and a binary search over the bits of those probabilities, with exact sums, finds
them. Random rows without top_k and top_p do not pay for that.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from quire.ops.triton.step.sampling_kernels import (
    BINS,
    allow_kernel,
    choose_kernel,
    gather_kernel,
    list_kernel,
    logprobs_kernel,
    rank_kernel,
    summarize_kernel,
    threshold_kernel,
    weigh_kernel,
)

MAX_LOGPROBS = 20
"""Most likely tokens that are reported at most."""

# Logits of a program: 32 programs for a row of 128k, which still fill a quarter of an H100 when it is alone.
_BLOCK = 4096


@dataclass(frozen=True, slots=True)
class Edits:
    """What is added to single logits in a step; -inf bans a token.

    Attributes:
        rows: [num_edits], int32, of the logits; -1 is padding. Those rows have `LISTED` among their edits.
        token_ids: [num_edits], int32, inside the vocabulary.
        values: [num_edits], float32.
    """

    rows: Tensor
    token_ids: Tensor
    values: Tensor


@dataclass(frozen=True, slots=True)
class RowState:
    """What the device knows of rows, by slot.

    Attributes:
        parameters: [max_rows, len(FIELDS)], int64. Mutated: a row's position grows with each token.
        counts: [max_rows, vocab_size], int16: how often each token was generated, 32,767 at most, with
            `SEEN_IN_PROMPT`; None without rows that have penalties. Mutated.
        masks: [max_rows, ceil(vocab_size / 32)], int32: a bit for each allowed token, the lowest first; None without
            rows that allow only some.
    """

    parameters: Tensor
    counts: Tensor | None = None
    masks: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Kinds:
    """What kinds of rows a step may have: what none of them needs is not computed.

    Attributes:
        is_random: Rows whose temperature is not 0.
        is_filtered: Rows with top_k or top_p.
        is_edited: Rows with edits.
        num_logprobs: Most likely tokens to report beside the chosen one, at most `MAX_LOGPROBS`; None reports nothing.
    """

    is_random: bool = True
    is_filtered: bool = True
    is_edited: bool = False
    num_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Sampled:
    """The tokens of a step, on the device.

    Attributes:
        outcomes: [2, num_rows], int32: `token_ids` and `statuses`, in one piece so that one copy takes both.
        logprobs: [num_rows, 1 + num_logprobs], float32: the chosen token's, then the largest, ties by id; without
            meaning where there is no token.
        logprob_ids: Same shape, int32.
        ranks: Same shape, int32: 1 + how many logprobs are strictly larger.
    """

    outcomes: Tensor
    logprobs: Tensor | None = None
    logprob_ids: Tensor | None = None
    ranks: Tensor | None = None

    @property
    def token_ids(self) -> Tensor:
        """[num_rows], int32; -1 for padding and for rows that failed."""
        return self.outcomes[0]

    @property
    def statuses(self) -> Tensor:
        """[num_rows], int32: `OK`, `NOT_FINITE` or `NO_TOKEN_LEFT`."""
        return self.outcomes[1]


def sample(logits: Tensor, slots: Tensor, state: RowState, kinds: Kinds, edits: Edits | None = None) -> Sampled:
    """Sample one token per row, and count it in the row's state. Nothing waits for the device.

    What a row gets depends on its logits and its slot alone, bit for bit. It is what `quire.sampling.sampler.sample`
    chooses, but for the last bits of `exp`.

    Args:
        logits: [num_rows, vocab_size], float32 | bfloat16 | float16, rows contiguous. Not mutated.
        slots: [num_rows], int32: where in `state` each row's parameters are, no slot twice; -1 is padding.
        state: What is known of the slots. Mutated.
        kinds: What kinds of rows there are.
        edits: Values for single logits, if `kinds.is_edited`.
    """
    return _Step(logits, slots, state, kinds).run(edits)


def workspace_bytes(num_rows: int, vocab_size: int, kinds: Kinds) -> int:
    """Return the most bytes that `sample` holds at once, its results included."""
    num = kinds.num_logprobs
    blocks: int = num_rows * triton.cdiv(vocab_size, _BLOCK)
    found = blocks * 5 * 8 + num_rows * (8 + 4 * (BINS + 1) + 2 * 4)
    copies = (kinds.is_edited + (kinds.is_random and kinds.is_filtered)) * 4 * num_rows * vocab_size
    reported = 0 if num is None else blocks * (4 + 8 * num) + num_rows * 3 * 4 * (1 + num)
    return found + copies + reported


class _Step:
    """The memory of one step, and its launches."""

    def __init__(self, logits: Tensor, slots: Tensor, state: RowState, kinds: Kinds) -> None:
        num_rows, vocab_size = logits.shape
        blocks = triton.cdiv(vocab_size, _BLOCK)
        self._logits, self._slots, self._state, self._kinds = logits, slots, state, kinds
        self._grid = (num_rows, blocks)
        self._sizes = {"VOCAB_SIZE": vocab_size, "BLOCK": _BLOCK, "num_warps": 8, "enable_fp_fusion": False}
        self._cut = {"BLOCKS": blocks, "PADDED": triton.next_power_of_2(blocks)}
        self._raw_best, self._best = self._new(torch.int64, 2, num_rows, blocks)
        self._raw_sums, self._sums = self._new(torch.int64, 2, num_rows, blocks)
        self._weights = self._new(torch.int64, num_rows, blocks)
        self._thresholds = self._new(torch.int64, num_rows)
        self._edited = self._new(torch.float32, num_rows, vocab_size) if kinds.is_edited else None

    def _new(self, dtype: torch.dtype, *sizes: int) -> Tensor:
        return torch.empty(sizes, dtype=dtype, device=self._logits.device)

    def run(self, edits: Edits | None) -> Sampled:
        """Launch everything."""
        if self._edited is not None:
            self._edit(self._edited, edits)
        state, kinds, stride = self._state, self._kinds, self._logits.stride(0)
        summarize_kernel[self._grid](
            self._logits, self._edited, self._slots, state.parameters, state.counts, self._raw_best, self._raw_sums,
            self._best, self._sums, stride, IS_RANDOM=kinds.is_random, HAS_LOGPROBS=kinds.num_logprobs is not None,
            **self._sizes,
        )  # fmt: skip
        if kinds.is_random:
            self._weigh()
        found = Sampled(self._new(torch.int32, 2, len(self._slots)))
        choose_kernel[self._grid[:1]](
            self._logits, self._edited, self._slots, state.parameters, state.counts, self._raw_best, self._best,
            self._sums, self._weights, self._thresholds, *found.outcomes, stride, IS_RANDOM=kinds.is_random,
            **self._cut, **{**self._sizes, "num_warps": 8 if kinds.is_random else 1},
        )  # fmt: skip
        if kinds.num_logprobs is None:
            return found
        reported = self._report(found.token_ids, min(kinds.num_logprobs, self._logits.shape[1]))
        return Sampled(found.outcomes, *reported)

    def _edit(self, edited: Tensor, edits: Edits | None) -> None:
        allow_kernel[self._grid](
            self._logits, edited, self._slots, self._state.parameters, self._state.masks, self._logits.stride(0),
            **self._sizes,
        )  # fmt: skip
        if edits is not None and len(edits.rows):
            num_edits, block = len(edits.rows), 128
            list_kernel[(triton.cdiv(num_edits, block),)](
                edited, edits.rows, edits.token_ids, edits.values, num_edits, VOCAB_SIZE=edited.shape[1], BLOCK=block,
                enable_fp_fusion=False,
            )  # fmt: skip

    def _weigh(self) -> None:
        """Compute the weights of the blocks, and the thresholds of the rows."""
        num_rows, vocab_size = self._logits.shape
        stride, rest = self._logits.stride(0), {**self._cut, **self._sizes}
        bins = torch.zeros(num_rows, BINS + 1, dtype=torch.int32, device=self._logits.device)
        common = (self._logits, self._edited, self._slots, self._state.parameters, self._best, self._sums,
                  self._weights, self._thresholds, bins)  # fmt: skip
        weigh_kernel[self._grid](*common, stride, IS_FILTERED=self._kinds.is_filtered, IS_FINAL=False, **rest)
        if self._kinds.is_filtered:
            gathered = self._new(torch.float32, num_rows, vocab_size)
            gather_kernel[self._grid](*common, gathered, stride, **rest)
            threshold_kernel[self._grid[:1]](
                self._slots, self._state.parameters, self._weights, self._thresholds, bins, gathered, **rest
            )
            weigh_kernel[self._grid](*common, stride, IS_FILTERED=True, IS_FINAL=True, **rest)

    def _report(self, token_ids: Tensor, num: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return logprobs, their token ids, and their ranks."""
        num_rows, blocks = self._grid
        num_above, tops = self._new(torch.int32, num_rows, blocks), self._new(torch.int64, num_rows, blocks, num)
        logprobs = self._new(torch.float32, num_rows, 1 + num)
        ids, ranks = self._new(torch.int32, 2, num_rows, 1 + num)
        rank_kernel[self._grid](
            self._logits, token_ids, self._raw_best, self._raw_sums, num_above, tops, self._logits.stride(0), NUM=num,
            **self._cut, **self._sizes,
        )  # fmt: skip
        logprobs_kernel[self._grid[:1]](
            self._logits, token_ids, self._raw_best, self._raw_sums, num_above, tops, logprobs, ids, ranks,
            self._logits.stride(0), NUM=num, TOPS=triton.next_power_of_2(max(1, blocks * num)), **self._cut,
            num_warps=8, enable_fp_fusion=False,
        )  # fmt: skip
        return logprobs, ids, ranks
