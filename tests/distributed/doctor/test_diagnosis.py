"""Whose fault it is: from what ranks say to lines that name the culprit."""

from __future__ import annotations

from itertools import combinations, permutations

import pytest
from msgspec.structs import replace

from quire.distributed.doctor.diagnosis import Finding, Pair, Reach, blame, diagnose
from quire.distributed.doctor.facts import Facts
from quire.distributed.doctor.pairs import rounds

VERSIONS = {"python": "3.11.7", "quire": "0.1.0", "torch": "2.13.0"}


def cluster(count: int = 4) -> list[Facts]:
    """Ranks on hosts of their own, with nothing wrong."""
    return [
        Facts(i, f"host{i}", f"10.0.0.{i + 1}", 5000 + i, VERSIONS, f"10.0.0.{i + 1}", 0, 8 << 30, 65536, -1)
        for i in range(count)
    ]


def reaches(count: int = 4, **changed: Reach) -> list[Reach]:
    return [changed.get(f"r{a}{b}", Reach(a, b, "", 0.001, 0.0)) for a, b in permutations(range(count), 2)]


def pairs(count: int = 4, **changed: Pair) -> list[Pair]:
    return [changed.get(f"p{a}{b}", Pair(a, b, "", 1e-4, 1e9)) for a, b in combinations(range(count), 2)]


def examine(facts=None, reached=None, met=None, world_size: int = 4) -> list[Finding]:  # type: ignore[no-untyped-def]
    return diagnose(
        world_size,
        cluster() if facts is None else facts,
        reaches() if reached is None else reached,
        pairs() if met is None else met,
    )


def wrong(findings: list[Finding]) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(each.level, each.check, each.ranks) for each in findings if each.level != "ok"]


def test_nothing_is_wrong() -> None:
    findings = examine()
    assert not wrong(findings)
    assert {"ranks", "python", "torch", "quire", "ports", "clocks", "all-reduce", "own name"} <= {
        each.check for each in findings
    }


def test_who_did_not_come_is_named() -> None:
    findings = examine(facts=[each for each in cluster() if each.rank != 2], reached=[], met=[])
    assert ("error", "ranks", (2,)) in wrong(findings) and findings[0].message.startswith("rank 2 of 4 did not come")


@pytest.mark.parametrize("name", tuple(VERSIONS))
def test_another_version_is_laid_at_the_door_of_the_minority(name: str) -> None:
    facts = cluster()
    facts[3] = replace(facts[3], versions={**VERSIONS, name: "9.9"})
    (found,) = [each for each in examine(facts) if each.level != "ok"]
    assert (found.level, found.check, found.ranks) == ("error", name, (3,))
    assert "rank 3 (host3, 10.0.0.4) has 9.9" in found.message and "3 of 4" in found.message


def test_where_there_is_no_majority_all_are_told() -> None:
    facts = cluster(2)
    facts[1] = replace(facts[1], versions={**VERSIONS, "torch": "2.11.0"})
    found = wrong(examine(facts, reaches(2), pairs(2), 2))
    assert found == [("error", "torch", (0, 1))]


def test_a_gpu_that_others_have_and_one_has_not() -> None:
    facts = [replace(each, versions={**VERSIONS, "gpu": "H100", "driver": "570"}) for each in cluster()]
    facts[1] = replace(facts[1], versions=VERSIONS)
    assert wrong(examine(facts)) == [("error", "driver", (1,)), ("warning", "gpu", (1,))]


@pytest.mark.parametrize(
    ("check", "change"),
    (
        ("shared memory", {"shared_memory_bytes": 64 << 20}),
        ("open files", {"max_files": 1024}),
        ("locked memory", {"has_infiniband": True, "max_locked_bytes": 65536}),
        ("own name", {"own_address": "127.0.1.1"}),
        ("own name", {"own_address": ""}),
    ),
)
def test_what_a_host_has_wrong_by_itself(check: str, change: dict[str, object]) -> None:
    facts = cluster()
    facts[2] = replace(facts[2], **change)
    assert wrong(examine(facts)) == [("warning", check, (2,))]


def test_on_one_host_its_own_name_may_lead_anywhere() -> None:
    facts = [replace(each, host="one", address="127.0.0.1", own_address="127.0.1.1") for each in cluster()]
    assert not wrong(examine(facts))


def test_a_rank_that_nobody_reaches_is_named_once() -> None:
    closed = {f"r{a}2": Reach(a, 2, "no answer") for a in (0, 1, 3)}
    found = [each for each in examine(reached=reaches(**closed)) if each.level != "ok"]
    assert [(each.check, each.ranks) for each in found] == [("ports", (2,))]
    assert found[0].message.startswith("nobody can connect to rank 2 (host2, 10.0.0.3): no answer")


def test_a_single_link_is_named_by_both_ends() -> None:
    assert wrong(examine(reached=reaches(r13=Reach(1, 3, "refused")))) == [("error", "ports", (1, 3))]


@pytest.mark.parametrize("late", range(4))
def test_a_clock_that_differs_from_the_others(late: int) -> None:
    """Whoever it is, the first rank included, by whose clock the others are measured."""
    offsets = {rank: (-30.0 if late == 0 else 0.0) + (30.0 if rank == late else 0.0) for rank in range(4)}
    seen = {f"r0{rank}": Reach(0, rank, "", 0.001, offsets[rank]) for rank in range(1, 4)}
    found = [each for each in examine(reached=reaches(**seen)) if each.level != "ok"]
    assert [(each.check, each.ranks) for each in found] == [("clocks", (late,))]
    assert "30.0 s ahead" in found[0].message


def test_a_rank_that_fails_with_all_is_named_and_a_link_by_both_ends() -> None:
    broken = {f"p{a}{b}": Pair(a, b, "Timeout") for a, b in ((0, 2), (1, 2), (2, 3))}
    assert wrong(examine(met=pairs(**broken))) == [("error", "all-reduce", (2,))]
    assert wrong(examine(met=pairs(p13=Pair(1, 3, "Timeout")))) == [("error", "all-reduce", (1, 3))]


def test_a_pair_that_says_nothing_has_failed() -> None:
    assert wrong(examine(met=[pair for pair in pairs() if 1 not in (pair.first, pair.second)])) == [
        ("error", "all-reduce", (1,))
    ]


def test_when_every_pair_fails_nobody_is_singled_out() -> None:
    broken = [Pair(a, b, "no route") for a, b in combinations(range(4), 2)]
    assert wrong(examine(met=broken)) == [("error", "all-reduce", (0, 1, 2, 3))]


def test_a_slow_rank_and_a_slow_link() -> None:
    slow = {f"p{a}{b}": Pair(a, b, "", 1e-4, 1e8) for a, b in ((0, 3), (1, 3), (2, 3))}
    usual = pairs(6, **{f"p{a}5": Pair(a, 5, "", 1e-4, 1e8) for a in range(5)})
    assert wrong(examine(cluster(6), reaches(6), usual, 6)) == [("warning", "all-reduce", (5,))]
    link = pairs(p03=slow["p03"])
    assert wrong(examine(met=link)) == [("warning", "all-reduce", (0, 3))]


def test_two_ranks_blame_each_other_only() -> None:
    assert blame([(1, 0), (0, 1)], range(2)) == ([], [(0, 1)])
    assert blame([], range(5)) == ([], [])
    assert blame([(0, 2), (1, 2), (0, 3), (1, 3), (2, 3)], range(4)) == ([2, 3], [])


@pytest.mark.parametrize("count", range(2, 9))
def test_every_pair_meets_once_and_nobody_is_in_two_at_a_time(count: int) -> None:
    ranks = list(range(10, 10 + count))
    table = rounds(ranks)
    assert sorted(pair for meetings in table for pair in meetings) == list(combinations(ranks, 2))
    assert len(table) == count - 1 + count % 2
    for meetings in table:
        met = [rank for pair in meetings for rank in pair]
        assert len(met) == len(set(met))
