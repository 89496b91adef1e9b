"""What a simulation stands on: a cluster of named devices or of machines like this one, and what was measured here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from quire.cli.options import require
from quire.core.config import EngineConfig
from quire.engine.llm_engine import LLMEngine
from quire.engine.resolve import resolve_parts
from quire.plan.device import device_kind, this_device
from quire.plan.plan import Plan
from quire.runner.device import GPU_PROCESS, available_memory_bytes, measure_roof
from quire.simulation.capacity import scheduler_config
from quire.simulation.cluster import Cluster
from quire.simulation.parts import Part, make_cluster, parts_of
from quire.simulation.settings import HERE, SimulationConfig
from quire.simulation.timing.calibration import Calibration, read_calibration
from quire.simulation.timing.costs import network_costs
from quire.simulation.timing.fitting import Roof, fit, measured_hardware
from quire.simulation.timing.hardware import hardware_named
from quire.simulation.timing.measuring import KNOTS, TimedScheduler, measure
from quire.simulation.timing.pace import Calibrated, Pace, Roofline


def measure_here(plan: Plan, config: EngineConfig, limit_s: float) -> Calibration:
    """Load a plan, run steps of many shapes, and return what explains their times.

    Args:
        plan: What to execute.
        config: How; on one rank.
        limit_s: Seconds after which no more steps are begun.

    Raises:
        ConfigError: Several ranks were asked for.
        CapacityError: The model does not fit.
    """
    ranks = config.tensor_parallel_size * config.pipeline_parallel_size
    require(ranks == 1, "--measure", "one rank (tensor_parallel_size=1, pipeline_parallel_size=1)", ranks)
    roof, costs = measure_roof(plan.spec.dtype), network_costs(plan.network)
    engine = LLMEngine(plan, config)
    try:
        limits = engine.loop.scheduler_config
        engine.loop.scheduler = scheduler = TimedScheduler(limits, costs.windows)
        steps = measure(engine, scheduler, plan.spec.vocab_size, limit_s)
    finally:
        engine.close()
    knots = [knot for knot in KNOTS if knot <= limits.max_num_batched_tokens]
    device = this_device(device_kind(config.device))
    return fit(steps, costs, Roof(roof.read_bytes_per_s, roof.flops), device, plan.source, knots)


def cluster_of(plan: Plan, config: EngineConfig, settings: SimulationConfig) -> Cluster:
    """Return the cluster that settings describe.

    Args:
        plan: Of the whole model.
        config: How each replica runs.
        settings: On what.

    Raises:
        ConfigError: A setting is wrong or contradicts the model.
        CapacityError: The model does not fit the devices.
        PlanError: The calibration is damaged.
    """
    parts = parts_of(plan, config, settings.gpus_per_node)
    if settings.hardware == HERE:
        return _cluster_here(parts, plan.spec.dtype, config, settings)
    hardware = hardware_named(settings.hardware)
    scheduler = scheduler_config([part.plan for part in parts], config, hardware, GPU_PROCESS)
    return make_cluster(parts, scheduler, Roofline(hardware), hardware, settings)


def _cluster_here(parts: Sequence[Part], dtype: str, config: EngineConfig, settings: SimulationConfig) -> Cluster:
    """Return a cluster of machines like this one, with as much memory as is available here; CPU ranks share it."""
    kind, ranks = device_kind(config.device), parts[0].mapping.world_size
    available = available_memory_bytes(kind) // (ranks if kind == "cpu" else 1)
    scheduler, _ = resolve_parts(config, [(part.plan, available) for part in parts])
    pace: Pace
    if settings.timings is None:
        roof = measure_roof(dtype)
        hardware = measured_hardware(kind, Roof(roof.read_bytes_per_s, roof.flops))
        pace = Roofline(hardware)
    else:
        calibration = read_calibration(Path(settings.timings))
        hardware = measured_hardware(kind, Roof(calibration.read_bytes_per_s, calibration.flops))
        pace = Calibrated(Roofline(hardware), calibration)
    return make_cluster(parts, scheduler, pace, hardware, settings)
