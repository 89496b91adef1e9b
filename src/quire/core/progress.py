"""Progress bars on standard error, over everything that takes more than a second.

What draws them takes a tenth of a second to read, so it is read by who draws: many processes only say how far they are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

OnProgress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""


@contextmanager
def progress_bar(title: str, total: int, *, enable: bool = True, has_speed: bool = False) -> Iterator[Progress]:
    """Yield a bar with one task.

    Args:
        title: What is being done.
        total: How much there is.
        enable: Whether to draw it.
        has_speed: Keep it on the screen when it is done, with the task's field `speed` behind it.
    """
    bar = _bar(is_kept=has_speed)
    bar.add_task(title, total=total, speed="")
    if not enable or (bar.live.transient and not bar.console.is_terminal):
        yield bar
        return
    with bar:
        yield bar


@contextmanager
def stages() -> Iterator[OnProgress]:
    """Yield what draws a bar for each stage that it is told of, on a terminal; the bars vanish at the end."""
    if not sys.stderr.isatty():
        yield lambda title, done, total: None
        return
    bar = _bar(is_kept=False)
    tasks = {}

    def report(title: str, done: int, total: int) -> None:
        if title not in tasks:
            tasks[title] = bar.add_task(title, total=total, speed="")
            bar.start()
        bar.update(tasks[title], completed=done, total=total)

    try:
        yield report
    finally:
        if tasks:  # stopping what never started prints an empty line
            bar.stop()


def _bar(*, is_kept: bool) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    if is_kept:
        columns.append(TextColumn("{task.fields[speed]}"))
    return Progress(*columns, console=Console(stderr=True), transient=not is_kept)
