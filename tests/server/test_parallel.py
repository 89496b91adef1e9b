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


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def workers(server) -> list[int]:
    return processes("quire.runner.parallel.worker", server.process.pid)


def until_ready(server) -> None:
    while server.ask("GET", "/health/ready")[0] != 200:
        time.sleep(0.05)


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
            assert all(map(is_gone, pids)) and len(workers(server)) == 2
            assert server.post("/v1/completions", {"prompt": "Once", "max_tokens": 2})[0] == 200
        assert "rank 1 of 2" in server.log.read_text()


def test_a_worker_lost_while_nobody_asks_is_noticed_and_the_driver_takes_its_workers_along():
    with serving("-tp", "2") as server:
        pids = workers(server)
        os.kill(pids[0], signal.SIGKILL)
        while server.ask("GET", "/health/ready")[0] == 200:
            time.sleep(0.02)
        until_ready(server)
        pids += workers(server)
        (engine,) = processes("quire.server.engine.process", server.process.pid)
        os.kill(engine, signal.SIGKILL)
        while server.ask("GET", "/health/ready")[0] == 200:
            time.sleep(0.02)
        until_ready(server)
        assert all(map(is_gone, pids))
        pids = workers(server)
    assert len(pids) == 2 and all(map(is_gone, pids))
