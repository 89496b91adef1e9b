"""Where the boxes of a small directed graph go: in ranks from top to bottom, with short and straight edges.

After Sugiyama, Tagawa and Toda 1981 (https://doi.org/10.1109/TSMC.1981.4308636): longest paths give the ranks, an edge
over several ranks takes an invisible box in each, medians order a rank, and boxes then move towards their neighbours.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

_BETWEEN_RANKS, _BETWEEN_BOXES, _BEND_WIDTH = 24.0, 14.0, 6.0
_SWEEPS = 24


@dataclass(slots=True)
class _Place:
    """A box, or the invisible one of an edge that passes a rank."""

    width: float
    height: float
    rank: int
    x: float = 0.0
    y: float = 0.0
    up: list[_Place] = field(default_factory=list, repr=False)
    down: list[_Place] = field(default_factory=list, repr=False)


@dataclass(frozen=True, slots=True)
class Layout:
    """A drawing's geometry, in pixels.

    Attributes:
        width: Of all.
        height: Of all.
        boxes: Left and top of each box.
        paths: Points of each edge, top to bottom; between them it bends, and it is straight within a rank.
    """

    width: float
    height: float
    boxes: list[tuple[float, float]]
    paths: list[list[tuple[float, float]]]


def lay_out(sizes: Sequence[tuple[float, float]], edges: Sequence[tuple[int, int]]) -> Layout:
    """Place boxes.

    Args:
        sizes: Width and height of each box; a box comes after all that point to it.
        edges: From box, to box.
    """
    places = [_Place(width, height, 0) for width, height in sizes]
    for start, end in sorted(edges, key=lambda edge: edge[1]):
        places[end].rank = max(places[end].rank, places[start].rank + 1)
    chains = [_chain(places[start], places[end]) for start, end in edges]
    ranks = _ranks([*places, *(bend for chain in chains for bend in chain[1:-1])])
    for _ in range(_SWEEPS):
        for rank in (*ranks, *reversed(ranks)):
            _order(rank)
    for _ in range(4 * _SWEEPS):
        for rank in (*ranks, *reversed(ranks)):
            _settle(rank)
    width, height = _finish(ranks)
    boxes = [(place.x - place.width / 2, place.y) for place in places]
    return Layout(width, height, boxes, [_points(chain) for chain in chains])


def _chain(start: _Place, end: _Place) -> list[_Place]:
    """Return an edge as boxes: its ends, and an invisible one in each rank between."""
    chain = [start, *(_Place(_BEND_WIDTH, 0, rank) for rank in range(start.rank + 1, end.rank)), end]
    for above, below in pairwise(chain):
        above.down.append(below)
        below.up.append(above)
    return chain


def _ranks(places: Sequence[_Place]) -> list[list[_Place]]:
    found: dict[int, list[_Place]] = defaultdict(list)
    for place in places:
        found[place.rank].append(place)
    ranks = [found[rank] for rank in sorted(found)]
    for rank in ranks:
        _spread(rank, [0.0] * len(rank))
    return ranks


def _wish(place: _Place) -> float:
    """Return where a box would be without others: in the middle of its neighbours; edges wish to be straight."""
    near = [*place.up, *place.down]
    return sum(other.x for other in near) / len(near) if near else place.x


def _order(rank: list[_Place]) -> None:
    rank.sort(key=_wish)
    _spread(rank, [_wish(place) for place in rank])


def _settle(rank: list[_Place]) -> None:
    _spread(rank, [_wish(place) for place in rank])


def _spread(rank: list[_Place], wishes: list[float]) -> None:
    """Move boxes to where they wish to be, in order and without touching: the mean of pushing right and left."""
    right, left = list(wishes), list(wishes)
    for i in range(1, len(rank)):
        right[i] = max(right[i], right[i - 1] + _apart(rank[i - 1], rank[i]))
    for i in range(len(rank) - 2, -1, -1):
        left[i] = min(left[i], left[i + 1] - _apart(rank[i], rank[i + 1]))
    for place, a, b in zip(rank, right, left, strict=True):
        place.x = (a + b) / 2


def _apart(one: _Place, other: _Place) -> float:
    return (one.width + other.width) / 2 + _BETWEEN_BOXES


def _finish(ranks: list[list[_Place]]) -> tuple[float, float]:
    """Give every rank its height, and move all to where nothing is negative; returns width and height."""
    places = [place for rank in ranks for place in rank]
    left = min((place.x - place.width / 2 for place in places), default=0.0)
    y = 0.0
    for rank in ranks:
        height = max(place.height for place in rank)
        for place in rank:
            place.x -= left
            is_bend = place.height == 0
            place.height = height if is_bend else place.height
            place.y = y + (height - place.height) / 2
        y += height + _BETWEEN_RANKS
    return max((place.x + place.width / 2 for place in places), default=0.0), max(0.0, y - _BETWEEN_RANKS)


def _points(chain: list[_Place]) -> list[tuple[float, float]]:
    bends = [point for bend in chain[1:-1] for point in ((bend.x, bend.y), (bend.x, bend.y + bend.height))]
    return [(chain[0].x, chain[0].y + chain[0].height), *bends, (chain[-1].x, chain[-1].y)]
