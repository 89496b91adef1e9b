"""`Pieces`: which places of a dimension a rank has, and how that carries over to dimensions cut or joined from it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pieces:
    """Places of one dimension, as ranges.

    Attributes:
        ranges: (start, stop) of each, in order, none of them empty and none touching the next.

    Example:
        >>> Pieces.of([(0, 2), (4, 5), (5, 6)])
        Pieces(ranges=((0, 2), (4, 6)))
    """

    ranges: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, ranges: Iterable[tuple[int, int]]) -> Pieces:
        """Return the places of some ranges, which may overlap."""
        merged: list[tuple[int, int]] = []
        for start, stop in sorted(each for each in ranges if each[0] < each[1]):
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
            else:
                merged.append((start, stop))
        return cls(tuple(merged))

    @classmethod
    def dealt(cls, size: int, unit: int, rank: int, num_ranks: int) -> Pieces:
        """Return a rank's share of `size` places dealt out in whole units, the first ranks getting one more if need be.

        Args:
            size: Of the dimension, a multiple of `unit`.
            unit: Places that stay together.
            rank: Whose share.
            num_ranks: How many share.
        """
        each, more = divmod(size // unit, num_ranks)
        start = rank * each + min(rank, more)
        return cls.of([(start * unit, (start + each + (rank < more)) * unit)])

    @property
    def size(self) -> int:
        """How many places there are."""
        return sum(stop - start for start, stop in self.ranges)

    def __or__(self, other: Pieces) -> Pieces:
        return Pieces.of((*self.ranges, *other.ranges))

    def is_whole(self, size: int) -> bool:
        """Return whether these are all places of a dimension."""
        return self.size == size

    def moved(self, by: int) -> Pieces:
        """Return the same places counted from further on."""
        return Pieces(tuple((start + by, stop + by) for start, stop in self.ranges))

    def times(self, factor: int) -> Pieces:
        """Return the places where each of these is `factor` places."""
        return Pieces(tuple((start * factor, stop * factor) for start, stop in self.ranges))

    def over(self, factor: int) -> Pieces:
        """Return the places where `factor` of these are one: all that have a part in these."""
        return Pieces.of((start // factor, -(-stop // factor)) for start, stop in self.ranges)

    def is_multiple(self, factor: int) -> bool:
        """Return whether all ranges begin and end at multiples of a number."""
        return not any(bound % factor for bounds in self.ranges for bound in bounds)

    def within(self, start: int, stop: int) -> Pieces:
        """Return the places from `start` to `stop`, counted from `start`."""
        return Pieces.of((max(a, start) - start, min(b, stop) - start) for a, b in self.ranges)

    def offset(self, at: int) -> int:
        """Return how many places come before `at`."""
        return sum(min(stop, at) - start for start, stop in self.ranges if start < at)
