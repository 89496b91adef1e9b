"""`LoadConfig`: what load is put on a server; its fields are the options of `quire bench serve`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from quire.core.config import at_least, choice, option
from quire.core.errors import ConfigError

APIS = ("completions", "chat")
ARRIVALS = ("poisson", "burst")
LENGTHS = ("fixed", "sharegpt")


@dataclass(frozen=True, slots=True)
class LoadConfig:
    """When requests come, how long they are, and what counts as good. Docs: docs/bench-serve.md.

    Raises:
        ConfigError: A value is out of bounds.
    """

    model: str | None = field(default=None, metadata=option("name of the model; None: the first that the server lists"))
    api: str = field(default="completions", metadata=option("which route is asked", choices=APIS))
    api_key: str | None = field(default=None, metadata=option("sent as a bearer token; others here can see it"))
    rate: float = field(default=4.0, metadata=option("requests per second on average; inf: all at once"))
    arrivals: str = field(
        default="poisson",
        metadata=option("poisson: at random, each on its own; burst: in groups, at random", choices=ARRIVALS),
    )
    burst_size: int = field(default=8, metadata=option("requests of a group under burst arrivals"))
    num_requests: int = field(default=100, metadata=option("requests, unless a duration is set"))
    duration_s: float | None = field(default=None, metadata=option("seconds in which requests come, however many"))
    max_concurrency: int | None = field(
        default=None, metadata=option("most requests at a time; what comes beyond waits here, which counts as latency")
    )
    lengths: str = field(
        default="fixed",
        metadata=option("fixed, or drawn with a long tail as in ShareGPT, with these means", choices=LENGTHS),
    )
    input_len: int = field(default=128, metadata=option("prompt tokens; ShareGPT's mean is about 161"))
    output_len: int = field(default=128, metadata=option("generated tokens; ShareGPT's mean is about 338"))
    seed: int = field(default=0, metadata=option("of arrivals, lengths and prompts"))
    temperature: float = field(default=0.0, metadata=option("of sampling"))
    ignore_eos: bool = field(default=True, metadata=option("ask for the whole length, by vLLM's field of that name"))
    timeout_s: float = field(default=600.0, metadata=option("seconds after which a request is given up"))
    slo_ttft_ms: float | None = field(default=None, metadata=option("good: first token within"))
    slo_itl_ms: float | None = field(default=None, metadata=option("good: mean time between two tokens within"))
    slo_e2e_ms: float | None = field(default=None, metadata=option("good: last token within"))

    def __post_init__(self) -> None:
        for name in ("burst_size", "num_requests", "max_concurrency", "input_len", "output_len"):
            at_least(name, getattr(self, name), 1)
        for name in ("rate", "duration_s", "timeout_s", "slo_ttft_ms", "slo_itl_ms", "slo_e2e_ms"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name}: expected more than 0, got {value}.")
        if self.duration_s is not None and math.isinf(self.rate * self.duration_s):
            raise ConfigError("duration_s: expected a finite rate and duration, got another. Set num_requests instead.")
        for name, choices in (("api", APIS), ("arrivals", ARRIVALS), ("lengths", LENGTHS)):
            choice(name, getattr(self, name), choices)
