"""`/health`, `/health/live`, `/health/ready`, `/version`, `/metrics`."""

from __future__ import annotations

from msgspec import UNSET

from quire import __version__
from quire.server.engine.metrics import CONTENT_TYPE
from quire.server.engine_client import Readiness
from quire.server.http.answers import Answer, JsonAnswer, TextAnswer
from quire.server.protocol.others import Health, Version
from quire.server.routes.endpoint import Call, Endpoint


async def live(_call: Call, _body: None) -> Answer:
    """Say that this process answers."""
    return JsonAnswer(Health("live"))


async def ready(call: Call, _body: None) -> Answer:
    """Say whether requests are served; 503 if not."""
    if call.context.drain.is_draining:
        return JsonAnswer(Health("not ready", "shutting down"), 503)
    readiness = call.context.engine.readiness()
    return JsonAnswer(_health(readiness), 200 if readiness.is_ready else 503)


def _health(readiness: Readiness) -> Health:
    engines = [_health(engine) for engine in readiness.engines]
    return Health("ready" if readiness.is_ready else "not ready", readiness.reason, engines or UNSET)


async def version(_call: Call, _body: None) -> Answer:
    """Return the version."""
    return JsonAnswer(Version(__version__))


async def metrics(call: Call, _body: None) -> Answer:
    """Return all metrics as Prometheus reads them."""
    return TextAnswer(call.context.metrics_text(), CONTENT_TYPE)


LIVE = Endpoint("GET", "/health/live", live, "Whether the process answers; needs no key.", answer=Health)
READY = Endpoint("GET", "/health/ready", ready, "Whether requests are served: 200 or 503.", answer=Health)
HEALTH = Endpoint("GET", "/health", ready, "The same as /health/ready.", answer=Health)
VERSION = Endpoint("GET", "/version", version, "The version of Quire.", answer=Version)
METRICS = Endpoint("GET", "/metrics", metrics, "Metrics for Prometheus.", answer=CONTENT_TYPE)
