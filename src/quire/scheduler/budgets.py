"""What a step may take: tokens, of them those for prompts, logits, and rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from quire.core.config import SchedulerConfig
from quire.scheduler.row import Row
from quire.scheduler.step import Step

_LEAST_TOKENS = 64  # a step of fewer takes about as long


def open_step(config: SchedulerConfig, running: Sequence[Row], waiting: Sequence[Row], num_in_flight: int) -> Step:
    """Return an empty step and what it may take.

    Args:
        config: Sizes.
        running: Rows with a seat, in order.
        waiting: Rows without one, in order.
        num_in_flight: Tokens of the steps whose results are not known.
    """
    most = min(len(running) + len(waiting), config.max_num_seqs)
    places = -(-most // config.num_batches)  # a share of all rows that can run, so that all batches have some
    tokens = config.max_num_batched_tokens
    if config.num_batches > 1 and config.enable_chunked_prefill:
        num_left = num_in_flight + _num_ready(running, waiting, tokens * config.num_batches)
        tokens = min(tokens, max(places, _LEAST_TOKENS, -(-num_left // config.num_batches)))
    return Step(tokens, config.max_num_logits, _prefill_tokens(config, running), places)


def _num_ready(running: Sequence[Row], waiting: Sequence[Row], most: int) -> int:
    """Return how many tokens could be computed now, as far as it matters.

    A step takes its share of them, where batches share the rows, so that a long prompt keeps more than one stage busy.
    """
    num_left = 0
    for row in chain(running, waiting):
        num_left += 0 if row.must_wait else row.num_tokens - row.num_computed_tokens
        if num_left >= most:
            break
    return num_left


def _prefill_tokens(config: SchedulerConfig, running: Sequence[Row]) -> int:
    """Return how many tokens the rows with more than one to compute may take together."""
    is_limited = config.enable_chunked_prefill and any(row.is_decoding for row in running)
    most = config.max_num_batched_tokens
    return min(most, config.max_num_prefill_tokens) if is_limited else most
