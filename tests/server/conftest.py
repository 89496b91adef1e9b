"""Engine processes run the source under test; one of them serves a whole module, one server most tests."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from quire.core.config import EngineConfig
from quire.server.engine.async_engine import AsyncEngine
from tests.support.server_process import ServerProcess, serving

SOURCE = Path(__file__).parents[2] / "src"
MODEL = "quire-tiny"


@pytest.fixture(scope="session", autouse=True)
def source_under_test() -> Iterator[None]:
    """Have child processes import what this process imports."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(SOURCE), prepend=os.pathsep)
        yield


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    """A server as users run it, for all tests that neither end it nor choose its options."""
    with serving("--max-num-waiting", "200") as running:
        yield running


@pytest.fixture(scope="session")
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    """The official client of that server."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """The event loop of a module."""
    with asyncio.Runner() as loop:
        yield loop


@pytest.fixture(scope="module")
def engine(runner: asyncio.Runner) -> Iterator[AsyncEngine]:
    """A started engine with a small KV cache, so that few requests fill it."""
    made = AsyncEngine(MODEL, engine=EngineConfig(max_num_seqs=32, max_model_len=512))
    runner.run(made.start())
    yield made
    runner.run(made.close())
