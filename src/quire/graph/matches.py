"""`Matches`: what a pass reports, so that nothing happens silently."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from quire.graph.network import Network


@dataclass(frozen=True, slots=True)
class Matches:
    """Where a pass changed the network, and where it looked and did not.

    Attributes:
        done: Names of the nodes that came in the place of what was there.
        missed: Name of a node that looked like a match, to the reason why it is none.
    """

    done: list[str] = field(default_factory=list)
    missed: dict[str, str] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Number of places changed."""
        return len(self.done)

    def as_record(self, name: str) -> Mapping[str, object]:
        """Return the build report's entry of the pass of this name."""
        return {"pass": name, "matches": self.count, "done": self.done, "missed": self.missed}


Pass = Callable[[Network], Matches]
