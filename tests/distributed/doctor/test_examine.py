"""Ranks that examine themselves: on this machine, with one missing, with somebody else at the port."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from quire.cli.main import main
from quire.core.env import LaunchedRank, launch_variables, launched_rank
from quire.core.errors import ConfigError
from quire.distributed.doctor.diagnosis import Finding
from quire.distributed.doctor.examine import examine
from quire.distributed.doctor.facts import gather_facts
from quire.distributed.doctor.launching import rank_of_host
from quire.distributed.doctor.responder import Responder, reach

SOURCE = Path(__file__).parents[3] / "src"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def doctor(*options: str, **variables: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), **variables}
    command = [sys.executable, "-m", "quire", "doctor", "--json", *options]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_three_ranks_in_one_process() -> None:
    port = free_port()
    ranks = [LaunchedRank(rank, 3, 3, "127.0.0.1", port, rank) for rank in range(3)]
    with ThreadPoolExecutor(3) as executor:
        first, *others = executor.map(lambda rank: examine(rank, 20.0), ranks)
    assert not [each for each in first if each.level == "error"] and others == [[], []]
    assert next(each.message for each in first if each.check == "all-reduce").startswith("3 pairs")


@pytest.mark.slow
def test_two_ranks_of_this_machine() -> None:
    process = doctor("--ranks", "2")
    out, err = process.communicate(timeout=100)
    findings = msgspec.json.decode(out, type=list[Finding])
    assert process.returncode == 0, (out, err)
    assert {"ranks", "torch", "ports", "clocks", "all-reduce"} <= {each.check for each in findings}
    assert not [each for each in findings if each.level == "error"]
    assert "1 pairs" in next(each.message for each in findings if each.check == "all-reduce")


@pytest.mark.slow
def test_torchrun_starts_ranks_that_examine_themselves() -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "-m",
        "quire",
        "doctor",
        "--json",
    ]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert msgspec.json.decode(done.stdout, type=list[Finding])[0].message == "2 of 2 came"


@pytest.mark.slow
def test_a_rank_that_does_nothing_more_is_named() -> None:
    port = free_port()
    ranks = [LaunchedRank(rank, 3, 3, "127.0.0.1", port, rank) for rank in range(3)]
    processes = [doctor("--timeout-s", "30", **launch_variables(rank)) for rank in ranks[:2]]
    victim = subprocess.Popen(
        [sys.executable, "-c", STUCK], env={**os.environ, "PYTHONPATH": str(SOURCE), **launch_variables(ranks[2])}
    )
    try:
        out, _ = processes[0].communicate(timeout=200)
        processes[1].communicate(timeout=60)
    finally:
        victim.kill()
        victim.wait()
    findings = msgspec.json.decode(out, type=list[Finding])
    assert processes[0].returncode == 1 and processes[1].returncode == 0
    assert [(each.check, each.ranks) for each in findings if each.level == "error"] == [("all-reduce", (2,))]


# A rank that tells its facts, answers at its port, and then does nothing more.
STUCK = """
import time
from quire.core.env import launched_rank
from quire.distributed.doctor import examine
from quire.distributed.doctor.diagnosis import Pair
examine._meet = lambda *_: time.sleep(1000)
examine.examine(launched_rank(), 30.0)
"""


def test_a_rank_that_does_not_come_is_named() -> None:
    findings = examine(LaunchedRank(0, 2, 1, "127.0.0.1", free_port()), 0.3)
    wrong = [each for each in findings if each.level == "error"]
    assert [(each.check, each.ranks) for each in wrong] == [("ranks", (1,))]


def test_a_first_rank_that_is_not_there_is_told_in_a_line(capsys, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    for name, value in launch_variables(LaunchedRank(1, 2, 1, "127.0.0.1", free_port())).items():
        monkeypatch.setenv(name, value)
    assert main(["doctor", "--timeout-s", "0.3"]) == 2
    told = capsys.readouterr().err
    assert "rank 1 on " in told and "expected the first rank at 127.0.0.1:" in told and "refused" in told


def test_a_port_in_use_is_told() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ConfigError, match=r"port: expected to listen at 127\.0\.0\.1:"),
    ):
        examine(LaunchedRank(0, 2, 1, "127.0.0.1", taken.getsockname()[1]), 0.3)


def test_which_of_the_hosts_this_is() -> None:
    assert rank_of_host(["198.51.100.1", "127.0.0.1"], 29500) == LaunchedRank(1, 2, 1, "198.51.100.1", 29500)
    with pytest.raises(ConfigError, match=r"hosts: expected one of 198\.51\.100\.1, 198\.51\.100\.2 to be"):
        rank_of_host(["198.51.100.1", "198.51.100.2"], 29500)


def test_variables_of_a_launcher_are_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    rank = LaunchedRank(3, 8, 4, "10.0.0.1", 1234, 3)
    for name, value in launch_variables(rank).items():
        monkeypatch.setenv(name, value)
    assert launched_rank() == rank


def test_a_port_answers_with_the_time() -> None:
    with Responder("127.0.0.1") as responder:
        facts = gather_facts(7, "127.0.0.1", responder.port)
        found = [reach(1, facts) for _ in range(3)]
    assert all(each.error == "" and each.target == 7 and abs(each.offset_s) < 0.05 for each in found)
    assert "refused" in reach(1, facts).error, "it is closed"


def test_somebody_else_at_the_port_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        facts = gather_facts(7, "127.0.0.1", other.getsockname()[1])
        other.settimeout(5)
        with Responder("127.0.0.1"):
            began_s = time.monotonic()
            assert "no answer" in reach(1, facts).error and time.monotonic() - began_s < 10
