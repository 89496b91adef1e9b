"""What sampling holds beside the logits, worst case: every kind of row at once, all of them with logprobs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quire.sampling import logprobs, sampler

# Of one seen token under a penalty: index, count, three factors, and the logit before, between and after them.
_PENALTY_BYTES = 8 + 4 + 3 * 4 + 5 * 4


@dataclass(frozen=True, slots=True)
class SampledLogits:
    """The logits of a step.

    Attributes:
        num_sampled: Rows from which a token is sampled, at most.
        num_rows: All rows, those for prompt logprobs included.
        vocab_size: Logits of a row.
        dtype: Of the logits.
        max_model_len: Tokens that a sample may have seen.
    """

    num_sampled: int
    num_rows: int
    vocab_size: int
    dtype: torch.dtype
    max_model_len: int


def sampling_bytes(logits: SampledLogits, num_threads: int) -> int:
    """Return the most bytes that sampling holds at once beside the logits.

    Args:
        logits: What it is given.
        num_threads: How many an op may use: rows are worked on in chunks of a size per thread.
    """
    copied = (
        logits.num_sampled * logits.vocab_size * logits.dtype.itemsize if logits.num_rows > logits.num_sampled else 0
    )
    sampled = _chunk(logits, logits.num_sampled, sampler.CHUNK_ELEMENTS * num_threads)
    prompt = _chunk(logits, logits.num_rows - logits.num_sampled, logprobs.CHUNK_ELEMENTS)
    return copied + max(_sample(logits, sampled), _logprobs(logits, prompt))


def _chunk(logits: SampledLogits, num_rows: int, most: int) -> int:
    """Return the logits that are worked on at once."""
    return min(num_rows, max(1, most // logits.vocab_size)) * logits.vocab_size


def _widened(logits: SampledLogits) -> int:
    return 0 if logits.dtype == torch.float32 else 4


def _sample(logits: SampledLogits, size: int) -> int:
    """Return what `sample` holds for a chunk: its copy in float32, the edited one, and the larger of two phases.

    Choosing takes the random rows' logits (4 bytes each) and their weights (8), and to find a large top_k the rows that
    have one (8), their largest in order and where these are (16), and what is below (1). Logprobs of some rows take
    their logits, the logprobs (4 each), the largest of them and where these are (12).
    """
    seen = min(logits.max_model_len, logits.vocab_size) * (size // logits.vocab_size)
    held = size * (_widened(logits) + 4)
    return held + max(_PENALTY_BYTES * seen, size * (4 + 8 + 8 + 16 + 1), size * (4 + 4 + 12))


def _logprobs(logits: SampledLogits, size: int) -> int:
    """Return what `prompt_logprobs` holds for a chunk: logits in float32, logprobs, the largest and where these are."""
    return size * (_widened(logits) + 4 + 12)
