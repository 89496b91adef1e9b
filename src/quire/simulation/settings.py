"""`SimulationConfig`: on what a load is simulated; its fields are options of `quire simulate`."""

from __future__ import annotations

from dataclasses import dataclass, field

from quire.core.config import at_least, choice, option
from quire.core.errors import ConfigError

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
    timings: str | None = field(default=None, metadata=option("file of --measure: what steps take here"))
    link: str | None = field(default=None, metadata=option("between devices of a host; None: what the device has"))
    network: str = field(default="infiniband-ndr", metadata=option("link between hosts"))
    gpus_per_node: int = field(default=8, metadata=option("devices of a host"))
    replicas: int = field(default=1, metadata=option("engines behind one door"))
    router: str = field(default="least_load", metadata=option("who gets a request", choices=ROUTERS))
    trace: str | None = field(default=None, metadata=option("file of requests; None: the synthetic load"))
    num_prefixes: int = field(default=0, metadata=option("system prompts with which prompts begin, at random"))
    prefix_len: int = field(default=64, metadata=option("tokens of each, part of input_len"))
    price_per_hour: float | None = field(default=None, metadata=option("of one device, in any currency"))

    def __post_init__(self) -> None:
        for name in ("gpus_per_node", "replicas", "prefix_len"):
            at_least(name, getattr(self, name), 1)
        at_least("num_prefixes", self.num_prefixes, 0)
        choice("router", self.router, ROUTERS)
        if self.price_per_hour is not None and not self.price_per_hour >= 0:
            raise ConfigError(f"price_per_hour: expected at least 0, got {self.price_per_hour}.")
        if self.timings is not None and self.hardware != HERE:
            raise ConfigError(f"timings: expected none for hardware={self.hardware}, got {self.timings!r}.")
