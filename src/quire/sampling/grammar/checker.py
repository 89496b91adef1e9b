"""`GrammarChecker`: refuses early what cannot be compiled. It asks another process, and outlives the answer."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from pathlib import Path

import msgspec

from quire.core.errors import CapacityError, RequestError
from quire.core.structured_outputs import StructuredOutputsParams
from quire.sampling.grammar.latest import Latest
from quire.sampling.grammar.problems import explain
from quire.sampling.grammar.source import grammar_of

_PROGRAM = Path(__file__).with_name("check.py")
_START_S = 20.0  # it takes 0.1 s on an idle machine
_ANSWER_S = 1.0
_MAX_COMPILE_S = 0.2
"""CPU time; the engine compiles once more what passes, between two steps. A schema of 1000 properties takes 0.1 s."""
# Per step and sample: 100,000 units of lexer fuel are about 7 ms, 100,000 items 5 ms; a schema with 200 optional
# properties takes 30,000 items. A state of the lexer takes up to 2 kB: 20 MB for a sample that visits all it may.
LIMITS: Mapping[str, int | bool] = {
    "step_lexer_fuel": 100_000,
    "step_max_items": 100_000,
    "max_lexer_states": 10_000,
    "max_grammar_size": 100_000,
    "verbose_errors": False,
}
"""Of a compiled grammar, by the names of llguidance's `LLParserLimits`."""


class GrammarChecker:
    """Owns the process, which is started when it is first needed and ends with this object. Safe to share.

    It knows no vocabulary: what compiles for single bytes does for any.
    """

    def __init__(self) -> None:
        self._checked: Latest[bool] = Latest()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._finalizer: weakref.finalize[[subprocess.Popen[bytes]], GrammarChecker] | None = None

    def check(self, outputs: StructuredOutputsParams) -> None:
        """Refuse what cannot be compiled within its budget: a second at most, in another process.

        Raises:
            RequestError: It cannot.
            CapacityError: The other process cannot be started.
        """
        if self._checked.get(outputs):
            return
        report = self._report(grammar_of(outputs))
        if report:
            raise RequestError(explain(outputs.kind, report))
        self._checked.put(outputs, True)

    def _report(self, grammar: str) -> str:
        """Return what is wrong with a grammar, empty if nothing is."""
        request = {"grammar": grammar, "limits": LIMITS, "max_s": _MAX_COMPILE_S}
        with self._lock:
            process = self._started()
            try:
                assert process.stdin is not None
                process.stdin.write(msgspec.json.encode(request) + b"\n")
                process.stdin.flush()
                answer = _line(process, _ANSWER_S)
            except BrokenPipeError:
                answer = None
            if answer is None:
                self._end()
                return "too complex"
            return answer

    def close(self) -> None:
        """End the process; it starts again if need be."""
        with self._lock:
            self._end()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end()
        command = [sys.executable, "-P", str(_PROGRAM)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self._process, self._finalizer = process, weakref.finalize(self, _kill, process)
        if _line(process, _START_S) != "ready":
            self._end()
            raise CapacityError(
                "structured_outputs: expected the process that checks grammars to start, but it did not. "
                "Check that `python -c 'import llguidance'` works."
            )
        return process

    def _end(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
        self._process = self._finalizer = None


def _line(process: subprocess.Popen[bytes], timeout_s: float) -> str | None:
    """Return the next line that a process writes, None if it ends or takes longer."""
    assert process.stdout is not None
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN)
    ends_at, read = time.monotonic() + timeout_s, b""
    while not read.endswith(b"\n"):
        if not poll.poll(max(0.0, ends_at - time.monotonic()) * 1000):
            return None
        piece = os.read(process.stdout.fileno(), 1 << 16)
        if not piece:
            return None
        read += piece
    return msgspec.json.decode(read, type=str)


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        try:
            pipe.close()
        except BrokenPipeError:  # half a request was still to be written
            continue
    process.wait()
