"""What `aiopubsub bench` shows: a table for each case, drawn at a terminal, plain anywhere else.

Lives here: words and columns. Must not live here: figures (`aiopubsub.bench.results`). `bench` calls.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from aiopubsub.bench.cases import FIGURES, OURS, Case
from aiopubsub.bench.promises import PROMISES
from aiopubsub.bench.results import Results

from .runner import OutputClosed, tell
from .streams import is_terminal

__all__ = ["View", "view_of"]

_RATIO = "cost / ours"
_STYLES = {OURS: "bold", "kept": "green", "broken": "bold red"}


class View(Protocol):
    """Shows a run as it goes."""

    def shown(self) -> AbstractContextManager[object]:
        """While it is open, it may draw."""
        ...

    def begin(self, case: Case, number: int, contestant: str) -> None:
        """A measurement begins, in the round of this number."""
        ...

    def end(self, results: Results, cases: list[Case]) -> None:
        """These cases are complete."""
        ...

    def finish(self, results: Results) -> None:
        """The run is over. After `shown`."""
        ...


def view_of(minutes: float) -> View:
    """What fits standard output; it says first about how long the run will take."""
    tell(f"about {minutes:.0f} minutes" if minutes >= 1.5 else f"about {60 * minutes:.0f} seconds")
    return _TerminalView() if is_terminal(sys.stdout) else _PlainView()


class _TerminalView:
    """Tables, and below them what is measured just now."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)  # no CPU meanwhile

    def shown(self) -> AbstractContextManager[object]:
        return self._live

    def begin(self, case: Case, number: int, contestant: str) -> None:
        self._live.update(Text(f"{case.title}: round {number}, {contestant}", "dim"), refresh=True)

    def end(self, results: Results, cases: list[Case]) -> None:
        for case in cases:
            self._console.print(Text(_title(case), "bold"), _table(_cells(results, case, separator=",")))
            for line in _failures(results, case):
                self._console.print(Text(line, "yellow"))
        for line in _growth(results, cases):
            self._console.print(Text(line))

    def finish(self, results: Results) -> None:
        rows = _promises(results)
        if len(rows) > 1:
            self._console.print(_table(rows))


class _PlainView:
    """The same in plain words, with numbers that a program can read."""

    def shown(self) -> AbstractContextManager[object]:
        return nullcontext()

    def begin(self, case: Case, number: int, contestant: str) -> None:
        """Nothing: what is being done does not belong into a file."""

    def end(self, results: Results, cases: list[Case]) -> None:
        for case in cases:
            lines = _aligned(_cells(results, case, separator=""))
            self._print("\n".join([_title(case), *lines, *_failures(results, case), ""]))
        for line in _growth(results, cases):
            self._print(f"{line}\n")

    def finish(self, results: Results) -> None:
        rows = _promises(results)
        if len(rows) > 1:
            self._print("\n".join(_aligned(rows)))

    def _print(self, text: str) -> None:
        try:
            print(text, flush=True)  # noqa: T201
        except BrokenPipeError as error:
            raise OutputClosed from error


def _table(rows: list[list[str]]) -> Table:
    head, *body = rows
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for at, heading in enumerate(head):
        table.add_column(heading, justify="right" if at else "left")
    for row in body:
        table.add_row(*(Text(cell, _STYLES.get(cell, "")) for cell in row))
    return table


def _aligned(table: list[list[str]]) -> list[str]:
    """Lines of text; the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in table
    ]


def _title(case: Case) -> str:
    return f"{case.title} [{case.name}]"


def _cells(results: Results, case: Case, separator: str) -> list[list[str]]:
    """The head and a row for each contestant that did not fail; columns for the figures that there are."""
    medians = {name: one.medians for name, one in results.outcomes[case.name].items() if one.medians}
    figures = [name for name in FIGURES if any(name in one for one in medians.values())]
    headings = [FIGURES[name].heading for name in figures]
    if case.headline in figures:
        headings[figures.index(case.headline)] += " *"
    rows = [["", *headings, _RATIO]]
    for contestant, values in medians.items():
        shown = [values[name] / FIGURES[name].per_unit if name in values else None for name in figures]
        cells = [_number(value, separator) for value in (*shown, results.ratio(case.name, contestant))]
        rows.append([contestant, *cells])
    return rows


def _failures(results: Results, case: Case) -> list[str]:
    outcomes = results.outcomes[case.name].items()
    return [f"{name} failed: {one.failure}" for name, one in outcomes if one.failure is not None]


def _growth(results: Results, cases: list[Case]) -> list[str]:
    """What a family shows that none of its cases does."""
    if cases[0].family == "fan-out":
        told, words = results.extra_deliveries(OURS), "each further subscriber costs of a single one"
    elif cases[0].family == "channels":
        told, words = results.growth("channels", OURS), "a message costs of one with a single channel"
    else:
        return []
    if len(told) < 2:
        return []
    return [f"ours: {words}: {', '.join(f'{cost:.2f} (at {size})' for size, cost in told.items())}"]


def _promises(results: Results) -> list[list[str]]:
    """What the run must show, as far as it was measured."""
    rows = [["promise", "wanted", "got", ""]]
    for promise in PROMISES:
        got = promise.got(results)
        if got is not None:
            verdict = "kept" if promise.holds(results) else "broken"
            rows.append([promise.text, promise.wanted, _number(got, ""), verdict])
    return rows


def _number(value: float | None, separator: str) -> str:
    if value is None:
        return "-"
    decimals = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:{separator}.{decimals}f}"
