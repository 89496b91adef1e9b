"""The sampler once more, plain and slow: one row, float64, Python loops. The tests hold the real one against it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from quire.core.sampling_params import SamplingParams

MASK = (1 << 64) - 1


class SplitMix64:
    """The generator as it is published: a state that grows by the golden gamma, and a scramble."""

    def __init__(self, seed: int) -> None:
        self.state = seed & MASK

    def next(self) -> int:
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)


def uniform(seed: int, position: int) -> float:
    generator = SplitMix64(SplitMix64(seed).next())
    for _ in range(position):
        generator.next()
    return generator.next() / 2.0**64


def edited(
    logits: np.ndarray,
    params: SamplingParams,
    prompt: Sequence[int] = (),
    output: Sequence[int] = (),
    stop: Sequence[int] = (),
    bad_words: Sequence[Sequence[int]] = (),
) -> np.ndarray:
    """Return one row's logits, float64, after everything that changes single logits."""
    row = [float(x) for x in logits]
    for token in range(len(row)):
        if params.allowed_token_ids is not None and token not in params.allowed_token_ids:
            row[token] = -math.inf
    for *beginning, last in bad_words:
        if list(output)[len(output) - len(beginning) :] == beginning and len(beginning) <= len(output):
            row[last] = -math.inf
    if len(output) < params.min_tokens:
        for token in stop:
            row[token] = -math.inf
    for token, bias in (params.logit_bias or {}).items():
        row[token] += bias
    for token in {*prompt, *output}:
        penalty = params.repetition_penalty
        row[token] = row[token] / penalty if row[token] > 0 else row[token] * penalty
    for token in set(output):
        row[token] -= params.frequency_penalty * list(output).count(token) + params.presence_penalty
    return np.array(row)


def probabilities(row: np.ndarray, params: SamplingParams) -> np.ndarray:
    """Return the distribution to draw from, float64: zero for dropped tokens. `row` has been edited."""
    if params.is_greedy:
        return np.eye(len(row))[int(np.argmax(row))]
    probs = np.exp((row - row.max()) / params.temperature)
    probs[probs < params.min_p * probs.max()] = 0.0
    if 0 < params.top_k < len(row):
        probs[probs < sorted(probs)[-params.top_k]] = 0.0
    probs /= probs.sum()
    if params.top_p < 1:
        mass, threshold = 0.0, 0.0
        for p in sorted(probs, reverse=True):
            mass, threshold = mass + p, p
            if mass >= params.top_p:
                break
        probs[probs < threshold] = 0.0
    return probs / probs.sum()


def draw(probs: np.ndarray, params: SamplingParams, position: int) -> set[int]:
    """Return the tokens that a float32 sampler may draw: one, or two where the random number is at their border."""
    if params.is_greedy:
        return {int(np.argmax(probs))}
    u = uniform(params.seed or 0, position)
    cumulative = np.cumsum(probs)
    return {int(np.argmax(cumulative > min(max(u + e, 0.0), 1 - 1e-12))) for e in (-1e-5, 0.0, 1e-5)}
