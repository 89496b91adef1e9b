"""Random bits without state: a hash of the sample's seed and of how many tokens it has.

Preemption, another batch or another order therefore cannot change what a sample draws.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

_MASK = (1 << 64) - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15
_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_LAST_SHIFT = 31


def random_bits(seed: int, position: int) -> int:
    """Return the 64 uniform bits that decide one token.

    This is SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators",
    https://doi.org/10.1145/2660193.2660195) read at an index: output `position` of the stream whose start is the
    hashed seed. The seed is hashed because the samples of one request have neighbouring seeds.

    Args:
        seed: Any integer; its low 64 bits count.
        position: Number of tokens that the sample has generated so far.
    """
    return _mix((stream_start(seed) + (position + 1) * _GOLDEN_GAMMA) & _MASK)


def stream_start(seed: int) -> int:
    """Return the hash of a seed, where its stream starts."""
    return _mix((seed + _GOLDEN_GAMMA) & _MASK)


def random_bits_of(starts: Words, positions: Words) -> Words:
    """Return `random_bits` of many samples.

    Args:
        starts: `stream_start` of each seed, uint64.
        positions: Number of tokens that each sample has generated so far, uint64.
    """
    bits: Words = starts + (positions + np.uint64(1)) * np.uint64(_GOLDEN_GAMMA)
    for shift, factor in _ROUNDS:
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    mixed: Words = bits ^ (bits >> np.uint64(_LAST_SHIFT))
    return mixed


def _mix(bits: int) -> int:
    """Return SplitMix64's bijective scramble of 64 bits ("variant 13" of David Stafford)."""
    for shift, factor in _ROUNDS:
        bits = ((bits ^ (bits >> shift)) * factor) & _MASK
    return bits ^ (bits >> _LAST_SHIFT)
