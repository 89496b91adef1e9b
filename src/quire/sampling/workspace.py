"""What sampling holds beside the logits, worst case: every kind of row at once, most of them of the costliest.

Logprobs as Python numbers, which are handed on to those who asked for them, are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quire.sampling import compiled, logprobs, sampler

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
    sampled = _chunk(logits, logits.num_sampled, sampler.CHUNK_ELEMENTS * num_threads)
    prompt = _chunk(logits, logits.num_rows, logprobs.CHUNK_ELEMENTS)
    if not compiled.is_compiled(torch.device("cpu")):
        return max(_sample(logits, sampled), _logprobs(logits, prompt))
    scratch = compiled.scratch_bytes(logits.vocab_size, num_threads)
    return scratch + max(_sample_compiled(logits, sampled), prompt * _widened(logits))


def gpu_sampling_bytes(num_rows: int, vocab_size: int, *, is_captured: bool = False) -> int:
    """Return the most bytes that sampling holds at once on a GPU, where all rows are worked on together.

    Args:
        num_rows: From which a token is sampled.
        vocab_size: Logits of a row.
        is_captured: In a graph, in which there are no rows with edits or logprobs.
    """
    from quire.ops.triton.step.sampling import MAX_LOGPROBS, Kinds, workspace_bytes

    kinds = Kinds() if is_captured else Kinds(is_edited=True, num_logprobs=MAX_LOGPROBS)
    return workspace_bytes(num_rows, vocab_size, kinds)


def gpu_state_bytes(max_rows: int, vocab_size: int) -> int:
    """Return the most bytes that a GPU keeps of rows between steps: parameters, histories, allowed ids."""
    from quire.sampling.device import state_bytes

    return state_bytes(max_rows, vocab_size)


def _chunk(logits: SampledLogits, num_rows: int, most: int) -> int:
    """Return the logits that are worked on at once."""
    return min(num_rows, max(1, most // logits.vocab_size)) * logits.vocab_size


def _widened(logits: SampledLogits) -> int:
    return 0 if logits.dtype == torch.float32 else 4


def _sample(logits: SampledLogits, size: int) -> int:
    """Return what `sample` holds for a chunk: its copy in float32, the edited one, and the largest of these.

    - Of all tokens that a row under penalties has seen, what `edits` gathers.
    - Weights (8 bytes each), and for a large top_k the largest in order and where they are (16), and which are below
      (1). Beside that, unless rows are alike, the random ones' logits (4) and the weights of those with a top_k (8).
    - Logprobs (4), and the logits (4) of the rows that want them.
    """
    num_rows = size // logits.vocab_size
    seen = min(logits.max_model_len, logits.vocab_size) * num_rows
    alike = num_rows * (8 + 16 + 1)
    apart = (num_rows - 1) * (4 + 8) + max(0, num_rows - 2) * (8 + 16)
    chosen = max(alike, apart, num_rows * (4 + 4)) * logits.vocab_size
    return size * (_widened(logits) + 4) + max(_PENALTY_BYTES * seen, chosen)


def _sample_compiled(logits: SampledLogits, size: int) -> int:
    """Return what `sample` holds by compiled kernels: all edits, or the rows of a chunk that want logprobs."""
    seen = min(logits.max_model_len, logits.vocab_size)
    return max(logits.num_sampled * seen * compiled.EDIT_BYTES, size * logits.dtype.itemsize)


def _logprobs(logits: SampledLogits, size: int) -> int:
    """Return what `prompt_logprobs` holds for a chunk: logits in float32 and logprobs."""
    return size * (_widened(logits) + 4)
