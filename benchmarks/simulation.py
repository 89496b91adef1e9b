"""How far `quire simulate` is from what an engine does: the same loads on this machine and under the virtual clock.

    scripts/bench simulation MODEL [--name tiny] [--only offline prefill ...] [--rates 20 60] [--measure-s 10]

Steps of many shapes are timed before and after each load runs, since machines that are shared change their speed;
what explains both predicts the load. Every load is run by the engine in this process, arrivals on the clock of the
wall. Rows: what was measured, what was predicted, and the error of the prediction in percent.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.record import record
from quire.builder.open import open_plan
from quire.core.config import BuildConfig, EngineConfig
from quire.engine.llm_engine import LLMEngine
from quire.plan.device import this_device
from quire.runner.device import measure_roof
from quire.simulation.cluster import simulate
from quire.simulation.load import PlannedRequest, SyntheticLoad, plan_load
from quire.simulation.parts import make_cluster, parts_of
from quire.simulation.settings import SimulationConfig
from quire.simulation.summary import percentiles_ms, summarize
from quire.simulation.timing.costs import network_costs
from quire.simulation.timing.fitting import Roof, TimedStep, fit, measured_hardware
from quire.simulation.timing.measuring import KNOTS, TimedScheduler, measure, streamed
from quire.simulation.timing.pace import Calibrated, Roofline

Load = Sequence[PlannedRequest]
Numbers = dict[str, float]
MARKS = ("p50", "p99")


def loads(rates: Sequence[float], num_open: int, max_model_len: int) -> dict[str, Load]:
    """Return the loads by name.

    Args:
        rates: Requests per second of the open loops.
        num_open: Requests of each of them.
        max_model_len: Longest prompt and output together.
    """
    rng = random.Random(1234)  # lengths of benchmarks/against_transformers.py
    found: dict[str, Load] = {
        "offline": [PlannedRequest(0.0, rng.randint(32, 256), rng.randint(32, 256)) for _ in range(64)],
        "prefill": [PlannedRequest(0.0, 512, 1) for _ in range(8)],
        "decode_1": [PlannedRequest(0.0, 128, 64)],
        "decode_16": [PlannedRequest(0.0, 64, 64) for _ in range(16)],
    }
    for rate in rates:
        config = SyntheticLoad(
            rate=rate, num_requests=num_open, lengths="sharegpt", input_len=128, output_len=64, seed=5
        )
        found[f"open_{rate:g}"] = plan_load(config, max_model_len)
    return found


def run(engine: LLMEngine, load: Load, vocab_size: int, seed: int) -> Numbers:
    """Run a load, each request when it is due; return throughput and latencies.

    Args:
        engine: Idle.
        load: In order of arrival.
        vocab_size: Of the model, for random prompts.
        seed: Of the prompts.
    """
    rng = random.Random(seed)
    left = [(item, [rng.randrange(vocab_size) for _ in range(item.num_prompt_tokens)]) for item in reversed(load)]
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    gaps: list[float] = []
    start = time.perf_counter()
    while left or engine.has_unfinished_requests():
        while left and left[-1][0].due_s <= time.perf_counter() - start:
            item, ids = left.pop()
            engine.add_request(f"{len(left)} {item.due_s}", ids, streamed(item.num_output_tokens))
        if not engine.has_unfinished_requests():
            time.sleep(max(0.0, left[-1][0].due_s - (time.perf_counter() - start)))
            continue
        outputs = engine.step()
        now = time.perf_counter() - start
        for request_id in (output.request_id for output in outputs if output.outputs[0].token_ids):
            gaps += [now - last[request_id]] if request_id in last else []
            first.setdefault(request_id, now)
            last[request_id] = now
    waits = [when - float(request_id.split()[1]) for request_id, when in first.items()]
    num_tokens = sum(item.num_output_tokens for item in load)
    return _numbers(num_tokens, max(last.values()), waits, gaps)


def _numbers(num_out: int, seconds: float, waits: Sequence[float], gaps: Sequence[float]) -> Numbers:
    found = {"tokens_s": num_out / seconds}
    for name, values in (("ttft_ms", waits), ("itl_ms", gaps)):
        marks = percentiles_ms(values)
        found |= {f"{name}.{mark}": marks[mark] for mark in MARKS} if marks else {}
    return found


def predicted(result: dict[str, Any]) -> Numbers:
    """Return the numbers of a simulation by the names that `run` gives them."""
    found = {"tokens_s": result["output_tokens_per_s"]}
    for name in ("ttft_ms", "itl_ms"):
        found |= {f"{name}.{mark}": result[name][mark] for mark in MARKS} if result[name] else {}
    return found


class Subject:
    """An engine whose steps are timed, and the cluster of one replica that is to behave like it.

    Args:
        model: As for `quire simulate`.
        measure_s: Seconds after which no more steps are timed, before a load and after it.
    """

    def __init__(self, model: str, measure_s: float) -> None:
        self.plan = open_plan(model, BuildConfig())
        self.engine = LLMEngine(self.plan, EngineConfig(device="cpu", max_num_seqs=64))
        self.limits = self.engine.loop.scheduler_config
        self._costs = network_costs(self.plan.network)
        self._scheduler = TimedScheduler(self.limits, self._costs.windows)
        self.engine.loop.scheduler = self._scheduler
        self._measure_s = measure_s
        found = measure_roof(self.plan.spec.dtype)
        self._roof = Roof(found.read_bytes_per_s, found.flops)

    def measure(self) -> list[TimedStep]:
        """Time steps of many shapes."""
        return measure(self.engine, self._scheduler, self.plan.spec.vocab_size, self._measure_s)

    def run(self, load: Load, seed: int) -> Numbers:
        """Run a load; no prefix of another one is left in the cache."""
        self.engine.reset_prefix_cache()
        return run(self.engine, load, self.plan.spec.vocab_size, seed)

    def predict(self, steps: Sequence[TimedStep], load: Load) -> Numbers:
        """Return what a simulation says of a load, from steps that were timed."""
        knots = [knot for knot in KNOTS if knot <= self.limits.max_num_batched_tokens]
        calibration = fit(steps, self._costs, self._roof, this_device(), self.plan.source, knots)
        print(f"  {calibration.num_steps} steps explained within {calibration.error:.1%}", flush=True)
        hardware = measured_hardware("cpu", self._roof)
        pace, parts = Calibrated(Roofline(hardware), calibration), parts_of(self.plan, EngineConfig(), gpus_per_node=1)
        cluster = make_cluster(parts, self.limits, pace, hardware, SimulationConfig())
        return predicted(summarize(simulate(cluster, load), cluster))


def main() -> None:
    """Run the loads that are asked for, each several times, and record errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--name", help="of the model in the rows (default: as given)")
    parser.add_argument("--only", nargs="*", help="loads by name (default: all)")
    parser.add_argument("--rates", nargs="*", type=float, default=[], help="requests/s of open loops")
    parser.add_argument("--num-open", type=int, default=100, help="requests of an open loop (default: 100)")
    parser.add_argument("--measure-s", type=float, default=10.0)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args()
    subject = Subject(options.model, options.measure_s)
    all_loads = loads(options.rates, options.num_open, subject.limits.max_model_len)
    for name in options.only or all_loads:
        pairs = [compare(subject, all_loads[name], seed) for seed in range(options.repeat)]
        report(f"{name}.{options.name or options.model}", pairs, save=not options.no_save)


def compare(subject: Subject, load: Load, seed: int) -> tuple[Numbers, Numbers]:
    """Return what a load did, and what a simulation says that it does."""
    before = subject.measure()
    real = subject.run(load, seed)
    return real, subject.predict([*before, *subject.measure()], load)


def report(name: str, pairs: Sequence[tuple[Numbers, Numbers]], *, save: bool) -> None:
    """Record what was measured and predicted, and by how many percent the prediction is off."""
    for key in pairs[0][0]:
        unit = "tokens/s" if key.endswith("tokens_s") else "ms"
        columns = [[real[key] for real, _ in pairs], [said[key] for _, said in pairs]]
        for kind, values in zip(("measured", "predicted"), columns, strict=True):
            record(f"simulation.{name}.{key}.{kind}", unit, values, save=save)
        errors = [100 * (said / real - 1) for real, said in zip(*columns, strict=True)]
        record(f"simulation.{name}.{key}.error", "%", errors, save=save)


if __name__ == "__main__":
    main()
