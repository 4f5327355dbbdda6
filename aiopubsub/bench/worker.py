"""One contestant's process: one measurement, and the end.

Lives here: the contestants by name, the event loop, the report. Must not live here: measuring
(`measures`). `child` calls.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from importlib import import_module
from typing import Any

from .contestants import Contestant
from .job import Figures, Job, peak_bytes

__all__ = ["main"]


def main(role: str) -> None:
    """Do the job that standard input gives, report on standard output, and end.

    It ends without farewells: what a library does at its end is not measured, and the system closes
    its connections.
    """
    job = Job.from_line(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    name, is_uvloop = role.removesuffix("-uvloop"), role.endswith("-uvloop")
    factory = import_module("uvloop").new_event_loop if is_uvloop else None
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            _report({"figures": runner.run(_measure(name, job))})
            os._exit(0)
    except Exception as error:  # whatever it is, it is this contestant's result
        _report({"failure": f"{type(error).__name__}: {' '.join(str(error).split())}"})
        os._exit(1)


async def _measure(name: str, job: Job) -> Figures:
    contestant: Contestant = _module(f"contestants.{name.replace('-', '_')}").Contestant(job)
    await contestant.open()
    figures: Figures = await _module(f"measures.{job.measure}").measure(contestant, job)
    figures["peak_bytes"] = peak_bytes()
    return {figure: float(f"{value:.6g}") for figure, value in figures.items()}  # the rest is noise


def _module(name: str) -> Any:
    return import_module(f"aiopubsub.bench.{name}")


def _report(report: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(report) + "\n")
    sys.stdout.flush()


def _end_with_parent() -> None:
    """Wait for the end of standard input, in a thread that costs nothing."""
    while sys.stdin.buffer.readline():
        pass
    os._exit(1)
