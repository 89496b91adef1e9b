"""More than the server can do: it does as much as it can, refuses the rest at once, and does not grow."""

import pytest

from benchmarks.server import overload

pytestmark = pytest.mark.slow
SECONDS = 8
MOST_REJECTION_MS, MOST_GROWTH_BYTES = 50, 16 << 20


def test_goodput_refusals_and_memory_beyond_capacity():
    with overload.running() as (base_url, pid):
        overload.capacity(base_url, 4 * overload.NUM_SEATS)
        rate = overload.capacity(base_url, 16 * overload.NUM_SEATS)
        found = {f: overload.overload(base_url, pid, rate, f, SECONDS) for f in overload.FACTORS}
    print(rate, *found.values(), sep="\n")
    peak = max(outcome.goodput for outcome in found.values())
    for factor in (2.0, 5.0):
        outcome = found[factor]
        assert not outcome.failed and outcome.share_rejected > 0.2
        assert outcome.goodput >= 0.9 * peak
        assert outcome.rejection_p99_ms <= MOST_REJECTION_MS
        assert outcome.rss_bytes - found[1.0].rss_bytes <= MOST_GROWTH_BYTES
