"""`serve`: an engine, an application and a socket become a server that runs until it is told to stop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import uvloop

from quire.core.log import get_logger
from quire.core.progress import OnProgress
from quire.core.server_config import ServerConfig
from quire.server.engine.async_engine import AsyncEngine
from quire.server.http.connection import connection_class
from quire.server.http.gate import Gate
from quire.server.http.lifecycle import Drain, HttpServer, uvicorn_config
from quire.server.http.limits import Limits

_log = get_logger(__name__)
_HEAD_START_S = 0.01  # that the engine process is there before this one reads the libraries of its routes


def serve(
    engine: AsyncEngine,
    config: ServerConfig,
    make_app: Callable[[Drain], Gate],
    bound: socket.socket,
    limits: Limits,
    on_progress: OnProgress,
    on_listening: Callable[[], None],
) -> int:
    """Start the engine, serve until a signal or the engine's death, and close the engine, on an event loop of its own.

    Args:
        engine: Not started yet.
        config: How to serve.
        make_app: Returns the application; called while the engine process starts, for its libraries take time to read.
        bound: Where to listen.
        limits: Of connections.
        on_progress: Told how far loading is.
        on_listening: Called when clients can connect.

    Returns:
        The exit code: 1 if the engine died for good or requests were cut off.

    Raises:
        QuireError: The engine could not be started.
    """
    return uvloop.run(_serve(engine, config, make_app, bound, limits, on_progress, on_listening))


async def _serve(
    engine: AsyncEngine,
    config: ServerConfig,
    make_app: Callable[[Drain], Gate],
    bound: socket.socket,
    limits: Limits,
    on_progress: OnProgress,
    on_listening: Callable[[], None],
) -> int:
    drain = Drain(config.drain_timeout_s)
    starting = asyncio.create_task(engine.start(on_progress))
    await asyncio.sleep(_HEAD_START_S)
    app = make_app(drain)
    await starting
    try:
        settings = uvicorn_config(app, connection_class(limits), limits.keep_alive_s)
        server = HttpServer(settings, drain, on_listening)
        watcher = asyncio.create_task(_stop_when_dead(engine, server))
        await server.serve(sockets=[bound])
        watcher.cancel()
        return 1 if server.is_cut or engine.dead.done() else 0
    finally:
        await engine.close()


async def _stop_when_dead(engine: AsyncEngine, server: HttpServer) -> None:
    """End the server once the engine has died and is not to be started again."""
    reason = await asyncio.shield(engine.dead)
    _log.error("no engine process is left: %s; the server ends", reason)
    server.should_exit = True
