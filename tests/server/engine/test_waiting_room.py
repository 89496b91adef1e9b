"""How much may wait, and when to come back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.core.config import SchedulerConfig
from quire.core.server_config import ServerConfig
from quire.server.engine.waiting_room import WaitingRoom
from quire.server.engine_client import OverloadedError

SCHEDULER = SchedulerConfig(max_model_len=100, max_num_seqs=4, max_num_batched_tokens=64, block_size=10, num_blocks=21)


class Clock:
    """Seconds, when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def room_of(clock: Clock | None = None, **limits: int) -> WaitingRoom:
    return WaitingRoom(ServerConfig(**limits), [SCHEDULER], clock or Clock())  # type: ignore[arg-type]


def test_defaults_come_from_what_the_engine_holds() -> None:
    room = room_of()
    assert room.max_num_seqs == 4 + 16
    assert room.max_waiting_tokens == max(4 * 20 * 10, 16 * 100)


def test_samples_count_each() -> None:
    room = room_of(max_num_waiting=2)
    room.enter("a", 4, 10)
    room.enter("b", 2, 10)
    with pytest.raises(OverloadedError, match="6 sequences, of at most 6"):
        room.enter("c", 1, 10)
    room.leave("b")
    room.enter("c", 2, 10)


def test_tokens_count_until_there_is_a_seat() -> None:
    room = room_of(max_waiting_tokens=100)
    room.enter("a", 1, 80)
    with pytest.raises(OverloadedError, match="80 tokens, of at most 100"):
        room.enter("b", 1, 21)
    room.seat("a")
    room.enter("b", 1, 100)
    room.leave("a")
    room.leave("b")
    room.enter("larger than the room, and alone", 9, 1000)


def test_when_to_come_back_follows_the_present_rate() -> None:
    clock = Clock()
    room = room_of(clock, max_num_waiting=0)
    for name in "abcd":
        room.enter(name, 1, 1)
    assert refusal(room).retry_after_s == 1, "nothing is known yet"
    for name in "abcd":
        clock.now += 2
        room.leave(name)
        room.enter(name, 1, 1)
    assert refusal(room).retry_after_s == pytest.approx(4 / (4 / 6))
    clock.now += 20
    assert refusal(room).retry_after_s == pytest.approx(4 / (4 / 26))
    clock.now += 60
    assert refusal(room).retry_after_s == 1, "an old rate says nothing"


def is_full(room: WaitingRoom) -> bool:
    try:
        room.check()
    except OverloadedError:
        return True
    return False


def refusal(room: WaitingRoom) -> OverloadedError:
    with pytest.raises(OverloadedError) as caught:
        room.enter("late", 1, 1)
    return caught.value


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["enter", "seat", "leave"]), st.integers(1, 5))))
def test_the_books_balance(operations: list[tuple[int, str, int]]) -> None:
    room, inside, seated = room_of(max_num_waiting=3, max_waiting_tokens=60), {}, set()
    for number, kind, n in operations:
        name = str(number)
        if kind == "enter" and name not in inside:
            try:
                room.enter(name, n, 10 * n)
                inside[name] = n
            except OverloadedError:
                assert sum(inside.values()) + n > 7 or 10 * (sum(inside.values()) + n) > 60
        elif kind == "seat" and name in inside:
            room.seat(name)
            seated.add(name)
        elif kind == "leave" and name in inside:
            room.leave(name)
            del inside[name]
            seated.discard(name)
        assert is_full(room) == (sum(inside.values()) >= 7 or room._num_waiting_tokens >= 60)
        assert room._num_unfinished == sum(inside.values())
        assert room._num_waiting_tokens == 10 * sum(n for name, n in inside.items() if name not in seated)
