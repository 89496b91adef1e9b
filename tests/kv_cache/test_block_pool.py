"""States of a block."""

from __future__ import annotations

from collections import Counter

import pytest

from quire.kv_cache.block_pool import NULL_BLOCK, BlockPool


def test_the_null_block_is_never_handed_out() -> None:
    pool = BlockPool(5)
    taken = pool.take(4)
    assert sorted(taken) == [1, 2, 3, 4] and pool.num_free_blocks == 0
    assert NULL_BLOCK not in taken
    pool.check_integrity(Counter(taken))


def test_a_block_returns_when_its_last_holder_lets_go() -> None:
    pool = BlockPool(3)
    (block_id,) = pool.take(1)
    pool.share([block_id])
    pool.release([block_id])
    assert pool.num_free_blocks == 1
    pool.release([block_id])
    assert pool.num_free_blocks == 2
    with pytest.raises(AssertionError, match="more often than held"):
        pool.release([block_id])


def test_eviction_takes_free_blocks_first_then_the_least_recently_released() -> None:
    pool = BlockPool(5)
    a, b, c, d = pool.take(4)
    for block_id in (a, b, c):
        pool.publish(block_id, bytes([block_id]))
    pool.release([b])
    pool.release([a, c])
    pool.release([d])
    assert pool.take(3) == [d, b, a]
    assert pool.find(bytes([b])) is None and pool.find(bytes([c])) == c
    pool.check_integrity(Counter([d, b, a]))


def test_a_hit_saves_a_cached_block_from_eviction() -> None:
    pool = BlockPool(3)
    a, b = pool.take(2)
    pool.publish(a, b"a")
    pool.publish(b, b"b")
    pool.release([a, b])
    pool.share([a])
    assert pool.take(1) == [b] and pool.find(b"a") == a
    pool.release([a])
    pool.share([a])
    pool.release([a])
    assert pool.take(1) == [a] and pool.find(b"a") is None


def test_the_first_block_with_a_content_keeps_the_name() -> None:
    pool = BlockPool(3)
    a, b = pool.take(2)
    pool.publish(a, b"same")
    pool.publish(b, b"same")
    assert pool.find(b"same") == a and pool.hash_of(b) is None
    pool.forget(b)
    assert pool.find(b"same") == a and pool.num_cached_blocks == 1
    pool.forget_all()
    assert pool.find(b"same") is None
    pool.check_integrity(Counter([a, b]))


def _lost(pool: BlockPool) -> None:
    pool._free.popitem()


def _in_two_states(pool: BlockPool) -> None:
    pool._free[1] = None


def _wrong_name(pool: BlockPool) -> None:
    pool._blocks[b"x"] = 2


def _leaked(pool: BlockPool) -> None:
    pool.take(1)


def _null_block(pool: BlockPool) -> None:
    pool._free[NULL_BLOCK] = None


@pytest.mark.parametrize("damage", [_lost, _in_two_states, _wrong_name, _leaked, _null_block])
def test_check_integrity_sees_damage(damage) -> None:  # type: ignore[no-untyped-def]
    pool = BlockPool(4)
    held = Counter(pool.take(1))
    pool.check_integrity(held)
    damage(pool)
    with pytest.raises(AssertionError):
        pool.check_integrity(held)
