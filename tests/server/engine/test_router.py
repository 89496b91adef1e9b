"""Which engine a request goes to: prefixes stay together, load stays level, and nobody remembers the dead."""

from __future__ import annotations

from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.core.request import Request
from quire.core.sampling_params import SamplingParams
from quire.server.engine.router import Router, prefix_keys

BLOCK = 16
ANSWER = 10


class Engines:
    """Stand-ins: each has a prefix cache that holds what it was sent, LRU by block, and requests that last."""

    def __init__(self, count: int, num_blocks: int = 1 << 20) -> None:
        self.router = Router(BLOCK)
        self.caches: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(count)]
        self.num_blocks = num_blocks
        self.running: dict[str, int] = {}
        self.num_hit_tokens = self.num_tokens = 0
        self.alive = list(range(count))
        self._count = 0
        for engine in self.alive:
            self.router.open(engine, num_blocks)

    def send(self, ids: list[int], salt: str = "", n: int = 1) -> tuple[str, int]:
        """Send a request; returns its key, and where it went."""
        self._count += 1
        request_id = f"r{self._count}"
        request = Request(request_id, tuple(ids), SamplingParams(max_tokens=ANSWER, n=n), cache_salt=salt)
        keys = prefix_keys(ids, BLOCK, salt)
        chosen = self.router.choose(request, keys, self.alive)
        cache, hit = self.caches[chosen], 0
        for key in keys:
            if key not in cache:
                break
            hit += BLOCK
        for key in reversed(keys):
            cache[key] = None
            cache.move_to_end(key)
        while len(cache) > self.num_blocks:
            cache.popitem(last=False)
        self.num_hit_tokens += hit
        self.num_tokens += len(ids)
        self.running[request_id] = chosen
        return request_id, chosen

    def end(self, request_id: str) -> None:
        del self.running[request_id]
        self.router.end(request_id)

    def serve(self, ids: list[int], salt: str = "") -> int:
        """Send a request and wait for its end; returns where it went."""
        request_id, chosen = self.send(ids, salt)
        self.end(request_id)
        return chosen

    def die(self, engine: int) -> None:
        """An engine's process ends, and all that it held."""
        self.alive.remove(engine)
        self.caches[engine].clear()
        for request_id in [key for key, where in self.running.items() if where == engine]:
            self.end(request_id)

    def start(self, engine: int) -> None:
        self.alive.append(engine)
        self.router.open(engine, self.num_blocks)


def prompt(number: int, length: int = 160) -> list[int]:
    return [number * 10_000 + i for i in range(length)]


def test_requests_without_a_common_prefix_take_turns() -> None:
    engines = Engines(3)
    assert sorted(engines.serve(prompt(i)) for i in range(6)) == [0, 0, 1, 1, 2, 2]


def test_a_conversation_stays_where_it_began() -> None:
    engines = Engines(4)
    homes = [engines.serve(prompt(i)) for i in range(4)]
    assert sorted(homes) == [0, 1, 2, 3]
    for turn in range(1, 6):
        for i in (2, 0, 3, 1):
            assert engines.serve(prompt(i, 160 + 50 * turn)) == homes[i]


def test_the_longest_prefix_wins() -> None:
    engines, ids = Engines(2), prompt(1, 320)
    short = engines.serve(ids[:64] + prompt(2))
    busy, where = engines.send(ids[:64] + prompt(3, 200))
    assert where == short, "it has 64 tokens of it"
    long = engines.serve(ids)
    assert long != short, "64 tokens are not worth waiting for 200"
    engines.end(busy)
    assert [engines.serve([*ids, i]) for i in range(4)] == [long] * 4


def test_another_salt_is_another_prefix() -> None:
    engines = Engines(2)
    assert engines.serve(prompt(1), "a") != engines.serve(prompt(1), "b")
    assert prefix_keys(prompt(1), BLOCK, "a") != prefix_keys(prompt(1), BLOCK, "b")


def test_keys_depend_on_all_that_comes_before_and_on_full_blocks_only() -> None:
    ids = list(range(100))
    keys = prefix_keys(ids, BLOCK, "")
    assert len(keys) == 6 == len(set(keys))
    assert prefix_keys(ids[:47], BLOCK, "") == keys[:2]
    assert not set(prefix_keys([7, *ids[1:]], BLOCK, "")) & set(keys)


def test_a_prefix_is_worth_the_queue_that_it_saves_and_no_more() -> None:
    engines = Engines(2)
    home = engines.serve(prompt(1, 160))
    held = [engines.send(prompt(1, 160)) for _ in range(40)]
    assert [where for _, where in held[:16]] == [home] * 16, "16 answers of 10 tokens wait there: as much as it saves"
    assert sum(where == home for _, where in held[16:]) == 12, "the other one has it by now, so both take turns"


def test_a_busy_engine_is_passed_by() -> None:
    engines = Engines(2)
    home = engines.serve(prompt(1, 160))
    assert engines.send(prompt(1, 64) + prompt(9, 400))[1] == home
    assert engines.serve(prompt(1, 160)) != home, "more waits there than the prefix saves"


def test_an_engine_that_died_is_forgotten_and_others_go_on() -> None:
    engines = Engines(2)
    home = engines.serve(prompt(1))
    held = engines.send(prompt(1))
    assert held[1] == home
    engines.die(home)
    assert [engines.serve(prompt(i)) for i in range(5)] == [1 - home] * 5
    engines.start(home)
    assert engines.router.load(home) == 0
    assert engines.serve(prompt(1)) == 1 - home, "what the old process had is gone; the other one computed it since"
    assert engines.serve(prompt(77)) == home


def test_a_request_that_ends_after_its_engine_started_again_takes_nothing_away() -> None:
    engines = Engines(1)
    request_id, _ = engines.send(prompt(1))
    engines.router.open(0, 10)
    engines.end(request_id)
    assert engines.router.load(0) == 0
    engines.router.end("never sent")


def test_samples_count_each() -> None:
    engines = Engines(1)
    engines.send(prompt(1, 20), n=5)
    assert engines.router.load(0) == 20 + 5 * ANSWER


def test_no_more_is_remembered_than_the_engine_has_blocks() -> None:
    engines = Engines(2, num_blocks=25)
    home = engines.serve(prompt(1))
    for i in range(2, 10):
        engines.serve(prompt(i))
    assert engines.router.load(home) == 0
    hits = engines.num_hit_tokens
    engines.serve(prompt(1))
    assert engines.num_hit_tokens == hits, "it was the first to be forgotten"
    last = engines.serve(prompt(9))
    assert engines.serve(prompt(9)) == last


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(1, 400), st.integers(1, 4), st.booleans()), min_size=1, max_size=60
    ),
    st.integers(1, 4),
)
def test_load_is_bounded_by_the_least_one_and_adds_up(jobs: list[tuple[int, int, int, bool]], count: int) -> None:
    engines, held = Engines(count), []
    for number, length, n, is_ended in jobs:
        before = [engines.router.load(engine) for engine in range(count)]
        request_id, chosen = engines.send(prompt(number, length), n=n)
        assert engines.router.load(chosen) <= min(before) + length + n * ANSWER
        held.append(request_id)
        if is_ended:
            engines.end(held.pop(0))
    for request_id in held:
        engines.end(request_id)
    assert [engines.router.load(engine) for engine in range(count)] == [0] * count


@pytest.mark.parametrize("count", (2, 4))
def test_conversations_find_their_prefixes_while_load_stays_level(count: int) -> None:
    """Sixty conversations of eight turns at once: nearly every prompt is found, and no engine has much more to do."""
    engines = Engines(count)
    held: list[str] = []
    most = least = 0
    for turn in range(1, 9):
        for i in range(60):
            held.append(engines.send(prompt(i, 100 * turn))[0])
            if len(held) > 4 * count:
                engines.end(held.pop(0))
            loads = [engines.router.load(engine) for engine in range(count)]
            most, least = most + max(loads), least + min(loads)
    known = sum(60 * (100 * (turn - 1) // BLOCK * BLOCK) for turn in range(2, 9))
    assert engines.num_hit_tokens > 0.9 * known
    assert most < 3 * least
