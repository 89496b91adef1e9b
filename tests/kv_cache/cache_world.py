"""A world in which the KV cache's mistakes become visible: sequences that write, and read back, marked positions."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from quire.kv_cache.block_table import BlockTable, Extension
from quire.kv_cache.cache import KVCache


@dataclass
class Sequence:
    """Tokens, and the mark that each computed position must carry."""

    table: BlockTable
    token_ids: list[int]
    marks: list[int] = field(default_factory=list)

    @property
    def num_computed(self) -> int:
        return len(self.marks)


class CacheWorld:
    """Operations on a `KVCache`, each checked against simulated K/V bytes.

    The mark of a position stands for its keys and values: it depends on the weights (`epoch`), on the token and on the
    mark before it, thus on the whole prefix and the salt.
    """

    def __init__(self, num_blocks: int, block_size: int, is_caching: bool = True) -> None:
        self.cache = KVCache(num_blocks, block_size, is_caching)
        self.is_caching = is_caching
        self.bytes: list[list[int | None]] = [[None] * block_size for _ in range(num_blocks)]
        self.sequences: list[Sequence] = []
        self.epoch = 0
        self.counts: Counter[str] = Counter()

    def mark(self, sequence: Sequence, position: int) -> int:
        before = sequence.marks[position - 1] if position else hash(("root", sequence.table.salt))
        return hash((before, self.epoch, sequence.token_ids[position]))

    def admit(self, token_ids: list[int], salt: str = "") -> Sequence | None:
        sequence = Sequence(BlockTable(salt), list(token_ids))
        return sequence if self.readmit(sequence) else None

    def readmit(self, sequence: Sequence) -> bool:
        size, cache, before = self.cache.block_size, self.cache, self.cache.num_free_blocks
        prefix = cache.find_prefix(sequence.table, sequence.token_ids)
        num_hit = len(prefix) * size
        assert num_hit < len(sequence.token_ids) and (self.is_caching or not prefix)
        extension = cache.admit(sequence.table, len(sequence.token_ids), prefix)
        if extension is None:
            assert cache.num_blocks_for(len(sequence.token_ids)) > cache.num_free_blocks == before
            self.counts["refused admission"] += 1
            self.check()
            return False
        self.sequences.append(sequence)
        self.counts["hit"] += num_hit > 0
        for position in range(num_hit):  # What a hit finds must be what the sequence would compute now.
            sequence.marks.append(self.mark(sequence, position))
        self.apply(sequence, extension)
        self.check()
        return True

    def apply(self, sequence: Sequence, extension: Extension) -> None:
        destinations = [destination for _, _, destination in extension.copies]
        assert len({*destinations, *extension.new_block_ids}) == len(destinations) + len(extension.new_block_ids)
        self.counts["copied"] += len(extension.copies)
        for index, source, destination in extension.copies:
            assert sequence.table.block_ids[index] == destination
            self.bytes[destination] = self.bytes[source].copy()
        for block_id in extension.new_block_ids:
            self.bytes[block_id] = [None] * self.cache.block_size

    def write(self, sequence: Sequence, new_token_ids: list[int], is_published: bool = True) -> bool:
        """Compute all known and some new tokens of a sequence."""
        start, end = sequence.num_computed, len(sequence.token_ids) + len(new_token_ids)
        if start == end:
            return False
        free_before, blocks_before = self.cache.num_free_blocks, list(sequence.table.block_ids)
        cached_before = self.cache.num_cached_blocks
        extension = self.cache.extend(sequence.table, start, end)
        if extension is None:
            assert self.cache.num_free_blocks == free_before and sequence.table.block_ids == blocks_before
            self.counts["refused extension"] += 1
            self.check()
            return False
        is_withdrawn = not extension.new_block_ids and self.cache.num_cached_blocks < cached_before
        self.counts["withdrawn"] += is_withdrawn and not extension.copies
        self.apply(sequence, extension)
        sequence.token_ids += new_token_ids
        for position in range(start, end):
            index, offset = divmod(position, self.cache.block_size)
            block_id = sequence.table.block_ids[index]
            assert [block_id in other.table.block_ids for other in self.sequences].count(True) == 1, "shared write"
            assert self.cache._pool.hash_of(block_id) is None, "a findable block is written"
            sequence.marks.append(self.mark(sequence, position))
            self.bytes[block_id][offset] = sequence.marks[position]
        if is_published:
            self.cache.publish(sequence.table, sequence.token_ids, sequence.num_computed)
        self.check()
        return True

    def publish(self, sequence: Sequence) -> None:
        self.cache.publish(sequence.table, sequence.token_ids, sequence.num_computed)
        self.check()

    def fork(self, sequence: Sequence, start: int, next_token_id: int) -> Sequence:
        """Fork at `start`, which the child computes itself, with its own token there."""
        child = Sequence(BlockTable(sequence.table.salt), [*sequence.token_ids[:start], next_token_id])
        child.marks = sequence.marks[:start]
        self.cache.fork(sequence.table, child.table, start)
        self.sequences.append(child)
        self.check()
        return child

    def free(self, sequence: Sequence) -> None:
        self.cache.free(sequence.table)
        self.sequences.remove(sequence)
        sequence.marks.clear()
        self.check()

    def reset(self) -> None:
        self.cache.reset_prefix_cache()
        self.epoch += 1
        assert self.cache.num_cached_blocks == 0
        self.check()

    def check(self) -> None:
        """The books balance and every sequence reads what it wrote."""
        self.cache.check_integrity(sequence.table for sequence in self.sequences)
        size = self.cache.block_size
        for sequence in self.sequences:
            for index, first in enumerate(range(0, sequence.num_computed, size)):
                expected = sequence.marks[first : first + size]
                assert self.bytes[sequence.table.block_ids[index]][: len(expected)] == expected

    def close(self) -> None:
        for sequence in list(self.sequences):
            self.free(sequence)
        assert self.cache.num_free_blocks == self.cache.num_blocks, "leaked blocks"


def random_operation(world: CacheWorld, rng: random.Random) -> None:
    """Do one thing that a scheduler could do."""
    kind = rng.choices(("admit", "write", "fork", "publish", "free", "recompute", "reset"), (4, 8, 3, 1, 3, 1, 0.1))[0]
    if kind == "admit" or not world.sequences:
        tokens = [1] * rng.randint(0, 9) + rng.choices((1, 2), k=rng.randint(1, 6))
        world.admit(tokens, rng.choice(("", "", "tenant")))
        return
    sequence = rng.choice(world.sequences)
    if kind == "write":
        world.write(sequence, rng.choices((1, 2), k=rng.randint(0, 3)), rng.random() < 0.8)
    elif kind == "fork" and sequence.num_computed:
        start = rng.choice((sequence.num_computed, rng.randint(0, sequence.num_computed)))
        is_same = start < sequence.num_computed and rng.random() < 0.5
        world.fork(sequence, start, sequence.token_ids[start] if is_same else rng.choice((1, 2)))
    elif kind == "publish":
        world.publish(sequence)
    elif kind == "free":
        world.free(sequence)
    elif kind == "recompute":
        world.free(sequence)
        world.readmit(sequence)
    elif kind == "reset":
        world.reset()
