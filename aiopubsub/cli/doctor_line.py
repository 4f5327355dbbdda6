"""One plain connection to one server: what is asked, in order, and what it answers.

A link would connect again and wait its turn; the doctor wants to know how this very server answers now.

Lives here: asking one server. Must not live here: what the answers mean. The parts of `doctor` call.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

import anyio

from aiopubsub.dialogue import Command
from aiopubsub.errors import ConnectFailed
from aiopubsub.wire import Push, Wire, WireOpener

from .runner import Failed

__all__ = ["Line"]

_ANSWER_S = 10.0
_PINGS = 100
_PINGS_S = 2.0  # for all of them: on a slow path there are fewer
_CONFIRMATIONS = (b"subscribe", b"unsubscribe", b"ssubscribe", b"sunsubscribe")


class Line:
    """An open connection, closed on leaving it as a context; `open` makes one.

    Attributes:
        target: Where it leads.
    """

    def __init__(self, wire: Wire, target: str) -> None:
        self.target = target
        self._wire = wire
        self._due: deque[asyncio.Future[Any]] = deque()
        self._lost: str | None = None
        wire.start(self)

    @classmethod
    async def open(cls, opener: WireOpener, timeout: float) -> Self:
        """Connect, within so many seconds.

        Raises:
            ConnectFailed: It did not work.
        """
        try:
            with anyio.fail_after(timeout):
                return cls(await opener.open(), opener.target)
        except TimeoutError:
            raise ConnectFailed(opener.target, f"no answer within {timeout:g} s") from None

    async def ask(self, *commands: Command) -> list[Any]:
        """The answers, in order; an `ErrorReply` where one was refused.

        What is subscribed to must be a single channel for each command: its confirmation is the answer.

        Raises:
            Failed: The connection was lost, or there is no answer within 10 s.
        """
        loop = asyncio.get_running_loop()
        answers: list[asyncio.Future[Any]] = [loop.create_future() for _ in commands]
        if self._lost is not None:
            raise Failed(f"{self.target}: {self._lost}")
        self._due += answers
        self._wire.write(commands)
        try:
            with anyio.fail_after(_ANSWER_S):
                return list(await asyncio.gather(*answers))
        except TimeoutError:
            raise Failed(f"{self.target}: no answer within {_ANSWER_S:g} s") from None

    async def ping(self) -> list[float]:
        """The round trips of up to a hundred PINGs, one after the other: milliseconds, in ascending order.

        Raises:
            Failed: As `ask`.
        """
        took: list[float] = []
        begun = time.perf_counter()
        while len(took) < _PINGS and time.perf_counter() - begun < _PINGS_S:
            before = time.perf_counter()
            await self.ask((b"PING",))
            took.append(1000 * (time.perf_counter() - before))
        return sorted(took)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._wire.abort()

    # -- the wire calls these ----------------------------------------------------------------------

    def on_batch(self, batch: Iterable[Any]) -> bool:
        is_any = False
        for item in batch:
            is_any = True
            if (type(item) is not Push or item[0] in _CONFIRMATIONS) and self._due:
                answer = self._due.popleft()
                if not answer.done():
                    answer.set_result(item)
        return is_any

    def on_part(self) -> None:
        pass

    def on_writable(self) -> None:
        pass

    def on_lost(self, reason: str) -> None:
        self._lost = reason
        while self._due:
            answer = self._due.popleft()
            if not answer.done():
                answer.set_exception(Failed(f"{self.target}: {reason}"))
