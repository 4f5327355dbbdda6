"""An event loop whose clock jumps: tests of time that take no time, and come out exact.

Where a real loop would wait for its next timer, this one sets its clock to that timer. Real sockets
are not for it: with no timer left and nothing to do, what waits would wait for ever, so that is an error.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

END = 100_000.0
"""Seconds that no test needs."""


class _JumpingSelector(selectors.DefaultSelector):
    """Never waits: what would have been waited for is added to the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("nothing will ever happen any more: the test waits for ever")
        if not ready and timeout is not None and timeout > 0:
            self.now += timeout
            if self.now > END:
                raise RuntimeError("timers ring for ever: what the test waits for does not come")
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time, which begins at 0."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a test to its end in virtual time, and see that it left no task and no failure behind."""
    failures: list[dict[str, Any]] = []

    async def whole() -> T:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
        result = await main
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"tasks left behind: {left}"
        return result

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        result = runner.run(whole())
    assert not failures, failures
    return result
