"""`quire serve` whose engine process fails at prompts that are marked: `FAULTS` says by which id, and where."""

import sys
from collections.abc import Callable
from typing import Any

from quire.cli.main import main as quire
from quire.runner import rows
from quire.runner.execution.executor import Executor
from quire.runner.inputs import InputBuilder
from quire.server.engine import process
from quire.server.engine.child import EngineChild

FAULTS = {"new row": 2001, "layout": 2002, "network": 2003}
"""A prompt of this id alone, three times or more, cannot be computed."""


def is_marked(token_ids: Any, fault: str) -> bool:
    """Whether a prompt with the mark of a fault is among these ids."""
    return sum(int(token) == FAULTS[fault] for token in token_ids) >= 3


def failing(work: Callable[..., Any], fault: str, ids_of: Callable[..., Any]) -> Callable[..., Any]:
    """Return `work`, which fails where the ids of its arguments are marked."""

    def run(*arguments: Any) -> Any:
        if is_marked(ids_of(*arguments), fault):
            raise KeyError(fault)
        return work(*arguments)

    return run


def inject() -> None:
    """Have this process fail."""
    rows._sampling = failing(rows._sampling, "new row", lambda new, _: new.token_ids)
    InputBuilder.build = failing(
        InputBuilder.build, "layout", lambda _, __, found, ___: [token for row in found for token in row.token_ids]
    )
    Executor.run = failing(Executor.run, "network", lambda _, inputs: inputs["input_ids"])


def main(*sockets: str) -> int:
    """Be that engine process."""
    inject()
    return process.main(*sockets)


if __name__ == "__main__":
    EngineChild.module = "tests.support.serve_with_faults"
    sys.exit(quire(["serve", *sys.argv[1:]]))
