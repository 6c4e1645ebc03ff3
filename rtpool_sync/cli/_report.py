"""Progress and tables on whatever standard output is: a terminal with rich, one without, a file."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

__all__ = ["Progress", "progress", "table"]


class Progress(Protocol):
    """What a running phase tells: one step done, and a word about how it goes."""

    def step(self, note: str) -> None: ...


@contextmanager
def progress(title: str, total: int) -> Iterator[Progress]:
    """Show a phase of ``total`` steps: live on a terminal, a few lines anywhere else."""
    if not sys.stdout.isatty():
        yield _Lines(title, total)
        return
    try:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bars
    except ImportError:
        line = _OneLine(title, total)
        try:
            yield line
        finally:
            print(flush=True)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Bars(*columns, refresh_per_second=15) as bars:
        task = bars.add_task(title, total=total, note="")

        class Bar:
            def step(self, note: str) -> None:
                bars.update(task, advance=1, note=note)

        yield Bar()


class _OneLine:
    """A terminal without rich: one line, written over and over."""

    def __init__(self, title: str, total: int) -> None:
        self._title = title
        self._total = total
        self._done = 0
        self._width = 0
        self._write("")

    def step(self, note: str) -> None:
        self._done += 1
        self._write(note)

    def _write(self, note: str) -> None:
        text = f"{self._title}  {self._done}/{self._total}  {note}"
        sys.stdout.write("\r" + text.ljust(self._width))
        sys.stdout.flush()
        self._width = len(text)


class _Lines:
    """A file or a pipe: a line every quarter of the way, and no control characters."""

    def __init__(self, title: str, total: int) -> None:
        self._title = title
        self._total = total
        self._done = 0
        self._marks = {max(1, total * quarter // 4) for quarter in (1, 2, 3, 4)}

    def step(self, note: str) -> None:
        self._done += 1
        if self._done in self._marks:
            print(f"{self._title}  {self._done}/{self._total}  {note}", flush=True)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, figures: bool = True) -> None:
    """Print a table; its first column is text, the others are ``figures`` or text as well."""
    if sys.stdout.isatty():
        try:
            from rich import box
            from rich.console import Console
            from rich.table import Table
            from rich.text import Text
        except ImportError:
            pass
        else:
            pretty = Table(box=box.SIMPLE_HEAD)
            for index, title in enumerate(head):
                pretty.add_column(title, justify="right" if index and figures else "left")
            for row in rows:
                pretty.add_row(*(Text(cell) for cell in row))  # no markup: values may have brackets
            Console().print(pretty)
            return
    widths = [max(len(row[index]) for row in (head, *rows)) for index in range(len(head))]
    print()
    for row in (head, ["-" * width for width in widths], *rows):
        cells = [
            cell.rjust(width) if index and figures else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  " + "  ".join(cells).rstrip())
    print(flush=True)
