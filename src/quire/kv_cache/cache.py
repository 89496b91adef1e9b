"""`KVCache`: the operations on block tables: admit, extend, publish, fork, free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from quire.kv_cache.block_hash import BlockHasher
from quire.kv_cache.block_pool import NULL_BLOCK, BlockPool
from quire.kv_cache.block_table import BlockTable, Extension


class KVCache:
    """Fixed-size blocks, taken on demand, shared between sequences, found again by their content.

    A block may be written only while it has one holder and cannot be found. Sharing keeps that true in two ways: the
    prefix cache knows only full blocks whose keys and values are computed, and ends a hit before the block that holds
    the last token; a fork shares everything, so `extend` replaces what its holder is about to write.

    Args:
        num_blocks: Blocks in the pool, the reserved null block 0 included.
        block_size: Tokens in a block.
        enable_prefix_caching: Let prompts find the blocks of earlier ones.

    Attributes:
        num_query_tokens: Tokens of admitted sequences that were looked up in the prefix cache.
        num_hit_tokens: How many of them were found.
    """

    def __init__(self, num_blocks: int, block_size: int, enable_prefix_caching: bool = True) -> None:
        self.block_size = block_size
        self.num_query_tokens = 0
        self.num_hit_tokens = 0
        self._is_caching = enable_prefix_caching
        self._pool = BlockPool(num_blocks)
        self._hasher = BlockHasher()
        self._epoch = 0

    @property
    def num_blocks(self) -> int:
        """Blocks that sequences can use: the pool without its null block."""
        return self._pool.num_blocks - 1

    @property
    def num_free_blocks(self) -> int:
        """Blocks that can be taken now, cached ones included."""
        return self._pool.num_free_blocks

    @property
    def num_cached_blocks(self) -> int:
        """Blocks that a prompt can find now."""
        return self._pool.num_cached_blocks

    def num_blocks_for(self, num_tokens: int) -> int:
        """Return how many blocks hold `num_tokens`."""
        return -(-num_tokens // self.block_size)

    def find_prefix(self, table: BlockTable, token_ids: Sequence[int]) -> list[int]:
        """Return the blocks that already hold the longest known prefix of `token_ids`, and change nothing in the pool.

        The last token is never part of it: at least one token must be computed to get logits.
        """
        prefix: list[int] = []
        if self._is_caching:
            self._restart_chain(table)
            for index in range((len(token_ids) - 1) // self.block_size):
                block_id = self._pool.find(self._hash(table, token_ids, index))
                if block_id is None:
                    break
                prefix.append(block_id)
        return prefix

    def coming_block(self, table: BlockTable, token_ids: Sequence[int]) -> bytes | None:
        """Return the name of the next block that a sequence will publish, None if that will not be full soon."""
        index = table.num_published
        is_known = (index + 1) * self.block_size <= len(token_ids)
        return self._hash(table, token_ids, index) if is_known and table.epoch == self._epoch else None

    def missing_block(self, table: BlockTable, token_ids: Sequence[int], prefix: Sequence[int]) -> bytes | None:
        """Return the name of the block that follows what `find_prefix` just returned, None if it could not be used."""
        index = len(prefix)
        is_usable = self._is_caching and index < (len(token_ids) - 1) // self.block_size
        return self._hash(table, token_ids, index) if is_usable else None

    def admit(self, table: BlockTable, num_tokens: int, prefix: list[int] | None = None) -> Extension | None:
        """Give an empty table the blocks for `num_tokens`: those of `prefix`, then fresh ones.

        Args:
            table: Holds no block.
            num_tokens: All tokens known so far, those in `prefix` included.
            prefix: What `find_prefix` just returned; None if the prefix cache was not asked.

        Returns:
            The fresh blocks, or None, with nothing changed, when there are too few.
        """
        assert not table.block_ids, f"a table that holds {len(table.block_ids)} blocks was admitted again"
        shared = prefix or []
        num_new = self.num_blocks_for(num_tokens) - len(shared)
        num_revived = sum(self._pool.refcounts[block_id] == 0 for block_id in shared)
        if num_new + num_revived > self._pool.num_free_blocks:
            return None
        self._restart_chain(table)
        self._pool.share(shared)
        table.block_ids.extend(shared)
        table.num_published = len(shared)
        if prefix is not None and self._is_caching:
            self.num_query_tokens += num_tokens
            self.num_hit_tokens += len(shared) * self.block_size
        return self._append(table, num_new)

    def extend(self, table: BlockTable, start: int, end: int) -> Extension | None:
        """Make positions `start .. end - 1` writable: append blocks, and replace shared ones (copy-on-write).

        Positions before `start` must not be written any more; they may stay shared.

        Returns:
            What changed, or None, with nothing changed, when there are too few blocks.
        """
        first = start // self.block_size
        refcounts, block_ids = self._pool.refcounts, table.block_ids
        is_forked = table.writable_end == 0
        shared = [i for i in range(first, len(block_ids)) if refcounts[block_ids[i]] > 1] if is_forked else []
        num_new = max(0, self.num_blocks_for(end) - len(block_ids))
        if len(shared) + num_new > self._pool.num_free_blocks:
            return None
        copies = tuple((i, *self._replace(table, i)) for i in shared)
        if is_forked:
            for block_id in block_ids[first:]:
                self._pool.forget(block_id)
        return Extension(self._append(table, num_new).new_block_ids, copies)

    def publish(self, table: BlockTable, token_ids: Sequence[int], num_computed_tokens: int) -> None:
        """Let prompts find the blocks that are full of computed tokens.

        A table admitted before the last `reset_prefix_cache` publishes nothing: its later blocks build on old ones.
        """
        num_full = num_computed_tokens // self.block_size
        if num_full <= table.num_published or not self._is_caching or table.epoch != self._epoch:
            return
        for index in range(table.num_published, num_full):
            self._pool.publish(table.block_ids[index], self._hash(table, token_ids, index))
        table.num_published = num_full

    def fork(self, parent: BlockTable, child: BlockTable, start: int) -> None:
        """Share all blocks of `parent`, a partly filled last one included, with the empty table `child`.

        Both may go on: each gets its own copy of a block when it is extended to write there.

        Args:
            parent: Keeps its blocks.
            child: Holds no block.
            start: The position from which the child will write; before it, its tokens are the parent's.
        """
        assert not child.block_ids, f"a table that holds {len(child.block_ids)} blocks cannot become a fork"
        num_common = start // self.block_size
        self._pool.share(parent.block_ids)
        child.block_ids = parent.block_ids.copy()
        child.chain = parent.chain[: num_common + 1]
        child.epoch, child.num_published = parent.epoch, min(parent.num_published, num_common)
        parent.writable_end = child.writable_end = 0

    def free(self, table: BlockTable) -> None:
        """Give back all blocks of a table, its tail first, so that the prefixes others may share are evicted last."""
        self._pool.release(reversed(table.block_ids))
        table.block_ids.clear()
        table.writable_end = table.num_published = 0

    def reset_prefix_cache(self) -> None:
        """Forget every cached prefix, for example after the weights changed. Running sequences keep their blocks."""
        self._pool.forget_all()
        self._epoch += 1

    def survey(self, stride: int) -> tuple[bytes, bytes]:
        """Return two bytes for every `stride`-th block: how many hold it, at most 255; whether it can be found."""
        return self._pool.survey(stride)

    def check_integrity(self, tables: Iterable[BlockTable]) -> None:
        """Prove that the books balance.

        Args:
            tables: Every table that may hold blocks, by the owner's account: a leaked block has no table.

        Raises:
            AssertionError: They do not; the message says where.
        """
        held: Counter[int] = Counter()
        for table in tables:
            held.update(table.block_ids)
            assert len(set(table.block_ids)) == len(table.block_ids), f"a block twice in one table: {table.block_ids}"
            assert NULL_BLOCK not in table.block_ids, "the null block is in a table"
            assert table.writable_end in (0, len(table.block_ids) * self.block_size), "writable beyond the table"
            for block_id, block_hash in zip(table.block_ids, table.chain[1:], strict=False):
                name = self._pool.hash_of(block_id)
                assert name in (None, block_hash), f"block {block_id} has another content's name"
        self._pool.check_integrity(held)

    def _restart_chain(self, table: BlockTable) -> None:
        """Name an empty table's blocks anew, if what it remembers is from before a reset."""
        if table.epoch != self._epoch:
            table.epoch = self._epoch
            table.chain = [self._hasher.root(table.salt)]

    def _hash(self, table: BlockTable, token_ids: Sequence[int], index: int) -> bytes:
        """Return the name of block `index`, hashing only blocks that were not hashed before."""
        chain, size = table.chain, self.block_size
        for i in range(len(chain) - 1, index + 1):
            chain.append(self._hasher.child(chain[i], token_ids[i * size : (i + 1) * size]))
        return chain[index + 1]

    def _append(self, table: BlockTable, count: int) -> Extension:
        """Append `count` fresh blocks; from now on the whole table may be written."""
        new_block_ids = self._pool.take(count)
        table.block_ids.extend(new_block_ids)
        table.writable_end = len(table.block_ids) * self.block_size
        return Extension(tuple(new_block_ids))

    def _replace(self, table: BlockTable, index: int) -> tuple[int, int]:
        """Put a fresh block in the place of a shared one and return (source, destination)."""
        source = table.block_ids[index]
        (destination,) = self._pool.take(1)
        self._pool.release((source,))
        table.block_ids[index] = destination
        return source, destination
