"""Hosts for tests: network namespaces with addresses of their own, or this machine under several names; Ray on them."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")
START_S = 120


@dataclass
class Host:
    """Where processes can be run, and by which address it is known."""

    address: str
    prefix: list[str] = field(default_factory=list)

    def popen(self, *command: str, **variables: str) -> subprocess.Popen:
        """Start a process there, in a group of its own; its output is text."""
        paths = f"{ROOT / 'src'}{os.pathsep}{ROOT}"
        env = {
            **os.environ,
            "PYTHONPATH": paths,
            "OMP_NUM_THREADS": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_raylet_start_wait_time_s": "120",
            **variables,
        }  # a busy machine
        return subprocess.Popen([*self.prefix, *command], env=env, cwd=ROOT, text=True, start_new_session=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip

    def python(self, *arguments: str, **variables: str) -> subprocess.Popen:
        return self.popen(sys.executable, *arguments, **variables)


def own_address() -> str:
    """An address of this machine that is not the loopback's, if it has one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("198.51.100.1", 9))  # nothing is sent
            return str(sock.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def can_make_namespaces() -> bool:
    """Whether this user may make network namespaces here."""
    name = f"quire-try-{os.getpid()}"
    try:
        made = subprocess.run(["ip", "netns", "add", name], capture_output=True)
    except OSError:
        return False
    if made.returncode == 0:
        subprocess.run(["ip", "netns", "del", name], check=True)
    return made.returncode == 0


@contextmanager
def namespaces(count: int = 2) -> Iterator[list[Host]]:
    """Make namespaces that are joined by a bridge, 10.77.0.1 and so on; they know no other network."""
    names = [f"quire-{os.getpid()}-{number}" for number in range(count + 1)]
    switch, *ends = names

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    with ExitStack() as stack:
        for name in names:
            ip("netns", "add", name)
            stack.callback(ip, "netns", "del", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", switch, "link", "add", "br0", "type", "bridge")
        ip("-n", switch, "link", "set", "br0", "up")
        for number, name in enumerate(ends, 1):
            ip("-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", f"port{number}", "netns", switch)
            ip("-n", switch, "link", "set", f"port{number}", "master", "br0", "up")
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
        yield [Host(f"10.77.0.{number}", ["ip", "netns", "exec", name]) for number, name in enumerate(ends, 1)]


@contextmanager
def ray_nodes(hosts: list[Host], num_cpus: int = 1) -> Iterator[tuple[str, list[subprocess.Popen]]]:
    """Run a Ray node on each host; yields the cluster's address, and the nodes' processes."""
    with socket.create_server(("", 0)) as sock:
        port = sock.getsockname()[1]
    address, nodes = f"{hosts[0].address}:{port}", []
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        try:
            for number, host in enumerate(hosts):
                where = (
                    [f"--address={address}"]
                    if number
                    else ["--head", f"--port={port}", f"--temp-dir={folder}", "--include-dashboard=false"]
                )
                nodes.append(host.popen(str(RAY), "start", *where, f"--node-ip-address={host.address}", "--block",
                                        f"--num-cpus={num_cpus}", "--object-store-memory=80000000",
                                        "--disable-usage-stats"))  # fmt: skip
                _wait_for(nodes[-1], "--block")
            yield address, nodes
        finally:
            for node in reversed(nodes):
                end(node)


def _wait_for(process: subprocess.Popen, words: str) -> None:
    """Read a process' output until some words come."""
    until_s, said = time.monotonic() + START_S, ""
    for line in process.stdout:
        said += line
        if words in line:
            return
        assert time.monotonic() < until_s, said
    raise AssertionError(said)


def end(process: subprocess.Popen) -> None:
    """End a process, and what is left of what it has started."""
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(20)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


@contextmanager
def running(process: subprocess.Popen) -> Iterator[subprocess.Popen]:
    """End a process with the block."""
    try:
        yield process
    finally:
        end(process)
