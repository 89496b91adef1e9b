"""Ranks that Ray places, on two nodes of this machine and on hosts with addresses of their own. Each starts Ray."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from quire.distributed.doctor.diagnosis import Finding
from tests.support.hosts import Host, can_make_namespaces, namespaces, own_address, ray_nodes, running

pytest.importorskip("ray")
pytestmark = pytest.mark.slow

# Prints the tokens of one process, then of each layout on the cluster.
TOKENS = """
import pathlib, sys, tempfile, msgspec
from tests.engine.test_parallel import SHARED, load, prompts, tokens, write_model
batch = prompts(4, seed=3, low=10, high=20)
with tempfile.TemporaryDirectory() as folder:
    model = write_model(pathlib.Path(folder) / "llama", SHARED)
    for layout, options in (((1, 1), {}), *(((tp, pp), {"distributed_executor_backend": "ray"}) for tp, pp in LAYOUTS)):
        with load(model, layout, **options) as llm:
            print("TOKENS", msgspec.json.encode(tokens(llm, batch)).decode(), flush=True)
"""

# Generates for ever; tells when it has begun, then the error, then that another model finds the devices free.
DEATH = """
import pathlib, sys, tempfile
from quire.core.errors import WorkerError
from tests.engine.test_parallel import GREEDY, SHARED, load, prompts, tokens, write_model
batch = prompts(4, seed=3, low=10, high=20)
with tempfile.TemporaryDirectory() as folder:
    model = write_model(pathlib.Path(folder) / "llama", SHARED)
    llm = load(model, (1, 2), distributed_executor_backend="ray")
    print("BEGUN", flush=True)
    try:
        while True:
            tokens(llm, batch)
    except WorkerError as error:
        print("ERROR", repr(str(error)), flush=True)
    llm.close()
    if sys.argv[1:] == ["again"]:
        with load(model, (1, 2), distributed_executor_backend="ray") as llm:
            print("AGAIN", len(tokens(llm, batch)), flush=True)
"""


def lines(process: subprocess.Popen, mark: str, timeout_s: float = 150) -> list[str]:
    """What a process has printed after a mark, once it has ended."""
    out, _ = process.communicate(timeout=timeout_s)
    found = [line[len(mark) + 1 :] for line in out.splitlines() if line.startswith(mark + " ")]
    assert found, out[-4000:]
    return found


def until_said(process: subprocess.Popen, mark: str) -> str:
    """Read on until a line begins with a mark."""
    said = ""
    for line in process.stdout:
        said += line
        if line.startswith(mark):
            return line
    raise AssertionError(said[-4000:])


def workers() -> dict[int, int]:
    """Ranks of the workers that Ray's processes have started here, and their process ids."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"quire.runner.parallel.worker" in words and b"join" in words:
            found[int(words[words.index(b"join") + 2])] = int(path.parent.name)
    return found


def is_healthy(url: str) -> bool:
    """Whether a server takes requests."""
    asked = ["curl", "-sfS", "-m", "10", f"{url.removesuffix('/v1')}/health"]
    return subprocess.run(asked, capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def here() -> Iterator[tuple[Host, str]]:
    """Two nodes on this machine, a processor each."""
    host = Host(own_address())
    with ray_nodes([host, host]) as (address, _):
        yield host, address


def test_two_nodes_say_what_one_process_does(here) -> None:  # type: ignore[no-untyped-def]
    host, address = here
    code = TOKENS.replace("LAYOUTS", "((1, 2), (2, 1))")
    alone, *others = lines(host.python("-c", code, RAY_ADDRESS=address), "TOKENS")
    assert others == [alone] * 2 and len(msgspec.json.decode(alone)) == 4
    assert not workers()


@pytest.mark.parametrize("number", (signal.SIGKILL, signal.SIGSTOP))
def test_a_lost_worker_is_named_and_its_device_is_free_again(here, number) -> None:  # type: ignore[no-untyped-def]
    host, address = here
    with running(host.python("-c", DEATH, "again", RAY_ADDRESS=address)) as process:
        until_said(process, "BEGUN")
        time.sleep(0.5)
        os.kill(workers()[1], number)
        began_s = time.monotonic()
        told = until_said(process, "ERROR")
        assert time.monotonic() - began_s < 8, "five seconds, and what a busy machine adds"
        assert "rank 1 of 2" in told and "layers" in told, "the last lines of its log"
        assert lines(process, "AGAIN") == ["4"] and not workers()


def test_too_few_devices_are_told_with_what_there_is(here) -> None:  # type: ignore[no-untyped-def]
    host, address = here
    code = TOKENS.replace("LAYOUTS", "((4, 1),)")
    process = host.python("-c", f"import quire.distributed.ray_cluster as r; r._PLACE_TIMEOUT_S = 3\n{code}",
                          RAY_ADDRESS=address)  # fmt: skip
    out, _ = process.communicate(timeout=100)
    assert process.returncode == 1
    assert re.search(r"ConfigError: tensor_parallel_size \* pipeline_parallel_size: expected 4 times 1 free CPUs", out)
    assert f"1 on {host.address}, 1 on {host.address}" in out


def test_the_doctor_examines_the_cluster(here) -> None:  # type: ignore[no-untyped-def]
    host, address = here
    process = host.python("-m", "quire", "doctor", "--ray", "--json", RAY_ADDRESS=address)
    out, _ = process.communicate(timeout=100)
    findings = msgspec.json.decode(next(line for line in out.splitlines() if line.startswith("[{")), type=list[Finding])
    assert process.returncode == 0, out
    assert findings[0].message == "2 of 2 came"
    assert "1 pairs" in next(each.message for each in findings if each.check == "all-reduce")


def test_a_server_on_two_nodes_outlives_a_worker(here) -> None:  # type: ignore[no-untyped-def]
    host, address = here
    options = ("--max-model-len", "512", "--device", "cpu", "-pp", "2", "--distributed-executor-backend", "ray")
    command = ("-u", "-m", "quire", "serve", "quire-tiny", "--port", "0", "--no-standby", *options)
    with running(host.python(*command, RAY_ADDRESS=address)) as process:
        url = until_said(process, "serving").split()[1]
        ask = ["curl", "-sS", "-m", "60", f"{url}/completions", "-H", "content-type: application/json", "-d",
               '{"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}']  # fmt: skip
        text = msgspec.json.decode(subprocess.check_output(ask))["choices"][0]["text"]
        assert text
        os.kill(workers()[0], signal.SIGKILL)
        for is_ready, timeout_s in ((False, 10), (True, 90)):  # five seconds, and what a busy machine adds
            until_s = time.monotonic() + timeout_s
            while is_healthy(url) != is_ready:
                assert time.monotonic() < until_s
                time.sleep(0.1)
        assert msgspec.json.decode(subprocess.check_output(ask))["choices"][0]["text"] == text
    time.sleep(3)
    assert not workers()


def test_a_host_that_is_lost_is_an_error() -> None:
    host = Host(own_address())
    with (
        ray_nodes([host, host]) as (address, nodes),
        running(host.python("-c", DEATH, RAY_ADDRESS=address)) as process,
    ):
        until_said(process, "BEGUN")
        os.killpg(nodes[1].pid, signal.SIGKILL)
        told = until_said(process, "ERROR")
        assert re.search("rank [01] of 2", told)
        process.communicate(timeout=60)


@pytest.mark.skipif(not can_make_namespaces(), reason="no network namespaces here")
def test_hosts_with_addresses_of_their_own_say_what_one_process_does() -> None:
    code = TOKENS.replace("LAYOUTS", "((1, 2), (2, 1))")
    with namespaces() as hosts, ray_nodes(hosts) as (address, _):
        alone, *others = lines(hosts[0].python("-c", code, RAY_ADDRESS=address), "TOKENS")
        assert others == [alone] * 2


@pytest.mark.skipif(not can_make_namespaces(), reason="no network namespaces here")
def test_the_doctor_names_a_host_that_cannot_be_reached() -> None:
    with namespaces(3) as hosts:
        blind = hosts[2]
        for host in hosts[1:2]:  # the second and the third host do not reach each other
            subprocess.run([*host.prefix, "ip", "route", "add", "blackhole", blind.address], check=True)
        addresses = ",".join(host.address for host in hosts)
        command = ["-m", "quire", "doctor", "--json", "--hosts", addresses, "--timeout-s", "40"]
        processes = [host.python(*command) for host in hosts]
        out, *_ = [process.communicate(timeout=150)[0] for process in processes]
    findings = msgspec.json.decode(next(line for line in out.splitlines() if line.startswith("[{")), type=list[Finding])
    wrong = {(each.check, each.ranks) for each in findings if each.level == "error"}
    assert processes[0].returncode == 1
    assert wrong == {("ports", (1, 2)), ("ports", (2, 1))}, "who cannot connect is not asked for an all-reduce"
