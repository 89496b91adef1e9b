"""What starts workers on a host tells how they fare and leaves none behind; and how ranks are dealt out to hosts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import pytest

from quire.core.config import EngineConfig
from quire.distributed.ray_cluster import bundle_size, deal_out
from quire.distributed.starter import Host, Starter, interface_of
from quire.runner.parallel.layout import Layout


@pytest.fixture
def starter() -> Iterator[Starter]:
    made = Starter(Host("node", "127.0.0.1"))
    yield made
    made.end(0)


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Programs that stand for workers."""
    (tmp_path / "says.py").write_text(
        "import os, sys\nprint(sys.stdin.readline().strip(), *sys.argv[1:], os.environ['GLOO_SOCKET_IFNAME'],"
        " os.environ['MORE'], file=sys.stderr)\nsys.exit(3)\n"
    )
    (tmp_path / "talks.py").write_text("import sys\n[print(i, file=sys.stderr) for i in range(100)]\n")
    (tmp_path / "sleeps.py").write_text("import time\ntime.sleep(100)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def until(condition: Callable[[], bool]) -> None:
    until_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until_s
        time.sleep(0.02)


def test_a_worker_gets_its_secret_its_arguments_and_its_interface(starter: Starter) -> None:
    starter.start(4, ["says", "join", "host:1", "4"], "the secret", {"MORE": "more"})
    until(lambda: starter.last_words(4)[0] is not None)
    assert starter.last_words(4) == (3, ["the secret join host:1 4 lo more"])


def test_the_last_lines_are_kept(starter: Starter) -> None:
    starter.start(0, ["talks"], "", {})
    starter.start(1, ["sleeps"], "", {})
    until(lambda: starter.last_words(0)[0] is not None)
    assert starter.last_words(0) == (0, [str(i) for i in range(80, 100)])
    assert starter.last_words(1) == (None, [])


def test_nothing_is_left(starter: Starter, tmp_path) -> None:  # type: ignore[no-untyped-def]
    starter.start(0, ["sleeps"], "", {})
    pid = starter._children[0].process.pid
    engine = tmp_path / "a" / "engine"
    assert not starter.has(str(engine))
    starter.publish(str(engine), {"graph.json": b"{}", "tactics/cpu.json": b"[]"})
    assert starter.has(str(engine)) and (engine / "tactics" / "cpu.json").read_bytes() == b"[]"
    began_s = time.monotonic()
    starter.end(0.2)
    assert time.monotonic() - began_s < 5 and not starter.has(str(engine))
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_the_interface_of_an_address() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("198.51.100.1") is None


@pytest.mark.parametrize(
    ("tp_size", "most", "size"), ((1, 8, 1), (4, 8, 4), (8, 8, 8), (8, 4, 4), (8, 3, 2), (6, 4, 3), (2, 0, 1))
)
def test_a_stage_is_on_one_host_if_one_is_large_enough(tp_size: int, most: int, size: int) -> None:
    assert bundle_size(tp_size, most) == size


def test_ranks_know_their_neighbours() -> None:
    places = deal_out(["a", "b", "a"], 2)
    assert [place.starter for place in places] == [0, 0, 1, 1, 2, 2]
    assert [place.num_local for place in places] == [4, 4, 2, 2, 4, 4]
    assert [place.local_rank for place in places] == [0, 1] * 3


def test_ray_is_asked_only_when_ranks_are_placed() -> None:
    config = EngineConfig(tensor_parallel_size=2, pipeline_parallel_size=3, distributed_executor_backend="ray")
    layout = Layout.of(config)
    assert layout.is_on_ray and layout.placement is None and layout.world_size == 6
