"""What a server asks of its engine by itself."""

from __future__ import annotations

from dataclasses import replace

from quire.core.config import EngineConfig
from quire.core.sampling_params import RequestOutputKind, SamplingParams

_PREFILL_SHARE = 4  # of a step, while others decode: the gap between two of their tokens grows by that much at most


def for_serving(config: EngineConfig) -> EngineConfig:
    """Return the settings with what a server chooses differently: a long prompt may not hold up other streams."""
    if config.max_num_prefill_tokens is not None:
        return config
    return replace(config, max_num_prefill_tokens=max(1, config.max_num_batched_tokens // _PREFILL_SHARE))


def embedding_params(pooling: str) -> SamplingParams:
    """Return how a prompt is computed whose hidden states are wanted: one token, which nobody looks at.

    Args:
        pooling: "mean" asks for every position as logprobs do, so none comes from the prefix cache.
    """
    return SamplingParams(
        max_tokens=1,
        temperature=0.0,
        ignore_eos=True,
        detokenize=False,
        prompt_logprobs=0 if pooling == "mean" else None,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
