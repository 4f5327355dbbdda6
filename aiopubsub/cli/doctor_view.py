"""What `aiopubsub doctor` shows: a report at a terminal, plain lines or JSON anywhere else.

Lives here: words and columns. Must not live here: what is good or bad. `doctor` calls.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .doctor_facts import Deployment, Facts
from .doctor_findings import Finding, Level
from .streams import Writer, is_terminal, visible

__all__ = ["show"]

_STYLES = {
    Level.OK: "green",
    Level.UNKNOWN: "dim",
    Level.WARNING: "yellow",
    Level.PROBLEM: "bold red",
}
_ORDER = (Level.PROBLEM, Level.WARNING, Level.UNKNOWN, Level.OK)


async def show(found: Deployment, findings: Sequence[Finding], *, as_json: bool) -> None:
    """Print the report.

    Raises:
        BadInput: Standard output is closed.
        OutputClosed: Its reader is gone.
    """
    writer = Writer()
    if as_json:
        writer.add(json.dumps(_as_json(found, findings)).encode() + b"\n")
    elif is_terminal(sys.stdout):
        _print(found, findings)
    else:
        writer.add("".join(f"{line}\n" for line in _plain_lines(found, findings)).encode())
    await writer.flush()


def _as_json(found: Deployment, findings: Sequence[Finding]) -> dict[str, object]:
    return {
        "deployment": found.kind,
        "status": _worst(findings),
        "servers": [
            {
                "address": server.name,
                "server": server.product,
                "version": server.version,
                "role": _role(server),
                "user": server.user,
                "slots": slots,
                "ping_ms": {"p50": round(server.p50_ms, 3), "p99": round(server.p99_ms, 3)},
            }
            for server, slots in _rows(found)
        ],
        "findings": [
            {
                "level": finding.level,
                "subject": finding.subject,
                "says": finding.says,
                "advice": finding.advice or None,
            }
            for finding in findings
        ],
    }


def _plain_lines(found: Deployment, findings: Sequence[Finding]) -> list[str]:
    lines = [
        "\t".join(
            [
                "server",
                server.name,
                server.server,
                _role(server),
                f"{server.p50_ms:.3f}",
                f"{server.p99_ms:.3f}",
            ]
        )
        for server, _ in _rows(found)
    ]
    lines += [
        f"{finding.level}\t{finding.subject}\t{finding.says}\t{finding.advice}".rstrip("\t")
        for finding in findings
    ]
    return [visible(line) for line in lines]


def _print(found: Deployment, findings: Sequence[Finding]) -> None:
    console = Console(highlight=False)
    console.print(Text(f"{found.kind[0].upper()}{found.kind[1:]}", "bold"))
    console.print(_servers(found))
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        says = Text(visible(finding.says))
        if finding.advice:
            says.append(f"\n→ {visible(finding.advice)}", "dim")
        table.add_row(Text(finding.level, _STYLES[finding.level]), Text(finding.subject), says)
    console.print(Padding(table, (1, 0, 1, 0)))
    console.print(Text(_summary(findings), _STYLES[_worst(findings)]))


def _servers(found: Deployment) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("server")
    table.add_column("role")
    table.add_column("version")
    if found.is_cluster:
        table.add_column("slots", justify="right")
    table.add_column("ping: median", justify="right")
    table.add_column("99 %", justify="right")
    for server, slots in _rows(found):
        cells = [visible(server.name), _role(server), visible(server.server)]
        if found.is_cluster:
            cells.append(f"{slots:,}" if slots else "")
        table.add_row(*map(Text, [*cells, f"{server.p50_ms:.2f} ms", f"{server.p99_ms:.2f} ms"]))
    return table


def _rows(found: Deployment) -> list[tuple[Facts, int | None]]:
    """The servers that answered, and how many slots each of them serves, in a cluster."""
    if not found.places:
        return [(server, None) for server in found.servers]
    return [(place.facts, len(place.slots)) for place in found.places if place.facts is not None]


def _role(server: Facts) -> str:
    return "replica" if server.is_replica else "primary"


def _worst(findings: Sequence[Finding]) -> Level:
    """Of what was found; what is not known is no reason to worry."""
    levels = {finding.level for finding in findings}
    return next(level for level in _ORDER if level in levels | {Level.OK} and level is not Level.UNKNOWN)


def _summary(findings: Sequence[Finding]) -> str:
    counts = {level: sum(finding.level is level for finding in findings) for level in _ORDER}
    if not counts[Level.PROBLEM] and not counts[Level.WARNING]:
        return "All is well."
    parts = [
        f"{count} {level}{'' if count == 1 else 's'}"
        for level, count in counts.items()
        if count and level in (Level.PROBLEM, Level.WARNING)
    ]
    return ", ".join(parts) + "."
