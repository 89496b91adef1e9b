"""What a step produced for one row, as the scheduler is told."""

from __future__ import annotations

import torch

from quire.core.request import RowOutput, ScheduledRow, TokenLogprobs
from quire.sampling.logprobs import prompt_logprobs
from quire.sampling.row import SampledToken, SamplingRow


def row_output(row_id: int, result: SampledToken | None, prompt: tuple[TokenLogprobs, ...] | None) -> RowOutput:
    """Return a row's output.

    Args:
        row_id: Key of the row.
        result: What was sampled; None if nothing was.
        prompt: From `prompt_logprobs_of`.
    """
    if result is None:
        return RowOutput(row_id, prompt_logprobs=prompt)
    if result.error is not None:
        return RowOutput(row_id, error=result.error)
    logprobs = None if result.logprobs is None else (result.logprobs,)
    return RowOutput(row_id, (result.token_id,), logprobs, prompt)


def prompt_logprobs_of(
    scheduled: ScheduledRow, sampling: SamplingRow, token_ids: list[int], logits: torch.Tensor
) -> tuple[TokenLogprobs, ...] | None:
    """Return the logprobs of the prompt tokens that follow this step's prompt positions, None if nobody asked.

    Args:
        scheduled: The row's share.
        sampling: The row's parameters.
        token_ids: The row's tokens, at least its prompt.
        logits: [num_positions, vocab_size], of those positions.

    Raises:
        RequestError: The logits are not finite.
    """
    count = sampling.params.prompt_logprobs
    if count is None:
        return None
    first = scheduled.num_computed_tokens + 1
    return tuple(prompt_logprobs(logits, token_ids[first : first + len(logits)], count)) if len(logits) else ()
