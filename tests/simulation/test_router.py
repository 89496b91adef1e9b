"""Who gets a request: in turn, the least loaded, or the one that was sent the prefix before."""

from quire.simulation.load import PlannedRequest
from quire.simulation.replica import Replica, SimulatedRequest
from quire.simulation.router import LeastLoad, LongestPrefix, RoundRobin
from tests.simulation.clockwork import Clockwork, scheduler_config


def replicas(count):
    return [Replica(i, scheduler_config(), Clockwork()) for i in range(count)]


def send(replica, number, request):
    replica.add(SimulatedRequest(number, request))


def test_round_robin_takes_turns():
    router = RoundRobin(3)
    assert [router(PlannedRequest(0.0, 4, 4)) for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_least_load_counts_requests_and_then_prompts():
    some = replicas(3)
    router, short, long = LeastLoad(some), PlannedRequest(0.0, 4, 4), PlannedRequest(0.0, 40, 4)
    assert router(short) == 0
    for number, (replica, request) in enumerate([(0, long), (1, short), (2, short), (2, short)]):
        send(some[replica], number, request)
    assert router(short) == 1
    send(some[1], 9, short)
    assert router(short) == 0  # two at replicas 1 and 2, one long one here


def test_the_longest_prefix_attracts_until_it_is_a_crowd():
    some = replicas(3)
    router = LongestPrefix(some, block_size=4, num_blocks=100)
    first, other = PlannedRequest(0.0, 20, 4, ((7, 16),)), PlannedRequest(0.0, 20, 4, ((8, 16),))
    assert router(first) == 0
    send(some[0], 0, first)
    assert router(other) == 1
    send(some[1], 1, other)
    assert router(first) == 0 and router(other) == 1
    assert router(PlannedRequest(0.0, 20, 4, ((7, 8), (9, 8)))) == 0  # a part of it is better than nothing
    assert router(PlannedRequest(0.0, 20, 4)) == 2
    for number in range(2, 6):
        send(some[0], number, first)
    assert router(first) == 2  # five here, none there


def test_prefixes_shorter_than_a_block_attract_nobody():
    router = LongestPrefix(replicas(2), block_size=4, num_blocks=100)
    request = PlannedRequest(0.0, 20, 4, ((7, 3),))
    assert router(request) == 0 and not router._holders


def test_what_was_used_least_recently_is_forgotten():
    some = replicas(2)
    router = LongestPrefix(some, block_size=4, num_blocks=4)
    first, other = PlannedRequest(0.0, 20, 4, ((1, 16),)), PlannedRequest(0.0, 20, 4, ((2, 16),))
    assert router(first) == 0
    send(some[1], 0, other)
    assert router(other) == 0  # its four blocks take the places of the first's
    send(some[0], 1, first)
    send(some[0], 2, first)
    assert router(first) == 1 and router(other) == 0
