"""`Printer`: titles and tables on standard output; what comes from files cannot steer the terminal."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from quire.builder.report.words import printable

_WIDTH = 160


class Printer:
    """Prints with rich; as wide as the terminal, or 160 columns into a file."""

    def __init__(self) -> None:
        console = Console(highlight=False)
        self._console = console if console.is_terminal else Console(highlight=False, width=_WIDTH)

    def line(self, words: str) -> None:
        """Print a line."""
        self._console.print(Text(printable(words)))

    def title(self, words: str) -> None:
        """Print a title after an empty line."""
        self._console.print(Text(f"\n{printable(words)}", style="bold"))

    def table(
        self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, numeric: Collection[int] = ()
    ) -> None:
        """Print a table under a title, nothing without rows; columns in which all cells are empty are left out.

        Args:
            title: What it shows.
            header: A word for each column.
            rows: Cells.
            numeric: Columns that are aligned to the right.
        """
        kept = [i for i in range(len(header)) if any(row[i] for row in rows)]
        if not kept:
            return
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim", show_edge=False)
        for i in kept:
            table.add_column(Text(printable(header[i])), justify="right" if i in numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(printable(row[i])) for i in kept))
        self.title(title)
        self._console.print(table)
