"""`quire serve MODEL`: OpenAI's HTTP API over one model, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from quire.cli.options import add_fields, add_model, read_fields
from quire.core.config import BuildConfig, EngineConfig
from quire.core.server_config import ServerConfig

if TYPE_CHECKING:
    from quire.server.engine_client import ServedModel
    from quire.server.http.gate import Gate
    from quire.server.http.lifecycle import Drain
    from quire.server.http.limits import Limits


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_model(parser)
    parser.add_argument("--tokenizer", metavar="DIR", help="directory of another tokenizer")
    parser.add_argument("--chat-template", metavar="FILE", help="file with a Jinja template that replaces the model's")
    add_fields(parser, ServerConfig)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Serve until a signal; returns the exit code."""
    from quire.server.http.limits import Limits

    return serve_model(options, Limits())


def serve_model(options: argparse.Namespace, limits: Limits) -> int:
    """Serve what the options name.

    Args:
        options: Parsed.
        limits: Of connections and bodies.

    Returns:
        0 once all requests were finished, 1 if some were cut off or the engine died for good.

    Raises:
        QuireError: It cannot be served.
    """
    from quire.core import env, log
    from quire.core.progress import stages
    from quire.server.engine.async_engine import AsyncEngine
    from quire.server.http.auth import Keys, check_address, read_keys
    from quire.server.http.listening import bind, release, url
    from quire.server.http.serving import serve
    from quire.server.tracing import open_traces

    log.configure()
    env.check_environment()
    config = read_fields(ServerConfig, options)
    keys = Keys(read_keys(config), share_prefix_cache=config.share_prefix_cache)
    check_address(config, keys)
    traces = None if config.otlp_traces_endpoint is None else open_traces(config.otlp_traces_endpoint)
    engine = AsyncEngine(
        options.model,
        read_fields(BuildConfig, options),
        read_fields(EngineConfig, options),
        config,
        options.tokenizer,
        chat_template=_read_template(options.chat_template),
    )

    def make_app(drain: Drain) -> Gate:
        from quire.server.app import build_app

        return build_app(engine, config, keys, drain, engine.metrics_text, limits, traces)

    bound = bind(config)
    try:
        with stages() as on_progress:
            return serve(engine, config, make_app, bound, limits, on_progress,
                         lambda: _announce(engine.served, url(config, bound), is_open=keys.is_open))  # fmt: skip
    finally:
        release(config, bound)
        if traces is not None:
            traces.close()


def _read_template(path: str | None) -> str | None:
    """Return a template's text.

    Raises:
        ConfigError: The file cannot be read.
    """
    from pathlib import Path

    from quire.core.errors import ConfigError

    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"chat_template: expected a readable text file, got {path!r}.") from None


def _announce(served: ServedModel, url: str, *, is_open: bool) -> None:
    """Print what is served, where, and which defaults apply."""
    from quire.cli.options import table
    from quire.server.routes.models import model_defaults

    defaults = ", ".join(f"{name} {value:g}" for name, value in model_defaults(served).items())
    print(
        table(
            [
                ("model", ", ".join((served.name, *served.aliases))),
                ("longest", f"{served.max_model_len} tokens of prompt and answer"),
                ("defaults", defaults or "none of the model's own"),
                ("key", "none needed" if is_open else "needed"),
                ("page", f"{url}/"),
                ("docs", f"{url}/docs"),
                ("serving", f"{url}/v1"),
            ]
        ),
        flush=True,
    )
