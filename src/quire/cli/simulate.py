"""`quire simulate MODEL`: what a load would do on devices that need not be there; or measure those that are."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from quire.cli.options import add_fields, add_model, read_fields
from quire.core.config import BuildConfig, EngineConfig, at_least, choice, option
from quire.core.errors import ConfigError
from quire.simulation.load import PlannedRequest, SyntheticLoad, plan_load, share_prefixes

if TYPE_CHECKING:
    from quire.plan.plan import Plan
    from quire.simulation.timing.calibration import Calibration
    from quire.simulation.cluster import Cluster

HERE = "here"
ROUTERS = ("round_robin", "least_load", "longest_prefix")


@dataclass(frozen=True, slots=True)
class SimulationConfig:
    """What the load meets. Docs: docs/simulate.md.

    Raises:
        ConfigError: A value is out of bounds.
    """

    hardware: str = field(
        default=HERE, metadata=option("device of each rank: L4, L40S, A100, H100, H200, B200; here: this machine")
    )
    calibration: str | None = field(default=None, metadata=option("file of --measure: what steps take here"))
    link: str | None = field(default=None, metadata=option("between devices of a host; None: what the device has"))
    network: str = field(default="infiniband-ndr", metadata=option("link between hosts"))
    gpus_per_node: int = field(default=8, metadata=option("devices of a host"))
    tensor_parallel_size: int = field(default=1, metadata=option("devices that share every layer"))
    pipeline_parallel_size: int = field(default=1, metadata=option("stages into which the layers are cut"))
    replicas: int = field(default=1, metadata=option("engines behind one door"))
    router: str = field(default="least_load", metadata=option("who gets a request", choices=ROUTERS))
    trace: str | None = field(default=None, metadata=option("file of requests; None: the synthetic load"))
    num_prefixes: int = field(default=0, metadata=option("system prompts with which prompts begin, at random"))
    prefix_len: int = field(default=64, metadata=option("tokens of each, part of input_len"))
    price_per_hour: float | None = field(default=None, metadata=option("of one device, in any currency"))

    def __post_init__(self) -> None:
        for name in ("gpus_per_node", "tensor_parallel_size", "pipeline_parallel_size", "replicas", "prefix_len"):
            at_least(name, getattr(self, name), 1)
        at_least("num_prefixes", self.num_prefixes, 0)
        choice("router", self.router, ROUTERS)
        if self.price_per_hour is not None and not self.price_per_hour >= 0:
            raise ConfigError(f"price_per_hour: expected at least 0, got {self.price_per_hour}.")
        if self.calibration is not None and self.hardware != HERE:
            raise ConfigError(f"calibration: expected none for hardware={self.hardware}, got {self.calibration!r}.")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_model(parser)
    add_fields(parser, SyntheticLoad, skip=("seed",))
    add_fields(parser, SimulationConfig)
    parser.add_argument(
        "--measure", metavar="FILE", help="load the model, time steps of many shapes here, write FILE, and end"
    )
    parser.add_argument("--measure-s", type=float, default=60.0, metavar="X", help="seconds it takes (default: 60)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)
