"""Whatever is done to the KV cache, the books balance and every sequence reads its own keys and values."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.kv_cache.cache_world import CacheWorld, random_operation

TOKENS = st.integers(1, 2)


class CacheMachine(RuleBasedStateMachine):
    """The operations of `CacheWorld` in any order."""

    @initialize(num_blocks=st.integers(2, 14), block_size=st.integers(1, 4), is_caching=st.booleans())
    def start(self, num_blocks: int, block_size: int, is_caching: bool) -> None:
        self.world = CacheWorld(num_blocks, block_size, is_caching)

    def has_sequences(self) -> bool:
        return bool(self.world.sequences)

    @rule(tokens=st.lists(TOKENS, min_size=1, max_size=10), salt=st.sampled_from(["", "tenant"]))
    def admit(self, tokens: list[int], salt: str) -> None:
        self.world.admit(tokens, salt)

    @precondition(has_sequences)
    @rule(data=st.data(), tokens=st.lists(TOKENS, max_size=3), is_published=st.booleans())
    def write(self, data: st.DataObject, tokens: list[int], is_published: bool) -> None:
        self.world.write(data.draw(st.sampled_from(self.world.sequences)), tokens, is_published)

    @precondition(has_sequences)
    @rule(data=st.data(), token=TOKENS)
    def fork(self, data: st.DataObject, token: int) -> None:
        parent = data.draw(st.sampled_from(self.world.sequences))
        if parent.num_computed:
            self.world.fork(parent, data.draw(st.integers(0, parent.num_computed)), token)

    @precondition(has_sequences)
    @rule(data=st.data(), is_back=st.booleans())
    def free(self, data: st.DataObject, is_back: bool) -> None:
        sequence = data.draw(st.sampled_from(self.world.sequences))
        self.world.free(sequence)
        if is_back:
            self.world.readmit(sequence)

    @precondition(has_sequences)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        self.world.publish(data.draw(st.sampled_from(self.world.sequences)))

    @rule()
    def reset(self) -> None:
        self.world.reset()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.close()


CacheMachine.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestCacheMachine = CacheMachine.TestCase


def drive(seed: int, operations: int) -> CacheWorld:
    """Do `operations` random things in a random world."""
    rng = random.Random(seed)
    world = CacheWorld(rng.randint(2, 40), rng.randint(1, 5), rng.random() < 0.8)
    for _ in range(operations):
        random_operation(world, rng)
    return world


@pytest.mark.parametrize("seed", range(40))
def test_random_operations(seed: int) -> None:
    drive(seed, 500).close()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1250))
def test_many_random_operations(seed: int) -> None:
    drive(seed, 2000).close()


def test_random_operations_reach_every_path() -> None:
    """The volume above means something."""
    counts = sum((drive(seed, 500).counts for seed in range(10)), Counter())
    for path in ("hit", "copied", "withdrawn", "refused admission", "refused extension"):
        assert counts[path] > 5, f"{path}: {counts}"
