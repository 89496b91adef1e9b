"""`summarize`: an outcome to throughput, percentiles and cost, as one JSON value."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from quire.sharding.cost import RankCost
from quire.simulation.cluster import Cluster, Outcome
from quire.simulation.replica import SimulatedRequest

LATENCIES = {
    "ttft_ms": "first token",
    "itl_ms": "between two tokens",
    "e2e_ms": "last token",
    "queue_ms": "waiting for a seat",
}
"""What is said of each request; all but the second count from when it was due."""


def summarize(outcome: Outcome, cluster: Cluster, price_per_hour: float | None = None) -> dict[str, Any]:
    """Return everything that a simulation is about.

    Args:
        outcome: What became of the load.
        cluster: Where.
        price_per_hour: Of one device; None leaves the price out.
    """
    requests = [request for request in outcome.requests if request.is_done]
    seconds = outcome.end_s or 1.0
    num_out = sum(request.num_output_tokens for request in requests)
    num_in = sum(request.planned.num_prompt_tokens for request in requests)
    num_devices = cluster.num_replicas * cluster.num_devices
    return {
        "num_requests": len(outcome.requests),
        "num_done": len(requests),
        "num_refused": len(outcome.requests) - len(requests),
        "duration_s": outcome.end_s,
        "requests_per_s": len(requests) / seconds,
        "output_tokens_per_s": num_out / seconds,
        "prompt_tokens_per_s": num_in / seconds,
        "tokens_per_s_per_device": num_out / seconds / num_devices,
        **_latencies(requests),
        **_counts(outcome),
        "busy_share": _busy_share(outcome),
        "bubble_share": _bubble_share(outcome),
        "cost": _cost(num_devices, outcome.end_s, num_out, price_per_hour),
        "num_blocks": cluster.config.num_blocks,
        "stages": [_stage(rank) for rank in cluster.ranks],
    }


def _latencies(requests: Iterable[SimulatedRequest]) -> dict[str, Any]:
    made: dict[str, list[float]] = {name: [] for name in LATENCIES}
    for request in requests:
        due_s = request.planned.due_s
        assert request.first_s is not None and request.scheduled_s is not None, "it has ended without a token"
        made["ttft_ms"].append(request.first_s - due_s)
        made["e2e_ms"].append(request.last_s - due_s)
        made["queue_ms"].append(request.scheduled_s - due_s)
        made["itl_ms"] += request.gaps_s
    return {name: percentiles_ms(values) for name, values in made.items()}


def percentiles_ms(seconds: Iterable[float]) -> dict[str, float] | None:
    """Return p50, p90, p99 and the mean in milliseconds, by linear interpolation; None of no values."""
    values = np.array(list(seconds)) * 1e3
    if not len(values):
        return None
    cuts = np.percentile(values, (50, 90, 99))
    return {**dict(zip(("p50", "p90", "p99"), map(float, cuts), strict=True)), "mean": float(values.mean())}


def _counts(outcome: Outcome) -> dict[str, Any]:
    caches = [replica.scheduler.kv_cache for replica in outcome.replicas]
    queried, hit = (sum(getattr(cache, name) for cache in caches) for name in ("num_query_tokens", "num_hit_tokens"))
    preemptions = sum(sum(replica.scheduler.num_preemptions.values()) for replica in outcome.replicas)
    steps = sum(replica.num_steps for replica in outcome.replicas)
    return {"num_preemptions": preemptions, "prefix_hit_share": hit / queried if queried else 0.0, "num_steps": steps}


def _busy_share(outcome: Outcome) -> float:
    """Return how much of the time until the end a stage has worked, on average over all."""
    shares = [busy_s / outcome.end_s for replica in outcome.replicas for busy_s in replica.busy_s if outcome.end_s]
    return float(np.mean(shares)) if shares else 0.0


def _bubble_share(outcome: Outcome) -> float:
    """Return how much less the average stage has worked than the one that worked most."""
    shares = [1 - np.mean(each.busy_s) / max(each.busy_s) for each in outcome.replicas if max(each.busy_s)]
    return float(np.mean(shares)) if shares else 0.0


def _stage(rank: RankCost) -> dict[str, float]:
    """Return what a rank of a stage holds, and sends for a token that is computed together with 63 others.

    So many are enough for sums to go in pieces, which is the fewest bytes; a token alone is sent to every rank.
    """
    return {
        "layers": rank.layers,
        "weight_bytes": rank.weight_bytes,
        "kv_bytes_per_token": rank.kv_bytes_per_token,
        "sent_bytes_per_token": rank.sent_bytes(64, 64) / 64,
        "least_bytes_per_token": rank.least_bytes(64, 64) / 64,
    }


def _cost(num_devices: int, seconds: float, num_out: int, price_per_hour: float | None) -> dict[str, float]:
    hours = num_devices * seconds / 3600
    found = {"devices": float(num_devices), "device_hours": hours}
    if num_out:
        found["device_hours_per_million_tokens"] = hours / num_out * 1e6
    if price_per_hour is not None:
        found["price"] = hours * price_per_hour
        if num_out:
            found["price_per_million_tokens"] = hours * price_per_hour / num_out * 1e6
    return found
