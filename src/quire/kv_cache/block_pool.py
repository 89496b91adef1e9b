"""`BlockPool`: every block is in exactly one state, and every change of state is O(1).

    state     refcount   in free list   hash     leaves it by
    null      -          no             no       never: block 0 pads block tables
    free      0          yes            no       take
    cached    0          yes            yes      take (its hash is forgotten), share (it is used again)
    used      >= 1       no             maybe    release by its last holder

The free list is in order of eviction: free blocks first, then cached ones, least recently released first.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable

NULL_BLOCK = 0


class BlockPool:
    """Reference counts, free list and prefix map over blocks `1 .. num_blocks - 1`.

    Args:
        num_blocks: Blocks in the pool, the null block included; at least 2.

    Attributes:
        refcounts: Holders per block id. Read-only for others.
    """

    def __init__(self, num_blocks: int) -> None:
        assert num_blocks >= 2, f"num_blocks: expected at least 2 (block 0 is reserved), got {num_blocks}"
        self.num_blocks = num_blocks
        self.refcounts = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(NULL_BLOCK + 1, num_blocks))
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._blocks: dict[bytes, int] = {}

    @property
    def num_free_blocks(self) -> int:
        """Blocks that can be taken, cached ones included."""
        return len(self._free)

    @property
    def num_cached_blocks(self) -> int:
        """Blocks that a prompt can find, used ones included."""
        return len(self._blocks)

    def take(self, count: int) -> list[int]:
        """Hand out `count` blocks, each with one holder; the caller has checked `num_free_blocks`."""
        taken = []
        for _ in range(count):
            block_id, _ = self._free.popitem(last=False)
            self.forget(block_id)
            self.refcounts[block_id] = 1
            taken.append(block_id)
        return taken

    def share(self, block_ids: Iterable[int]) -> None:
        """Add a holder to each used or cached block."""
        for block_id in block_ids:
            if self.refcounts[block_id] == 0:
                del self._free[block_id]
            self.refcounts[block_id] += 1

    def release(self, block_ids: Iterable[int]) -> None:
        """Remove a holder from each block; the first one named is the first to be evicted."""
        for block_id in block_ids:
            self.refcounts[block_id] -= 1
            assert self.refcounts[block_id] >= 0, f"block {block_id} was released more often than held"
            if self.refcounts[block_id] == 0:
                self._free[block_id] = None
                if self._hashes[block_id] is None:
                    self._free.move_to_end(block_id, last=False)

    def find(self, block_hash: bytes) -> int | None:
        """Return the block of that name, if any."""
        return self._blocks.get(block_hash)

    def publish(self, block_id: int, block_hash: bytes) -> None:
        """Make a used block findable, unless it or another one with the same content already is."""
        if self._hashes[block_id] is None and block_hash not in self._blocks:
            self._hashes[block_id] = block_hash
            self._blocks[block_hash] = block_id

    def forget(self, block_id: int) -> None:
        """Make a block unfindable, for its content is about to change."""
        block_hash = self._hashes[block_id]
        if block_hash is not None:
            self._hashes[block_id] = None
            del self._blocks[block_hash]

    def forget_all(self) -> None:
        """Make every block unfindable."""
        self._hashes = [None] * self.num_blocks
        self._blocks.clear()

    def survey(self, stride: int) -> tuple[bytes, bytes]:
        """Return the holders, at most 255, of every `stride`-th block from block 1 on, and whether it can be found."""
        counts = self.refcounts[NULL_BLOCK + 1 :: stride]
        try:
            holders = bytes(counts)
        except ValueError:  # more than a byte holds
            holders = bytes(min(count, 255) for count in counts)
        return holders, bytes(map(bool, self._hashes[NULL_BLOCK + 1 :: stride]))

    def hash_of(self, block_id: int) -> bytes | None:
        """Return the name under which a block can be found, if any."""
        return self._hashes[block_id]

    def check_integrity(self, held: Counter[int]) -> None:
        """Prove that the books balance.

        Args:
            held: Per block id, how many tables hold it, by the owners' account.

        Raises:
            AssertionError: A block is lost, leaked, in two states, or named wrongly.
        """
        assert NULL_BLOCK not in self._free and self.refcounts[NULL_BLOCK] == 0, "the null block was handed out"
        assert self._hashes[NULL_BLOCK] is None, "the null block was published"
        for block_id in range(NULL_BLOCK + 1, self.num_blocks):
            refcount, is_free = self.refcounts[block_id], block_id in self._free
            assert refcount == held[block_id], f"block {block_id}: refcount {refcount}, held by {held[block_id]} tables"
            assert is_free == (refcount == 0), f"block {block_id}: refcount {refcount}, in the free list: {is_free}"
        assert all(0 < block_id < self.num_blocks for block_id in self._free.keys() | held.keys()), "unknown block"
        named = {block_hash: block_id for block_id, block_hash in enumerate(self._hashes) if block_hash is not None}
        assert named == self._blocks, "hash to block and block to hash disagree"
