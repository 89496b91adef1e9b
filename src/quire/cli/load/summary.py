"""`summarize`: records to percentiles, throughput and goodput, as one JSON value."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from quire.cli.load.measure import Measured, RequestRecord
from quire.cli.load.settings import LoadConfig

LATENCIES = {
    "ttft_ms": "first token",
    "itl_ms": "between two events",
    "tpot_ms": "mean between tokens",
    "e2e_ms": "last token",
}
REJECTION = "rejection_ms"
_SLOW_LAG_MS, _HIGH_SHARE = 10.0, 0.8  # from here on the generator's own figures are in the result


def samples_ms(records: Sequence[RequestRecord]) -> dict[str, list[float]]:
    """Return all latencies of requests that went well, in milliseconds, by the names of `LATENCIES`.

    The first token and the last one count from when the request was due, so that what waits for its turn is not
    forgotten.
    """
    made: dict[str, list[float]] = {name: [] for name in LATENCIES}
    for record in records:
        if record.error is not None or record.first_s is None:
            continue
        made["ttft_ms"].append((record.first_s - record.planned.due_s) * 1e3)
        made["e2e_ms"].append((record.last_s - record.planned.due_s) * 1e3)
        made["itl_ms"] += [gap_s * 1e3 for gap_s in record.gaps_s]
        if record.num_output_tokens > 1:
            made["tpot_ms"].append(_mean_gap_ms(record))
    return made


def is_good(record: RequestRecord, config: LoadConfig) -> bool:
    """Return whether a request went well within all limits that are set; without any, whether it went well."""
    if record.error is not None or record.first_s is None:
        return False
    limits = (
        (config.slo_ttft_ms, (record.first_s - record.planned.due_s) * 1e3),
        (config.slo_itl_ms, _mean_gap_ms(record)),
        (config.slo_e2e_ms, (record.last_s - record.planned.due_s) * 1e3),
    )
    return all(limit is None or value <= limit for limit, value in limits)


def _mean_gap_ms(record: RequestRecord) -> float:
    assert record.first_s is not None, "the mean gap of a request without tokens"
    return (record.last_s - record.first_s) * 1e3 / max(1, record.num_output_tokens - 1)


def percentiles(values: Sequence[float]) -> dict[str, float] | None:
    """Return p50, p90, p99 and the mean, by linear interpolation; None of no values."""
    if not values:
        return None
    cuts = statistics.quantiles(values, n=100, method="inclusive") if len(values) > 1 else [values[0]] * 99
    return {"p50": cuts[49], "p90": cuts[89], "p99": cuts[98], "mean": statistics.fmean(values)}


def summarize(measured: Measured, config: LoadConfig, base_url: str) -> dict[str, Any]:
    """Return everything that a run is about."""
    records = measured.records
    fine = [record for record in records if record.error is None]
    errors = Counter(record.error for record in records if record.error is not None)
    seconds = max([record.end_s for record in records], default=0.0) or 1.0
    num_good = sum(is_good(record, config) for record in records)
    settings = {name: value for name, value in msgspec.to_builtins(config).items() if name != "api_key"}
    return {
        "kind": "serve",
        "base_url": base_url,
        "settings": {**settings, "model": measured.model},
        "num_requests": len(records),
        "num_ok": len(fine),
        "num_rejected": errors.pop("429", 0),
        REJECTION: percentiles([(r.end_s - r.sent_s) * 1e3 for r in records if r.error == "429"]),
        "errors": dict(errors),
        "duration_s": seconds,
        "requests_per_s": len(fine) / seconds,
        "output_tokens_per_s": sum(record.num_output_tokens for record in fine) / seconds,
        "prompt_tokens_per_s": sum(record.num_prompt_tokens for record in fine) / seconds,
        "good_requests_per_s": num_good / seconds,
        "good_share": num_good / max(1, len(records)),
        "mean_prompt_tokens": statistics.fmean([record.num_prompt_tokens for record in fine] or [0]),
        "mean_output_tokens": statistics.fmean([record.num_output_tokens for record in fine] or [0]),
        **{name: percentiles(values) for name, values in samples_ms(records).items()},
        "client": {"cpu_share": measured.cpu_share, "lag_ms": percentiles([lag * 1e3 for lag in measured.lag_s])},
    }


def doubts(result: dict[str, Any]) -> list[str]:
    """Return why the figures may be the generator's own and not the server's."""
    lag_ms = (result["client"]["lag_ms"] or {"p99": 0.0})["p99"]
    found = []
    if lag_ms > _SLOW_LAG_MS:
        found.append(f"requests were sent up to {lag_ms:.0f} ms late (p99): this process or machine was too busy")
    if (share := result["client"]["cpu_share"]) > _HIGH_SHARE:
        found.append(f"this process used {share:.0%} of a core: it may have been the limit")
    return found
