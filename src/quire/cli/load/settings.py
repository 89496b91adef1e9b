"""`LoadConfig`: what load is put on a server; its fields are the options of `quire bench serve`."""

from __future__ import annotations

from dataclasses import dataclass, field

from quire.core.config import at_least, choice, option
from quire.core.errors import ConfigError
from quire.simulation.load import SyntheticLoad

APIS = ("completions", "chat")


@dataclass(frozen=True, slots=True)
class LoadConfig(SyntheticLoad):
    """When requests come, how long they are, and what counts as good. Docs: docs/bench-serve.md.

    Raises:
        ConfigError: A value is out of bounds.
    """

    model: str | None = field(default=None, metadata=option("name of the model; None: the first that the server lists"))
    api: str = field(default="completions", metadata=option("which route is asked", choices=APIS))
    api_key: str | None = field(default=None, metadata=option("sent as a bearer token; others here can see it"))
    max_concurrency: int | None = field(
        default=None, metadata=option("most requests at a time; what comes beyond waits here, which counts as latency")
    )
    temperature: float = field(default=0.0, metadata=option("of sampling"))
    ignore_eos: bool = field(default=True, metadata=option("ask for the whole length, by vLLM's field of that name"))
    timeout_s: float = field(default=600.0, metadata=option("seconds after which a request is given up"))
    slo_ttft_ms: float | None = field(default=None, metadata=option("good: first token within"))
    slo_itl_ms: float | None = field(default=None, metadata=option("good: mean time between two tokens within"))
    slo_e2e_ms: float | None = field(default=None, metadata=option("good: last token within"))

    def __post_init__(self) -> None:
        SyntheticLoad.__post_init__(self)
        at_least("max_concurrency", self.max_concurrency, 1)
        for name in ("timeout_s", "slo_ttft_ms", "slo_itl_ms", "slo_e2e_ms"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name}: expected more than 0, got {value}.")
        choice("api", self.api, APIS)
