"""Which replica a request goes to: by what a router in front of them knows, which is what it has sent to whom."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

from quire.core.config import choice
from quire.simulation.load import PlannedRequest
from quire.simulation.replica import Replica
from quire.simulation.settings import ROUTERS

Router = Callable[[PlannedRequest], int]
"""Returns the number of the replica that gets a request."""


def make_router(name: str, replicas: Sequence[Replica], block_size: int, num_blocks: int) -> Router:
    """Return a router by its name.

    Args:
        name: One of `ROUTERS`.
        replicas: Among which it chooses.
        block_size: Tokens in a block, as the unit of prefixes.
        num_blocks: How many blocks of a replica's prefixes are remembered: as many as its pool has.

    Raises:
        ConfigError: There is none of that name.
    """
    choice("router", name, ROUTERS)
    if name == "round_robin":
        return RoundRobin(len(replicas))
    return LeastLoad(replicas) if name == "least_load" else LongestPrefix(replicas, block_size, num_blocks)


class RoundRobin:
    """One after the other.

    Args:
        num_replicas: How many there are.
    """

    def __init__(self, num_replicas: int) -> None:
        self._num_replicas = num_replicas
        self._next = 0

    def __call__(self, request: PlannedRequest) -> int:
        """Return the number of the replica that gets a request."""
        number, self._next = self._next, (self._next + 1) % self._num_replicas
        return number


class LeastLoad:
    """The one with the fewest unfinished requests; of those, the one with the shortest prompts.

    Args:
        replicas: Among which it chooses.
    """

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self._replicas = replicas

    def __call__(self, request: PlannedRequest) -> int:
        """Return the number of the replica that gets a request."""
        return min(self._replicas, key=_load).number


class LongestPrefix:
    """The least loaded of those that were sent the longest part of the prompt before, unless they have far more to do.

    Args:
        replicas: Among which it chooses.
        block_size: Tokens in a block.
        num_blocks: How many blocks of each replica are remembered; those used least recently are forgotten.
    """

    def __init__(self, replicas: Sequence[Replica], block_size: int, num_blocks: int) -> None:
        self._replicas = replicas
        self._block_size = block_size
        self._num_blocks = num_blocks
        self._holders: dict[int, set[int]] = {}
        self._known: list[OrderedDict[int, None]] = [OrderedDict() for _ in replicas]

    def __call__(self, request: PlannedRequest) -> int:
        """Return the number of the replica that gets a request, and remember that it was sent its shared blocks."""
        blocks = list(_shared_blocks(request, self._block_size))
        least = min(self._replicas, key=_load)
        chosen = self._with_prefix(blocks, least) or least
        self._remember(chosen.number, blocks)
        return chosen.number

    def _with_prefix(self, blocks: Sequence[int], least: Replica) -> Replica | None:
        """Return who holds most of the blocks, if that is worth waiting for."""
        holders: set[int] = set()
        for block in blocks:
            if not (found := self._holders.get(block)):
                break
            holders = found
        if not holders:
            return None
        best = min((self._replicas[number] for number in holders), key=_load)
        # Half more, and a few: an imbalance that a prefix saves, but no crowd around one popular prompt.
        return best if best.num_unfinished <= 1.5 * least.num_unfinished + 4 else None

    def _remember(self, number: int, blocks: Sequence[int]) -> None:
        known = self._known[number]
        for block in blocks:
            known[block] = None
            known.move_to_end(block)
            self._holders.setdefault(block, set()).add(number)
        while len(known) > self._num_blocks:
            forgotten, _ = known.popitem(last=False)
            self._holders[forgotten].discard(number)
            if not self._holders[forgotten]:
                del self._holders[forgotten]


def _load(replica: Replica) -> tuple[int, int]:
    return replica.num_unfinished, replica.num_prompt_tokens


def _shared_blocks(request: PlannedRequest, block_size: int) -> Iterator[int]:
    """Yield a name for each full block of what other prompts may begin with, too, chained like those of a cache."""
    name, filled = 0, 0
    for content, count in request.begins_with:
        for offset in range(count):
            filled += 1
            if filled % block_size == 0:
                name = hash((name, content, offset))
                yield name
