"""Beam search over an engine: each beam is extended by one token a round, the prefix cache keeps that cheap."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from quire.core.errors import RequestError
from quire.core.request import RequestOutput
from quire.core.sampling_params import BeamSearchParams, SamplingParams

# Runs prompts (lists of ids) with the same parameters and returns one finished output each.
Generate = Callable[[Sequence[Mapping[str, list[int]]], SamplingParams], list[RequestOutput]]


@dataclass(frozen=True, slots=True)
class BeamSearchSequence:
    """One beam.

    Attributes:
        tokens: Prompt and generated ids.
        cum_logprob: Sum of the generated tokens' logprobs.
        text: Text of the generated ids; None without a tokenizer.
        finish_reason: "stop" or "length", None while it grows.
    """

    tokens: list[int]
    cum_logprob: float = 0.0
    text: str | None = None
    finish_reason: str | None = None


@dataclass(frozen=True, slots=True)
class BeamSearchOutput:
    """The beams of one prompt, best first."""

    sequences: list[BeamSearchSequence]


def beam_search(
    prompt: list[int], params: BeamSearchParams, eos_token_ids: frozenset[int], generate: Generate
) -> list[BeamSearchSequence]:
    """Return the best beams of one prompt, best first, without text.

    Args:
        prompt: Token ids.
        params: Width, length and scoring.
        eos_token_ids: Ids that complete a beam unless `params.ignore_eos`.
        generate: Runs the engine.

    Raises:
        RequestError: The engine has no logprobs to give: more are wanted than its device reports, or logits failed.
    """
    has_temperature = params.temperature not in (0.0, 1.0)
    step = SamplingParams(
        temperature=0.0,
        max_tokens=1,
        logprobs=-1 if has_temperature else 2 * params.beam_width,
        detokenize=False,
        ignore_eos=True,
    )
    beams, done = [BeamSearchSequence(list(prompt))], []
    for _ in range(params.max_tokens):
        outputs = generate([{"prompt_token_ids": beam.tokens} for beam in beams], step)
        grown = []
        for beam, output in zip(beams, outputs, strict=True):
            for token, logprob in _candidates(output, params):
                total = beam.cum_logprob + logprob
                if token in eos_token_ids and not params.ignore_eos:
                    kept = [token] if params.include_stop_str_in_output else []
                    done.append(BeamSearchSequence([*beam.tokens, *kept], total, finish_reason="stop"))
                else:
                    grown.append(BeamSearchSequence([*beam.tokens, token], total))
        beams = sorted(grown, key=lambda beam: -beam.cum_logprob)[: params.beam_width]
        if not beams:
            break
    done += [replace(beam, finish_reason="length") for beam in beams]
    return sorted(done, key=lambda beam: -_score(beam, len(prompt), params.length_penalty))[: params.beam_width]


def _candidates(output: RequestOutput, params: BeamSearchParams) -> list[tuple[int, float]]:
    """Return the 2 * beam_width most likely next tokens with their logprobs, best first."""
    sample = output.outputs[0]
    logprobs = sample.logprobs
    if not logprobs:
        raise RequestError(f"beam search: expected the logprobs of its next tokens, got none: {sample.stop_reason}")
    found = {token: entry.logprob for token, entry in logprobs[0].items()}
    if params.temperature not in (0.0, 1.0):
        scaled = {token: value / params.temperature for token, value in found.items()}
        highest = max(scaled.values())
        norm = highest + math.log(math.fsum(math.exp(value - highest) for value in scaled.values()))
        found = {token: value - norm for token, value in scaled.items()}
    return sorted(found.items(), key=lambda item: (-item[1], item[0]))[: 2 * params.beam_width]


def _score(beam: BeamSearchSequence, num_prompt_tokens: int, length_penalty: float) -> float:
    """Return the length-normalised score; the end-of-sequence token counts, shown or not."""
    length = len(beam.tokens) - num_prompt_tokens
    return float(beam.cum_logprob / max(1, length) ** length_penalty)
