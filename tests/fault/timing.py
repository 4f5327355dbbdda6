"""Bounds of time that are promised, measured on machines that may be busy with something else.

Where a test says so, time in which this process was ready to run and had to wait for a core does not count,
as far as the system tells it. A measurement that was late all the same is repeated, a few times at most: a
busy machine is late now and then, what is too slow is late each time. Nothing but the bound is forgiven.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, ParamSpec

__all__ = ["Late", "Queueing", "again_if_late", "in_time"]

P = ParamSpec("P")
Test = Callable[P, Coroutine[Any, Any, None]]

TRIES = 5


class Late(AssertionError):
    """Something took longer than was promised."""


class Queueing:
    """How long this process has waited for a core since this was made, ready to run; 0 if nobody tells."""

    def __init__(self) -> None:
        self._before_s = _queued_s()

    def s(self) -> float:
        return _queued_s() - self._before_s


def _queued_s() -> float:
    try:  # https://docs.kernel.org/scheduler/sched-stats.html: the second number, in nanoseconds
        return int(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9
    except OSError:
        return 0.0


def in_time(what: str, took_s: float, bound_s: float, *, queued_s: float = 0.0) -> None:
    """See that it took less than the bound, and print how long it took."""
    words = f"{what} after {took_s:.3f} s, {bound_s:.3f} s are allowed"
    if queued_s >= 0.001:
        words += f", beside {queued_s:.3f} s of waiting for a core"
    print(words)
    if took_s >= bound_s + queued_s:
        raise Late(words)


def again_if_late(test: Test[P]) -> Test[P]:
    """Run a test again, from its beginning, when it was late; not when it failed."""

    @functools.wraps(test)
    async def run(*args: P.args, **kwargs: P.kwargs) -> None:
        for _ in range(TRIES - 1):
            try:
                return await test(*args, **kwargs)
            except Late:
                continue
        return await test(*args, **kwargs)

    return run
