"""Random bits without state: a hash of the sample's seed and of how many tokens it has.

Preemption, another batch or another order therefore cannot change what a sample draws.
"""

from __future__ import annotations

_MASK = (1 << 64) - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15


def random_bits(seed: int, position: int) -> int:
    """Return the 64 uniform bits that decide one token.

    This is SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators",
    https://doi.org/10.1145/2660193.2660195) read at an index: output `position` of the stream whose start is the
    hashed seed. The seed is hashed because the samples of one request have neighbouring seeds.

    Args:
        seed: Any integer; its low 64 bits count.
        position: Number of tokens that the sample has generated so far.
    """
    start = _mix((seed + _GOLDEN_GAMMA) & _MASK)
    return _mix((start + (position + 1) * _GOLDEN_GAMMA) & _MASK)


def _mix(bits: int) -> int:
    """Return SplitMix64's bijective scramble of 64 bits ("variant 13" of David Stafford)."""
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & _MASK
    return bits ^ (bits >> 31)
