"""`ServerConfig`: what `quire serve` does beside running a model. None means: chosen at start, and logged."""

from __future__ import annotations

from dataclasses import dataclass, field

from quire.core.config import at_least, choice, in_range, option
from quire.core.errors import ConfigError

METRICS_COMPAT = ("none", "vllm")
_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Where the server listens, whom it serves, how much may wait, and what happens when the engine dies."""

    host: str = field(default="127.0.0.1", metadata=option("address to listen on"))
    port: int = field(default=8000, metadata=option("port to listen on; 0 takes a free one"))
    uds: str | None = field(default=None, metadata=option("unix socket to listen on instead"))
    api_key: str | None = field(default=None, metadata=option("keys that clients must send, separated by commas"))
    api_key_file: str | None = field(default=None, metadata=option("file with one such key a line"))
    allow_unauthenticated: bool = field(
        default=False, metadata=option("listen on an address other than this machine's own without an API key")
    )
    served_model_name: str | None = field(
        default=None, metadata=option("names of the model in requests, separated by commas; None: as MODEL was given")
    )
    replicas: int = field(
        default=1,
        metadata=option(
            "engines behind this server, each with its own devices, or its share of the cores and the memory",
            flags=("--data-parallel-size", "-dp"),
        ),
    )
    max_num_waiting: int | None = field(
        default=None,
        metadata=option("sequences that may wait for a seat; None: max_num_seqs of all engines, at least 16"),
    )
    max_waiting_tokens: int | None = field(
        default=None,
        metadata=option(
            "tokens that may wait, prompt plus n times max_tokens; None: 4 times what the KV caches hold, at least 16 "
            "of the longest requests"
        ),
    )
    max_logprobs: int = field(default=20, metadata=option("most logprobs a request may ask for at a position"))
    share_prefix_cache: bool = field(
        default=False, metadata=option("share cached prefixes between API keys, not only within one")
    )
    ready_timeout_s: float = field(
        default=5.0,
        metadata=option("seconds without a finished step, while there is work, until it is not ready"),
    )
    hang_timeout_s: float = field(
        default=120.0, metadata=option("seconds without a finished step after which the engine process is killed")
    )
    restart: bool = field(default=True, metadata=option("start the engine process again when it dies, or else exit"))
    standby: bool = field(
        default=True,
        metadata=option("keep a second process, its libraries read, that takes over within a second (about 160 MB)"),
    )
    drain_timeout_s: float = field(default=30.0, metadata=option("seconds that running requests get at shutdown"))
    metrics_compat: str = field(
        default="none", metadata=option("export metrics under another engine's names, too", choices=METRICS_COMPAT)
    )
    otlp_traces_endpoint: str | None = field(
        default=None, metadata=option("URL of a collector of traces, OTLP over HTTP; needs quire[otel]")
    )

    def __post_init__(self) -> None:
        at_least("port", self.port, 0)
        if self.port > 65535:
            raise ConfigError(f"port: expected 0..65535, got {self.port}.")
        for name in ("max_num_waiting", "max_logprobs"):
            at_least(name, getattr(self, name), 0)
        at_least("replicas", self.replicas, 1)
        at_least("max_waiting_tokens", self.max_waiting_tokens, 1)
        for name in ("ready_timeout_s", "hang_timeout_s"):
            in_range(name, getattr(self, name), 0.1, _DAY_S)
        in_range("drain_timeout_s", self.drain_timeout_s, 0, _DAY_S)
        choice("metrics_compat", self.metrics_compat, METRICS_COMPAT)
        if self.served_model_name is not None and not self.model_names:
            raise ConfigError(f"served_model_name: expected at least one name, got {self.served_model_name!r}.")

    @property
    def model_names(self) -> tuple[str, ...]:
        """Accepted names, the one under `/v1/models` first; empty if none were set."""
        return tuple(name for part in (self.served_model_name or "").split(",") if (name := part.strip()))
