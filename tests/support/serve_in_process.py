"""A server process for tests: `python -m tests.support.serve_in_process '{"limits": {...}, "config": {...}}'`."""

import json
import sys

import uvloop

from quire.builder.build import open_plan
from quire.core import log
from quire.core.config import BuildConfig, EngineConfig
from quire.core.server_config import ServerConfig
from quire.engine.loading import load_engine
from quire.server.app import build_app
from quire.server.http.auth import Keys, read_keys
from quire.server.http.connection import connection_class
from quire.server.http.lifecycle import Drain, HttpServer, uvicorn_config
from quire.server.http.limits import Limits
from tests.support.in_process_engine import InProcessEngine


def main() -> None:
    options = json.loads(sys.argv[1])
    log.configure()
    config, limits = ServerConfig(**options.get("config", {})), Limits(**options.get("limits", {}))
    loaded = load_engine(open_plan("quire-tiny", BuildConfig()), EngineConfig(**options.get("engine", {})))
    engine = InProcessEngine(loaded, "quire-tiny", options.get("max_waiting", 256))
    drain = Drain(config.drain_timeout_s)

    def metrics_text() -> str:
        return "".join(f"quire:{name} {value}\n" for name, value in engine.metrics().items())

    app = build_app(engine, config, Keys(read_keys(config)), drain, metrics_text, limits)
    server = HttpServer(uvicorn_config(app, connection_class(limits), host=config.host, port=config.port), drain)
    uvloop.run(server.serve())
    engine.close()


if __name__ == "__main__":
    main()
