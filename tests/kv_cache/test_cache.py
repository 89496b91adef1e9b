"""Rules of the KV cache, one at a time."""

from __future__ import annotations

import pytest

from quire.kv_cache.block_table import BlockTable
from quire.kv_cache.cache import KVCache
from tests.kv_cache.cache_world import CacheWorld


def computed(world: CacheWorld, token_ids: list[int], salt: str = ""):  # type: ignore[no-untyped-def]
    """Return a sequence whose tokens are all computed."""
    sequence = world.admit(token_ids, salt)
    assert sequence is not None
    world.write(sequence, [])
    return sequence


def test_blocks_are_taken_on_demand() -> None:
    world = CacheWorld(num_blocks=6, block_size=4)
    sequence = computed(world, [1, 2, 3])
    assert len(sequence.table.block_ids) == 1
    world.write(sequence, [4])
    assert len(sequence.table.block_ids) == 1
    world.write(sequence, [5])
    assert len(sequence.table.block_ids) == 2 and world.cache.num_free_blocks == 3


@pytest.mark.parametrize(("num_tokens", "num_hit"), [(1, 0), (4, 0), (5, 1), (8, 1), (9, 2), (12, 2), (13, 2)])
def test_a_hit_is_whole_blocks_and_leaves_a_token_to_compute(num_tokens: int, num_hit: int) -> None:
    world = CacheWorld(num_blocks=20, block_size=4)
    first = computed(world, list(range(11)))
    second = world.admit(list(range(num_tokens)))
    assert second is not None
    assert second.num_computed == num_hit * 4
    assert second.table.block_ids[:num_hit] == first.table.block_ids[:num_hit]
    assert not set(second.table.block_ids[num_hit:]) & set(first.table.block_ids)


def test_only_computed_blocks_are_found() -> None:
    world = CacheWorld(num_blocks=20, block_size=2)
    sequence = world.admit([1, 2, 3, 4])
    assert sequence is not None
    twin = world.admit([1, 2, 3, 4])
    assert twin is not None and twin.num_computed == 0
    world.cache.publish(sequence.table, sequence.token_ids, 3)
    assert world.cache.find_prefix(BlockTable(), [1, 2, 3, 4, 5]) == sequence.table.block_ids[:1]


def test_a_prefix_survives_its_owner_until_reused() -> None:
    world = CacheWorld(num_blocks=4, block_size=2)
    world.free(computed(world, [1, 2, 3, 4, 5]))
    assert world.cache.num_free_blocks == 3
    again = world.admit([1, 2, 3, 4, 6])
    assert again is not None and again.num_computed == 4
    world.free(again)
    world.free(computed(world, [9] * 5))
    cold = world.admit([1, 2, 3])
    assert cold is not None and cold.num_computed == 0


def test_tails_are_evicted_before_heads() -> None:
    world = CacheWorld(num_blocks=6, block_size=1)
    world.free(computed(world, [1, 2, 3, 4, 5]))
    computed(world, [8, 9])
    assert len(world.cache.find_prefix(BlockTable(), [1, 2, 3, 4, 5, 6])) == 3


def test_salts_separate() -> None:
    world = CacheWorld(num_blocks=20, block_size=2)
    computed(world, [1, 2, 3], "a")
    assert world.cache.find_prefix(BlockTable("b"), [1, 2, 3]) == []
    assert world.cache.find_prefix(BlockTable(), [1, 2, 3]) == []
    assert len(world.cache.find_prefix(BlockTable("a"), [1, 2, 3])) == 1


def test_the_same_block_after_another_prefix_is_another_block() -> None:
    world = CacheWorld(num_blocks=20, block_size=2)
    computed(world, [1, 2, 7, 7])
    assert world.cache.find_prefix(BlockTable(), [7, 7, 1]) == []
    assert len(world.cache.find_prefix(BlockTable(), [1, 2, 7, 7, 1])) == 2


def test_counters_are_in_tokens_and_count_admissions() -> None:
    world = CacheWorld(num_blocks=6, block_size=2)
    computed(world, [1, 2, 3, 4, 5])
    assert (world.cache.num_query_tokens, world.cache.num_hit_tokens) == (5, 0)
    assert world.admit([1, 2, 3, 4, 9, 9, 9, 9, 9, 9]) is None
    assert (world.cache.num_query_tokens, world.cache.num_hit_tokens) == (5, 0)
    world.admit([1, 2, 3, 9])
    assert (world.cache.num_query_tokens, world.cache.num_hit_tokens) == (9, 2)
    table = BlockTable()
    assert world.cache.admit(table, 2) is not None
    assert world.cache.num_query_tokens == 9
    world.cache.free(table)


def test_without_prefix_caching_nothing_is_found() -> None:
    world = CacheWorld(num_blocks=9, block_size=2, is_caching=False)
    computed(world, [1, 2, 3])
    assert world.cache.find_prefix(BlockTable(), [1, 2, 3]) == [] and world.cache.num_cached_blocks == 0
    assert world.cache.num_query_tokens == 0


def test_a_fork_shares_and_the_writer_copies() -> None:
    world = CacheWorld(num_blocks=9, block_size=4)
    leader = computed(world, [1, 2, 3, 4, 5, 6])
    forks = [world.fork(leader, 5, 6) for _ in range(2)]
    assert world.cache.num_free_blocks == 6
    original = leader.table.block_ids[1]
    extension = world.cache.extend(leader.table, 6, 7)
    assert extension is not None and extension.new_block_ids == ()
    assert extension.copies == ((1, original, leader.table.block_ids[1]),)
    world.apply(leader, extension)
    world.check()
    world.write(forks[0], [])
    assert world.cache.num_free_blocks == 4
    world.write(forks[1], [])
    assert forks[1].table.block_ids[1] == original, "the last holder writes in place"
    assert world.cache.num_free_blocks == 4
    assert leader.table.block_ids[0] == forks[0].table.block_ids[0] == forks[1].table.block_ids[0]


def test_the_last_holder_of_a_cached_block_withdraws_it_before_writing() -> None:
    world = CacheWorld(num_blocks=9, block_size=2)
    leader = computed(world, [1, 2, 3, 4])
    fork = world.fork(leader, 3, 4)
    world.free(leader)
    assert world.cache.num_cached_blocks == 2
    extension = world.cache.extend(fork.table, 3, 4)
    assert extension is not None and not extension.copies and world.cache.num_cached_blocks == 1
    world.write(fork, [])
    assert world.cache.num_cached_blocks == 2


def test_a_fork_without_room_changes_nothing() -> None:
    world = CacheWorld(num_blocks=2, block_size=4)
    leader = computed(world, [1, 2])
    fork = world.fork(leader, 1, 2)
    assert not world.write(leader, [3]) and not world.write(fork, [])
    world.free(fork)
    assert world.write(leader, [3])


def test_reset_hides_blocks_of_running_sequences_for_ever() -> None:
    world = CacheWorld(num_blocks=20, block_size=2)
    old = computed(world, [1, 2, 3, 4])
    world.reset()
    world.write(old, [5, 6, 7])
    assert world.cache.num_cached_blocks == 0
    new = computed(world, [1, 2, 3, 4, 5, 6, 7])
    assert world.cache.num_cached_blocks == 3
    world.free(old)
    assert world.readmit(old) and old.num_computed == 6
    assert old.table.block_ids[:3] == new.table.block_ids[:3]


def test_fresh_blocks_are_reported() -> None:
    cache = KVCache(num_blocks=10, block_size=2)
    table = BlockTable()
    extension = cache.admit(table, 5, [])
    assert extension is not None and list(extension.new_block_ids) == table.block_ids
    extension = cache.extend(table, 5, 7)
    assert extension is not None and list(extension.new_block_ids) == table.block_ids[3:]


def test_check_integrity_sees_a_leak_and_a_foreign_name() -> None:
    world = CacheWorld(num_blocks=9, block_size=2)
    sequence = computed(world, [1, 2, 3])
    with pytest.raises(AssertionError, match="held by 0 tables"):
        world.cache.check_integrity([])
    sequence.table.chain[1] = b"other"
    with pytest.raises(AssertionError, match="another content's name"):
        world.cache.check_integrity([sequence.table])
