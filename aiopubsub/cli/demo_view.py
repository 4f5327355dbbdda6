"""What `aiopubsub demo` shows: a table that lives at a terminal, plain lines anywhere else.

Lives here: words and columns. Must not live here: figures (`demo_books`), processes (`demo`). `demo`
calls.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .demo_books import Books, Row
from .streams import Writer, is_terminal

__all__ = ["View", "view_of"]

_STYLES = {"open": "dim", "balanced": "green"}


class View(Protocol):
    """Shows the books."""

    every_s: float
    """Seconds between two looks."""

    def shown(self) -> AbstractContextManager[object]:
        """While it is open, it may draw."""
        ...

    async def refresh(self, elapsed_s: float) -> None:
        """Show how it stands."""
        ...

    async def finish(self) -> None:
        """Show how it ended. After `shown` is over."""
        ...


def view_of(books: Books) -> View:
    """What fits standard output.

    Raises:
        BadInput: Standard output is closed.
    """
    return _LiveView(books) if is_terminal(sys.stdout) else _PlainView(books)


class _LiveView:
    """A table that is drawn again and again."""

    every_s = 0.25

    def __init__(self, books: Books) -> None:
        self._books = books
        self._live = Live(console=Console(highlight=False), auto_refresh=False)

    def shown(self) -> AbstractContextManager[object]:
        return self._live

    async def refresh(self, elapsed_s: float) -> None:
        rate = self._books.rate.per_second
        line = f"{elapsed_s:4.1f} s   {self._books.total:,} published, {rate:,} a second"
        words = [line, *self._books.faults]
        self._live.update(Group(self._table(), *(Text(f" {line}", "dim") for line in words)), refresh=True)

    async def finish(self) -> None:
        style = "bold green" if self._books.is_balanced else "bold red"
        self._live.console.print(Text(f" {_conclusion(self._books)}", style))

    def _table(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("subscriber")
        table.add_column("follows")
        for name in ("published", "delivered", "missing"):
            table.add_column(name, justify="right", min_width=9)
        table.add_column("gaps", justify="right")
        table.add_column("per s", justify="right", min_width=6)
        table.add_column("books", min_width=8)
        for row in self._books.rows:
            verdict = self._books.verdict(row)
            table.add_row(
                row.name,
                row.follows,
                *(f"{number:,}" for number in _figures(self._books, row)),
                f"{row.rate.per_second:,}",
                Text(verdict, _STYLES.get(verdict, "bold red")),
            )
        return table


class _PlainView:
    """A line a second, and a table of plain words in the end."""

    every_s = 1.0

    def __init__(self, books: Books) -> None:
        self._books = books
        self._writer = Writer()
        self._told = 0  # faults

    def shown(self) -> AbstractContextManager[object]:
        return nullcontext()

    async def refresh(self, elapsed_s: float) -> None:
        books = self._books
        for fault in books.faults[self._told :]:
            await self._print(fault)
        self._told = len(books.faults)
        rows = "; ".join(f"{row.name} {row.delivered} and {row.missing} missing" for row in books.rows)
        await self._print(
            f"{elapsed_s:.0f} s: {books.total} published, {books.rate.per_second} a second; {rows}"
        )

    async def finish(self) -> None:
        books = self._books
        form = "{:<10}  {:<8}  {:>9}  {:>9}  {:>9}  {:>5}  {}"
        head = form.format("subscriber", "follows", "published", "delivered", "missing", "gaps", "books")
        rows = [
            form.format(row.name, row.follows, *_figures(books, row), books.verdict(row))
            for row in books.rows
        ]
        await self._print("\n".join([head, *rows, _conclusion(books)]))

    async def _print(self, text: str) -> None:
        self._writer.add(f"{text}\n".encode())
        await self._writer.flush()


def _figures(books: Books, row: Row) -> tuple[int, int, int, int]:
    return books.published_to(row), row.delivered, row.missing, row.gaps


def _conclusion(books: Books) -> str:
    if not books.is_balanced:
        return "The books don't balance."
    words = "The books balance: every message was delivered, or had a gap in its place."
    if books.unconfirmed:
        words += (
            f"\n Up to {books.unconfirmed} that a crash left unconfirmed may never have been published."
        )
    return words
