"""Where the boxes of a small directed graph go: in ranks from top to bottom, with short and straight edges.

After Sugiyama, Tagawa and Toda 1981 (https://doi.org/10.1109/TSMC.1981.4308636): longest paths give the ranks, an edge
over a few ranks takes an invisible box in each, means of neighbours order a rank, and boxes then move towards them. An
edge over many ranks (a residual) goes around, on a rail at the side.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

_BETWEEN_RANKS, _BETWEEN_BOXES, _BEND_WIDTH = 24.0, 12.0, 6.0
_SWEEPS = 24
_LONG = 3
_TO_RAIL, _BETWEEN_RAILS = 18.0, 12.0


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
        rails: Numbers of the edges that leave and arrive at the side of a box, in four points with square corners.
    """

    width: float
    height: float
    boxes: list[tuple[float, float]]
    paths: list[list[tuple[float, float]]]
    rails: frozenset[int]


def lay_out(sizes: Sequence[tuple[float, float]], edges: Sequence[tuple[int, int]]) -> Layout:
    """Place boxes.

    Args:
        sizes: Width and height of each box; a box comes after all that point to it.
        edges: From box, to box.
    """
    places = [_Place(width, height, 0) for width, height in sizes]
    for start, end in sorted(edges, key=lambda edge: edge[1]):
        places[end].rank = max(places[end].rank, places[start].rank + 1)
    ends = [(places[start], places[end]) for start, end in edges]
    rails = frozenset(i for i, (start, end) in enumerate(ends) if end.rank - start.rank > _LONG)
    chains = {i: _chain(*pair) for i, pair in enumerate(ends) if i not in rails}
    ranks = _ranks([*places, *(bend for chain in chains.values() for bend in chain[1:-1])])
    for _ in range(_SWEEPS):
        for rank in (*ranks, *reversed(ranks)):
            _order(rank)
    for _ in range(_SWEEPS):
        for rank in ranks:
            _settle(rank, lambda place: place.up)
        for rank in reversed(ranks):
            _settle(rank, lambda place: place.down)
    height = _stack(ranks)
    paths = {i: _points(chain) for i, chain in chains.items()}
    paths |= _rails({i: ends[i] for i in sorted(rails)}, places)
    return _from_zero(height, places, [paths[i] for i in range(len(edges))], rails)


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


def _middle(near: Sequence[_Place], otherwise: float) -> float:
    return sum(other.x for other in near) / len(near) if near else otherwise


def _order(rank: list[_Place]) -> None:
    wishes = {id(place): _middle([*place.up, *place.down], place.x) for place in rank}
    rank.sort(key=lambda place: wishes[id(place)])
    _spread(rank, [wishes[id(place)] for place in rank])


def _settle(rank: list[_Place], neighbours: Callable[[_Place], Sequence[_Place]]) -> None:
    """Move the boxes of a rank to the middle of their neighbours above, or below."""
    _spread(rank, [_middle(neighbours(place), place.x) for place in rank])


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


def _stack(ranks: list[list[_Place]]) -> float:
    """Put one rank under the other; returns the height of all."""
    y = 0.0
    for rank in ranks:
        height = max(place.height for place in rank)
        for place in rank:
            place.height = place.height or height
            place.y = y + (height - place.height) / 2
        y += height + _BETWEEN_RANKS
    return max(0.0, y - _BETWEEN_RANKS)


def _points(chain: list[_Place]) -> list[tuple[float, float]]:
    bends = [point for bend in chain[1:-1] for point in ((bend.x, bend.y), (bend.x, bend.y + bend.height))]
    return [(chain[0].x, chain[0].y + chain[0].height), *bends, (chain[-1].x, chain[-1].y)]


def _rails(ends: dict[int, tuple[_Place, _Place]], places: Sequence[_Place]) -> dict[int, list[tuple[float, float]]]:
    """Lead long edges around, short ones nearer, on the side where fewer boxes are in the way."""
    paths: dict[int, list[tuple[float, float]]] = {}
    taken: list[tuple[bool, int, float, float]] = []
    for i, (start, end) in sorted(ends.items(), key=lambda item: item[1][1].rank - item[1][0].rank):
        from_y, to_y = start.y + 0.7 * start.height, end.y + 0.3 * end.height
        right = _in_the_way(start, end, places, 1) <= _in_the_way(start, end, places, -1)
        side = 1 if right else -1
        used = {lane for r, lane, top, bottom in taken if r == right and top < to_y and bottom > from_y}
        lane = next(n for n in range(len(ends)) if n not in used)
        taken.append((right, lane, from_y, to_y))
        beside = [p for p in places if start.rank <= p.rank <= end.rank]
        rail = max(side * p.x + p.width / 2 for p in beside) + _TO_RAIL + _BETWEEN_RAILS * lane
        leave, arrive = (place.x + side * place.width / 2 for place in (start, end))
        paths[i] = [(leave, from_y), (side * rail, from_y), (side * rail, to_y), (arrive, to_y)]
    return paths


def _in_the_way(start: _Place, end: _Place, places: Sequence[_Place], side: int) -> int:
    """Return how many boxes lie beside the ends of an edge on a side: 1 is right, -1 left."""
    return sum(side * p.x > side * e.x for e in (start, end) for p in places if p.rank == e.rank and p is not e)


def _from_zero(
    height: float, places: Sequence[_Place], paths: list[list[tuple[float, float]]], rails: frozenset[int]
) -> Layout:
    """Move all to where nothing is negative."""
    xs = [place.x + side * place.width / 2 for place in places for side in (1, -1)]
    xs += [x for path in paths for x, _ in path]
    left = min(xs, default=0.0)
    boxes = [(place.x - place.width / 2 - left, place.y) for place in places]
    moved = [[(x - left, y) for x, y in path] for path in paths]
    return Layout(max(xs, default=0.0) - left, height, boxes, moved, rails)
