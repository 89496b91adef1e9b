"""`diagnose`: from what ranks have said to what is wrong, whose fault it is, and what to do. Pure: no sockets here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import Literal

import msgspec

from quire.distributed.doctor.facts import Facts

Level = Literal["ok", "warning", "error"]

_MAX_CLOCK_S = 1.0  # logs of hosts cannot be read side by side beyond; TLS and Ray bear more
_LEAST_SHARED_BYTES = 1 << 30  # NCCL takes some 10 MB for each pair on a host; a container has 64 MB unless told
_LEAST_FILES = 4096  # a client takes one, a worker a dozen
_SLOW = 4.0  # times slower than the median pair


class Reach(msgspec.Struct, frozen=True):
    """What came of one rank's try to talk to another.

    Attributes:
        source: Who tried.
        target: Whom it tried.
        error: Why not; empty if it answered.
        round_trip_s: How long its answer took.
        offset_s: How far its clock was ahead.
    """

    source: int
    target: int
    error: str = ""
    round_trip_s: float = 0.0
    offset_s: float = 0.0


class Pair(msgspec.Struct, frozen=True):
    """What came of an all-reduce of two ranks, seen by one of them.

    Attributes:
        first: The lower rank.
        second: The higher rank.
        error: What went wrong; empty if the sum was right.
        latency_s: Of a few bytes.
        bytes_per_s: Of some megabytes, counted once.
    """

    first: int
    second: int
    error: str = ""
    latency_s: float = 0.0
    bytes_per_s: float = 0.0


class Finding(msgspec.Struct, frozen=True):
    """A line of the diagnosis.

    Attributes:
        level: How bad it is.
        check: What was looked at.
        message: What was found, and what to do.
        ranks: Whose fault it is.
    """

    level: Level
    check: str
    message: str
    ranks: tuple[int, ...] = ()


def diagnose(world_size: int, facts: Sequence[Facts], reaches: Sequence[Reach], pairs: Sequence[Pair]) -> list[Finding]:
    """Return what is wrong, or that nothing is, check by check.

    Args:
        world_size: How many ranks there should be.
        facts: Of those that came.
        reaches: Between them, in both directions.
        pairs: All-reduces of them.
    """
    names = {each.rank: each.name for each in facts}
    found = [_check_missing(world_size, facts), *_check_versions(facts), *_check_hosts(facts)]
    found += _check_reaches(names, reaches)
    found += _check_clocks(names, reaches)
    found += _check_pairs(names, connected(names, reaches), pairs)
    return found


def connected(ranks: Iterable[int], reaches: Iterable[Reach]) -> set[tuple[int, int]]:
    """Return the pairs of ranks, the lower first, that reach each other both ways."""
    good = {(reach.source, reach.target) for reach in reaches if not reach.error}
    return {pair for pair in combinations(sorted(ranks), 2) if pair in good and pair[::-1] in good}


def blame(failed: Iterable[tuple[int, int]], ranks: Collection[int]) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the ranks that explain the most failed pairs, and the pairs that are left: links of two sound ranks.

    A rank is to blame if it failed with more than one other, and with no fewer than any other; then the rest is looked
    at without it. Of three ranks or more; two can blame each other only.

    Args:
        failed: Pairs of ranks.
        ranks: All that took part.

    Example:
        >>> blame([(0, 2), (1, 2), (2, 3)], range(4))
        ([2], [])
    """
    left = {(min(pair), max(pair)) for pair in failed}
    guilty: list[int] = []
    while left:
        counts = Counter(rank for pair in left for rank in pair)
        most = max(counts.values())
        if most < 2 or len(ranks) < 3:
            break
        guilty += [rank for rank, count in counts.items() if count == most]
        left = {pair for pair in left if not set(pair) & set(guilty)}
    return sorted(guilty), sorted(left)


def _check_missing(world_size: int, facts: Sequence[Facts]) -> Finding:
    missing = sorted(set(range(world_size)) - {each.rank for each in facts})
    if not missing:
        return Finding("ok", "ranks", f"{world_size} of {world_size} came")
    return Finding(
        "error",
        "ranks",
        f"{_ranks(missing)} of {world_size} did not come. Does the command run there, with the same address and port? "
        "What it has printed says whether it could connect to the first rank.",
        tuple(missing),
    )


def _check_versions(facts: Sequence[Facts]) -> Iterator[Finding]:
    """Yield a finding for each name: those that differ from most are to blame, or all if there is no majority."""
    for name in sorted({name for each in facts for name in each.versions}):
        counts = Counter(each.versions.get(name, "none") for each in facts)
        (usual, count), *others = counts.most_common()
        if not others:
            yield Finding("ok", name, usual)
            continue
        is_majority = count > others[0][1]
        odd = [each for each in facts if not is_majority or each.versions.get(name, "none") != usual]
        told = ", ".join(f"{each.name} has {each.versions.get(name, 'none')}" for each in odd)
        expected = f"{usual}, which {count} of {len(facts)} have" if is_majority else "the same everywhere"
        level: Level = "warning" if name == "gpu" else "error"
        ranks = tuple(each.rank for each in odd)
        yield Finding(level, name, f"expected {expected}; {told}. Install the same everywhere.", ranks)


@dataclass(frozen=True, slots=True)
class _HostCheck:
    """Something that a host can have wrong by itself."""

    name: str
    is_bad: Callable[[Facts], bool]
    tell: Callable[[Facts], str]


_HOST_CHECKS = (
    _HostCheck(
        "shared memory",
        lambda each: 0 <= each.shared_memory_bytes < _LEAST_SHARED_BYTES,
        lambda each: (
            f"expected {_LEAST_SHARED_BYTES >> 20} MiB free in /dev/shm, got {each.shared_memory_bytes >> 20}. Give "
            "a container more (docker run --shm-size=2g)."
        ),
    ),
    _HostCheck(
        "open files",
        lambda each: each.max_files < _LEAST_FILES,
        lambda each: f"expected a limit of at least {_LEAST_FILES}, got {each.max_files}. Raise it (ulimit -n 65536).",
    ),
    _HostCheck(
        "locked memory",
        lambda each: each.has_infiniband and each.max_locked_bytes != -1,
        lambda each: f"expected no limit, got {each.max_locked_bytes} bytes. InfiniBand needs it: ulimit -l unlimited.",
    ),
)
_OWN_NAME = _HostCheck(
    "own name",
    lambda each: not each.own_address or each.own_address.startswith("127."),
    lambda each: (
        f"expected the host's own name to lead to an address that others see, got {each.own_address or 'none'}. "
        "Correct /etc/hosts, or name the interface in GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME."
    ),
)


def _check_hosts(facts: Sequence[Facts]) -> Iterator[Finding]:
    """Yield what a host alone has wrong; once for each host."""
    hosts = {(each.host, each.address): each for each in reversed(facts)}
    checks = _HOST_CHECKS if len(hosts) < 2 else (*_HOST_CHECKS, _OWN_NAME)
    for check in checks:
        bad = sorted((each for each in hosts.values() if check.is_bad(each)), key=lambda each: each.rank)
        if not bad:
            yield Finding("ok", check.name, "on every host")
        for each in bad:
            yield Finding("warning", check.name, f"{each.name}: {check.tell(each)}", (each.rank,))


def _check_reaches(names: Mapping[int, str], reaches: Sequence[Reach]) -> Iterator[Finding]:
    failed = {(reach.source, reach.target): reach for reach in reaches if reach.error}
    if not failed:
        yield Finding("ok", "ports", f"{len(reaches)} connections between ranks")
        return
    deaf = {rank for rank in names if sum(target == rank for _, target in failed) == len(names) - 1 > 0}
    for rank in sorted(deaf):
        error = next(reach.error for (_, target), reach in failed.items() if target == rank)
        yield Finding("error", "ports", f"nobody can connect to {names[rank]}: {error}. {_ADVICE}", (rank,))
    for (source, target), reach in sorted(failed.items()):
        if target not in deaf:
            message = f"{names[source]} cannot connect to {names[target]}: {reach.error}. {_ADVICE}"
            yield Finding("error", "ports", message, (source, target))


_ADVICE = "Let the hosts of a cluster reach each other on all ports above 1023, or correct the address."


def _check_clocks(names: Mapping[int, str], reaches: Sequence[Reach]) -> Iterator[Finding]:
    """Yield whose clock differs from the middle one of all."""
    first = min(names, default=0)
    ahead = {reach.target: reach for reach in reaches if reach.source == first and not reach.error}
    offsets = {first: 0.0, **{rank: reach.offset_s for rank, reach in ahead.items()}}
    middle = sorted(offsets.values())[len(offsets) // 2] if len(offsets) > 2 else 0.0
    bad = {
        rank: offset - middle
        for rank, offset in offsets.items()
        if abs(offset - middle) > _MAX_CLOCK_S + (ahead[rank].round_trip_s if rank in ahead else 0)
    }
    for rank, offset in sorted(bad.items()):
        where = "ahead" if offset > 0 else "behind"
        message = f"{names[rank]} is {abs(offset):.1f} s {where}. Run an NTP client there."
        yield Finding("warning", "clocks", message, (rank,))
    if not bad:
        apart_s = max(offsets.values()) - min(offsets.values())
        yield Finding("ok", "clocks", f"{apart_s * 1e3:.0f} ms apart at most")


def _check_pairs(
    names: Mapping[int, str], links: Collection[tuple[int, int]], pairs: Sequence[Pair]
) -> Iterator[Finding]:
    """Yield the ranks and links whose all-reduce fails, or is slow; of those that are not connected none was tried."""
    told = {(pair.first, pair.second) for pair in pairs}
    failed = {(pair.first, pair.second): pair.error for pair in pairs if pair.error}
    failed |= {pair: "neither said how it went" for pair in links if pair not in told}
    guilty, bad_links = blame(failed, names)
    if len(guilty) == len(names):
        message = f"every pair fails: {next(iter(failed.values()))}. {_CULPRIT}"
        yield Finding("error", "all-reduce", message, tuple(guilty))
        return
    for rank in guilty:
        error = next(error for pair, error in failed.items() if rank in pair)
        message = f"{names[rank]} fails with {sum(rank in pair for pair in failed)} others: {error}. {_CULPRIT}"
        yield Finding("error", "all-reduce", message, (rank,))
    for first, second in bad_links:
        message = f"between {names[first]} and {names[second]}: {failed[first, second]}. {_CULPRIT}"
        yield Finding("error", "all-reduce", message, (first, second))
    good = [pair for pair in pairs if not pair.error]
    if good and not failed:
        yield from _check_speed(names, good)


_CULPRIT = (
    "Does it have the address that others see, on the interface named in GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME, and "
    "a GPU of its own? NCCL_DEBUG=INFO says more."
)


def _check_speed(names: Mapping[int, str], pairs: Sequence[Pair]) -> Iterator[Finding]:
    rate = {(pair.first, pair.second): pair.bytes_per_s for pair in pairs}
    usual = median(rate.values())
    slow = [pair for pair, value in rate.items() if value * _SLOW < usual]
    guilty, links = blame(slow, names)
    for rank in guilty:
        message = (
            f"{names[rank]} is more than {_SLOW:g} times slower than most. Look at its links and what else it does."
        )
        yield Finding("warning", "all-reduce", message, (rank,))
    for link in links:
        message = (
            f"between {' and '.join(names[rank] for rank in link)}: {rate[link] / 1e9:.2f} of {usual / 1e9:.2f} GB/s"
        )
        yield Finding("warning", "all-reduce", message, link)
    if not slow:
        latency = median(pair.latency_s for pair in pairs)
        yield Finding("ok", "all-reduce", f"{len(rate)} pairs, {usual / 1e9:.2f} GB/s, {latency * 1e6:.0f} us (median)")


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
