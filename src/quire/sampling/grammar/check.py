"""A program that compiles grammars for somebody who must survive it: one that recurses or grows without end kills it.

Reads requests from standard input, one JSON object in a line: a grammar, and limits. Answers each with a line: what is
wrong, a JSON string, empty if nothing is. It imports nothing of Quire, so that it starts quickly.
"""

from __future__ import annotations

import json
import resource
import sys
import threading
import time
from typing import Any

import llguidance

# A thread of the engine has 8 MiB: what fits here fits there four times.
_STACK_BYTES = 2 << 20
_MEMORY_BYTES = 2 << 30
_REPORT_CHARS = 2000  # with escapes, less than what a pipe takes in one piece


def _report(grammar: str, limits: dict[str, Any], max_s: float) -> str:
    """Compile with a vocabulary of single bytes, and compute the first mask."""
    started = time.thread_time()
    tokenizer = llguidance.LLTokenizer("byte")
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=llguidance.LLParserLimits(**limits))
    if not matcher.is_error():
        matcher.compute_bitmask()
    if matcher.is_error():
        return str(matcher.get_error())
    return "too slow" if time.thread_time() - started > max_s else ""


def _serve() -> None:
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        print(json.dumps(_report(**json.loads(line))[:_REPORT_CHARS]), flush=True)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.stack_size(_STACK_BYTES)
    server = threading.Thread(target=_serve)
    server.start()
    server.join()
