"""The load line: every interval, with rates since the last one."""

import logging

from quire.engine.stats_log import StatsLog


def test_logs_rates_once_an_interval(caplog):
    now = [0.0]
    log = StatsLog(10.0, lambda: now[0])
    metrics = {"num_requests_running": 3, "num_requests_waiting": 1, "kv_cache_usage_perc": 0.25,
               "prefix_cache_hits": 5, "prefix_cache_queries": 10}  # fmt: skip
    with caplog.at_level(logging.INFO, "quire"):
        for second in (3.0, 9.9, 10.0, 15.0, 20.0):
            now[0] = second
            log.note({**metrics, "computed_tokens": 100 * second, "generation_tokens": 50 * second})
    assert [r.getMessage() for r in caplog.records] == [
        "100 tokens/s computed, 50 generated; 3 running, 1 waiting; KV cache 25 % used, 50 % of prompt tokens found in "
        "it"
    ] * 2
