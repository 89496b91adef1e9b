"""The hash behind every draw: SplitMix64 read at an index."""

from __future__ import annotations

import numpy as np
from reference_sampler import SplitMix64

from quire.sampling.random_bits import random_bits, random_bits_of, stream_start


def test_reference_is_splitmix64() -> None:
    # First outputs for seed 1234567, as published with the algorithm's test programs.
    generator = SplitMix64(1234567)
    assert [generator.next() for _ in range(3)] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_equals_the_generator_read_in_order() -> None:
    for seed in (0, 1, -1, 1234567, -(1 << 63), (1 << 64) - 1):
        generator = SplitMix64(SplitMix64(seed).next())
        assert [random_bits(seed, position) for position in range(20)] == [generator.next() for _ in range(20)]


def test_many_at_once_are_each_alone():
    seeds, positions = (0, 1, -1, 1234567, -(1 << 63), (1 << 64) - 1), (0, 1, 7, 1 << 20, (1 << 64) - 1, 3)
    starts = np.array([stream_start(seed) for seed in seeds], dtype=np.uint64)
    found = random_bits_of(starts, np.array(positions, dtype=np.uint64))
    assert found.tolist() == [random_bits(*each) for each in zip(seeds, positions, strict=True)]
    assert random_bits_of(starts[:0], starts[:0]).tolist() == []


def test_only_the_low_64_bits_of_a_seed_count() -> None:
    assert random_bits(-1, 3) == random_bits((1 << 64) - 1, 3)
    assert random_bits(5, 3) != random_bits(6, 3)
    assert random_bits(5, 3) != random_bits(5, 4)


def test_bits_are_uniform_and_neighbouring_seeds_are_unrelated() -> None:
    table = np.array([[random_bits(seed, position) / 2.0**64 for position in range(64)] for seed in range(64)])
    counts, _ = np.histogram(table, bins=16, range=(0, 1))
    expected = table.size / 16
    assert ((counts - expected) ** 2 / expected).sum() < 37.7  # chi-square, 15 degrees of freedom, p = 0.001
    for other in (np.roll(table, 1, axis=0), np.roll(table, 1, axis=1)):
        assert abs(np.corrcoef(table.ravel(), other.ravel())[0, 1]) < 0.06  # 4 sigma for 4,096 pairs
