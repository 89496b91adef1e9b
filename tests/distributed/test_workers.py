"""Workers are watched: whoever is lost is named, all end with it, and nothing of them stays."""

import os
import signal
import socket
import threading
import time

import pytest

from quire.core.errors import WorkerError
from quire.distributed.channel import pack_frame
from quire.distributed.endpoint import Door, knock, spawn
from quire.distributed.workers import WorkerGroup


@pytest.fixture
def group():
    made = WorkerGroup(lambda: [spawn("tests.support.idle_worker", rank) for rank in range(2)])
    yield made
    made.close()
    assert not any(map(is_alive, made.pids))


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def ask(group, rank, payload):
    group.send(rank, payload)
    return group.receive(rank)


def test_frames_go_to_each_and_back(group):
    assert [ask(group, rank, b"%d" % rank) for rank in (1, 0)] == [b"1", b"0"]
    assert not group.has_frame(0)
    large = b"x" * (4 << 20)
    for _ in range(3):  # more than any socket holds: who sends reads, too
        group.send(0, large)
    assert [group.receive(0) == large for _ in range(3)] == [True] * 3
    while group.reports != [b"well"] * 2:
        time.sleep(0.01)


def test_who_exits_is_named_with_its_last_lines(group, capfd):
    lost = threading.Event()
    group._on_lost = lost.set
    for number in range(30):
        ask(group, 1, b"say line %d" % number)
    group.send(1, b"exit 3")
    with pytest.raises(WorkerError, match=r"(?s)rank 1 of 2.*exit code 3.*line 10\n.*line 29") as caught:
        group.receive(0)
    assert caught.value.rank == 1 and "line 9\n" not in str(caught.value)
    assert lost.wait(1) and "[rank 1] line 29" in capfd.readouterr().err
    with pytest.raises(WorkerError, match="rank 1 of 2"):
        group.send(0, b"anybody?")


@pytest.mark.parametrize("rank", range(2))
def test_who_is_killed_is_to_blame(group, rank):
    ask(group, 0, b"ready"), ask(group, 1, b"ready")
    os.kill(group.pids[rank], signal.SIGKILL)
    with pytest.raises(WorkerError, match=f"(?s)rank {rank} of 2.*exit code -9. It wrote nothing"):
        group.receive(1 - rank)


def test_silence_is_death(group):
    ask(group, 0, b"ready"), ask(group, 1, b"ready")
    group.watch_closely()
    began_s = time.monotonic()
    os.kill(group.pids[0], signal.SIGSTOP)
    with pytest.raises(WorkerError, match=r"rank 0 of 2.*did not answer for 2.5 s"):
        group.receive(1)
    assert time.monotonic() - began_s < 5


def test_a_busy_worker_is_not_dead(group):
    group.watch_closely()
    assert ask(group, 0, b"sleep 4") == b"sleep 4"


def test_who_does_not_know_the_secret_stays_outside():
    door = Door("127.0.0.1")
    host, _, port = door.address.rpartition(":")
    for payload in (b"", b"nothing of the kind", pack_frame(b"\x93\xa1x\x01\xc2")):
        with socket.create_connection((host, int(port))) as sock:
            sock.sendall(payload)
    channels = []
    coming = threading.Thread(target=lambda: channels.extend(knock(door.address, door.secret, 1)))
    coming.start()
    (endpoint,) = door.admit({1}, 10)
    coming.join()
    with pytest.raises(WorkerError, match="ranks 2, 3: expected them to reach"):
        door.admit({2, 3}, 0.05)
    door.close()
    channels[0].send(b"hello")
    assert endpoint.commands.recv(9) == pack_frame(b"hello") and endpoint.rank == 1
    for closing in (*channels, endpoint.commands, endpoint.health):
        closing.close()
