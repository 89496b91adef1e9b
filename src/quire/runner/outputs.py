"""What a step produced for one row, as the scheduler is told."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from quire.core.errors import RequestError
from quire.core.request import ModelOutput, RowOutput, ScheduledRow, SchedulerOutput, TokenLogprobs
from quire.sampling.logprobs import prompt_logprobs
from quire.sampling.row import SampledToken, SamplingRow

_POOLED_TOKENS = 64
"""Hidden states that are added up at once: bounds what is held of them in float64."""


class Pooling:
    """The hidden states of a prompt become one vector; its bits do not depend on the steps that computed them.

    Args:
        kind: "mean" of all positions, or "last".
    """

    def __init__(self, kind: str) -> None:
        self._is_mean = kind == "mean"
        self._sum: npt.NDArray[np.float64] | None = None

    def add(self, hidden_states: torch.Tensor) -> None:
        """Take the next positions.

        Args:
            hidden_states: [num_positions, hidden_size], floating.
        """
        for part in torch.split(hidden_states, _POOLED_TOKENS) if self._is_mean else [hidden_states[-1:]]:
            states = part.cpu().to(torch.float64).numpy()
            if self._is_mean and self._sum is not None:
                states = np.concatenate([self._sum[None], states])
            if len(states):
                self._sum = np.add.accumulate(states, axis=0)[-1]  # one position after the other, unlike a sum

    def vector(self) -> tuple[float, ...]:
        """Return the vector, [hidden_size], of unit length.

        Raises:
            RequestError: It has no length that is finite and above 0.
        """
        assert self._sum is not None, "a prompt has a token"
        length = float(np.sqrt(np.add.accumulate(self._sum**2)[-1]))
        if not 0 < length < np.inf:
            raise RequestError(f"embedding: expected a length that is finite and above 0, got {length}.")
        return tuple((self._sum / length).tolist())


class FailedStep:
    """A `Pending` step that could not be computed for any of its rows. Those end with it; all other rows are as before.

    Args:
        step: What was asked for.
        error: What went wrong.

    Attributes:
        error: As given.
    """

    def __init__(self, step: SchedulerOutput, error: Exception) -> None:
        self.error = error
        self._output = ModelOutput(tuple(failed_row(row.row_id, error) for row in step.rows))

    def is_ready(self) -> bool:
        """Return that there is nothing to wait for."""
        return True

    def result(self) -> ModelOutput:
        """Return an error for each row."""
        return self._output


def failed_row(row_id: int, error: Exception) -> RowOutput:
    """Return the output of a row that could not be computed; the log has the error's text, which is not for clients."""
    return RowOutput(row_id, error=f"{type(error).__name__} while it was computed.")


def row_output(
    row_id: int,
    result: SampledToken | None,
    prompt: tuple[TokenLogprobs, ...] | None,
    embedding: tuple[float, ...] | None = None,
) -> RowOutput:
    """Return a row's output.

    Args:
        row_id: Key of the row.
        result: What was sampled; None if nothing was.
        prompt: From `prompt_logprobs_of`.
        embedding: From `Pooling.vector`.
    """
    if result is None:
        return RowOutput(row_id, prompt_logprobs=prompt)
    if result.error is not None:
        return RowOutput(row_id, error=result.error)
    logprobs = None if result.logprobs is None else (result.logprobs,)
    return RowOutput(row_id, (result.token_id,), logprobs, prompt, None, embedding)


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
