"""A server whose engine has workers: any of them may be lost, and it serves again; nothing is left at its end."""

import os
import signal
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.server.test_life import begin
from tests.support.server_process import events, read_all, serving, status_and_body

pytestmark = [pytest.mark.multi, pytest.mark.slow]


def processes(word: str, ancestor: int) -> list[int]:
    """Return the processes below another whose command line has a word in it."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found = []
    for pid in parents:
        above = pid
        while above in parents and above != ancestor:
            above = parents[above]
        with suppress(OSError):
            if above == ancestor and word in Path(f"/proc/{pid}/cmdline").read_text():
                found.append(pid)
    return sorted(found)


def are_gone(pids: list[int]) -> bool:
    """Return whether processes end within 5 s."""
    deadline_s = time.monotonic() + 5
    while time.monotonic() < deadline_s:
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.02)
    return False


def workers(server) -> list[int]:
    return processes("quire.runner.parallel.worker", server.process.pid)


def until_unready(server) -> None:
    """Wait until a loss is noticed."""
    start = time.monotonic()
    while server.ask("GET", "/health/ready")[0] == 200:
        assert time.monotonic() - start < 5
        time.sleep(0.02)


def until_ready(server) -> None:
    while server.ask("GET", "/health/ready")[0] != 200:
        time.sleep(0.2)


@pytest.mark.parametrize("option", ("--tensor-parallel-size", "-pp"))
def test_a_lost_worker_is_an_error_and_a_restart(option):
    with serving(option, "2") as server:
        for sent in (signal.SIGKILL, signal.SIGSTOP):
            pids = workers(server)
            sock, got = begin(server, max_tokens=400)
            os.kill(pids[-1], sent)
            start = time.monotonic()
            with closing(sock):
                found = events(status_and_body(got + read_all(sock))[1])
            assert time.monotonic() - start < 5 and found[-1]["error"]["code"] == "engine_unavailable"
            until_ready(server)
            assert are_gone(pids) and len(workers(server)) == 2
            assert server.post("/v1/completions", {"prompt": "Once", "max_tokens": 2})[0] == 200
        assert "rank 1 of 2" in server.log.read_text()


def test_a_worker_lost_while_nobody_asks_is_noticed_and_the_driver_takes_its_workers_along():
    with serving("-tp", "2") as server:
        pids = workers(server)
        os.kill(pids[0], signal.SIGKILL)
        until_unready(server)
        until_ready(server)
        pids += workers(server)
        (engine,) = processes("quire.server.engine.process", server.process.pid)
        os.kill(engine, signal.SIGKILL)
        until_unready(server)
        until_ready(server)
        assert are_gone(pids)
        pids = workers(server)
    assert len(pids) == 2 and are_gone(pids)
