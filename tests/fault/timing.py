"""Bounds of time that are promised, measured on machines that may be busy with something else.

A measurement that was late is repeated, a few times at most: a busy machine is late now and then, what
is too slow is late each time. Nothing but the bound is forgiven.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec

__all__ = ["Late", "again_if_late", "in_time"]

P = ParamSpec("P")
Test = Callable[P, Coroutine[Any, Any, None]]

TRIES = 5


class Late(AssertionError):
    """Something took longer than was promised."""


def in_time(what: str, took_s: float, bound_s: float) -> None:
    """See that it took less than the bound, and print how long it took."""
    words = f"{what} after {took_s:.3f} s, {bound_s:.3f} s are allowed"
    print(words)
    if took_s >= bound_s:
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
