"""Threads and NUMA nodes for machines that are written down as Linux describes them."""

import os

import pytest
import torch

from quire.plan import cores as cores_module
from quire.plan.cores import Cores, find_cores, huge_pages, use_cores


def machine(root, nodes, threads_per_core=1, free=(), quota=None, period="100000"):
    """Write a machine of `nodes` x cores down; second threads of cores come after all first ones, as on Intel's."""
    num_cores = sum(nodes)
    first = 0
    for node, count in enumerate(nodes):
        for core in range(first, first + count):
            siblings = [core + i * num_cores for i in range(threads_per_core)]
            for processor in siblings:
                home = root / f"devices/system/cpu/cpu{processor}"
                (home / f"node{node}").mkdir(parents=True)
                (home / "topology").mkdir()
                (home / "topology/thread_siblings_list").write_text(",".join(map(str, siblings)) + "\n")
        first += count
    for node, size in enumerate(free):
        (root / f"devices/system/node/node{node}").mkdir(parents=True)
        text = f"Node {node} MemTotal: 99 kB\nNode {node} MemFree:  {size} kB\n"
        (root / f"devices/system/node/node{node}/meminfo").write_text(text)
    if quota is not None:
        (root / "fs/cgroup").mkdir(parents=True)
        (root / "fs/cgroup/cpu.max").write_text(f"{quota} {period}\n")
    return range(num_cores * threads_per_core)


def test_two_threads_of_a_core_count_once(tmp_path):
    found = find_cores(tmp_path, machine(tmp_path, [4], threads_per_core=2))
    assert (found.num_cores, found.num_threads, found.node_for(4)) == (4, 4, None)
    assert str(found) == "4 cores on 1 NUMA node"


def test_only_processors_that_the_process_may_use_count(tmp_path):
    machine(tmp_path, [4, 4], threads_per_core=2)
    found = find_cores(tmp_path, {0, 1, 8, 9})
    assert (found.num_cores, list(found.nodes)) == (2, [0])


@pytest.mark.parametrize(("quota", "threads"), [("max", 8), ("250000", 3), ("50000", 1), ("9900000", 8)])
def test_a_control_group_limits_threads(tmp_path, quota, threads):
    assert find_cores(tmp_path, machine(tmp_path, [8], quota=quota)).num_threads == threads


def test_the_older_control_group_limits_threads(tmp_path):
    processors = machine(tmp_path, [8])
    (tmp_path / "fs/cgroup/cpu").mkdir(parents=True)
    for name, value in {"cpu.cfs_quota_us": "400000", "cpu.cfs_period_us": "100000"}.items():
        (tmp_path / "fs/cgroup/cpu" / name).write_text(f"{value}\n")
    assert find_cores(tmp_path, processors).num_threads == 4
    (tmp_path / "fs/cgroup/cpu/cpu.cfs_quota_us").write_text("-1\n")
    assert find_cores(tmp_path, processors).num_threads == 8


def test_threads_that_fit_a_node_stay_on_the_emptier_one(tmp_path):
    found = find_cores(tmp_path, machine(tmp_path, [4, 8, 8], free=(900, 100, 200)))
    assert [found.node_for(n) for n in (4, 5, 8, 9, 20)] == [0, 2, 2, None, None]


def test_a_system_that_says_nothing_has_one_node(tmp_path):
    found = find_cores(tmp_path, range(3))
    assert (found.num_cores, found.num_threads, found.node_for(1), huge_pages(tmp_path)) == (3, 3, None, "never")


def test_huge_pages_are_what_is_in_brackets(tmp_path):
    (tmp_path / "kernel/mm/transparent_hugepage").mkdir(parents=True)
    (tmp_path / "kernel/mm/transparent_hugepage/enabled").write_text("always [madvise] never\n")
    assert huge_pages(tmp_path) == "madvise"


def test_this_machine():
    found = find_cores()
    assert 1 <= found.num_threads <= found.num_cores <= (os.cpu_count() or 1)


@pytest.mark.parametrize(("is_set", "before", "after"), [(False, 5, 2), (False, 1, 1), (True, 5, 5)])
def test_threads_are_lowered_unless_somebody_chose_them(monkeypatch, is_set, before, after):
    alone = Cores({0: [frozenset({0}), frozenset({1})]}, None, {})
    monkeypatch.setattr(cores_module, "find_cores", lambda: alone)
    monkeypatch.setenv("OMP_NUM_THREADS", "5" if is_set else "")
    present = torch.get_num_threads()
    try:
        torch.set_num_threads(before)
        use_cores()
        assert torch.get_num_threads() == after
    finally:
        torch.set_num_threads(present)


@pytest.mark.parametrize(("threads", "bound"), [(2, {0, 1}), (3, None)])
def test_the_process_is_bound_only_where_threads_fit_a_node(monkeypatch, threads, bound):
    two = Cores({0: [frozenset({0}), frozenset({1})], 1: [frozenset({2}), frozenset({3})]}, threads, {0: 9, 1: 1})
    done = []
    monkeypatch.setattr(cores_module, "find_cores", lambda: two)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3})
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, processors: done.append(set(processors)))
    use_cores()
    assert done == ([] if bound is None else [bound])
