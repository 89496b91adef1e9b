"""`BlockTable`: the blocks of one sequence, in order of position."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(slots=True, eq=False)
class BlockTable:
    """Where the keys and values of one sequence lie. Filled and emptied by `KVCache` alone; others only read.

    Position `p` lies in block `block_ids[p // block_size]` at offset `p % block_size`.

    Attributes:
        salt: Tables share cached prefixes only with equal salts.
        block_ids: Each of them counts this table as one holder.
        writable_end: Positions from the last extended start up to here are private and may be written. A fork sets it
            to 0 on both sides, so comparing a position with it is the whole copy-on-write check of a decode step.
        num_published: Leading blocks that were already offered to the prefix cache.
        chain: Hash of the salt, then of each leading full block as far as known. Outlives `free`: tokens only grow.
        epoch: The `reset_prefix_cache` count under which `chain` was started.
    """

    salt: str = ""
    block_ids: list[int] = field(default_factory=list)
    writable_end: int = 0
    num_published: int = 0
    chain: list[bytes] = field(default_factory=list)
    epoch: int = -1


class Extension(NamedTuple):
    """What changed when a table was extended.

    Attributes:
        new_block_ids: Appended to the table. They hold another sequence's remains, which no call may read.
        copies: (index in the table, source block, destination block) of each shared block that was replaced.
    """

    new_block_ids: tuple[int, ...] = ()
    copies: tuple[tuple[int, int, int], ...] = ()
