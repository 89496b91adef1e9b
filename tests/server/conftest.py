"""Engine processes run the source under test, and one of them serves a whole module."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from quire.core.config import EngineConfig
from quire.server.engine.async_engine import AsyncEngine

SOURCE = Path(__file__).parents[2] / "src"
MODEL = "quire-tiny"


@pytest.fixture(scope="session", autouse=True)
def source_under_test() -> Iterator[None]:
    """Have child processes import what this process imports."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(SOURCE), prepend=os.pathsep)
        yield


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
