"""A connection that is a list, and somebody who speaks over it: for the tests of sessions and links."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from aiopubsub.dialogue import Command
from aiopubsub.errors import PubSubError
from aiopubsub.wire import Wire, WireUser


class FakeWire:
    """An open connection. A test reads `writes` and says what the server says with `say`."""

    def __init__(self, *, answers_pings: bool = False) -> None:
        self.is_writable = True
        self.is_paused = False
        self.is_aborted = False
        self.writes: list[list[Command]] = []
        self.user: WireUser | None = None
        self.answers_pings = answers_pings

    def start(self, user: WireUser) -> None:
        self.user = user

    def write(self, commands: Iterable[Command]) -> None:
        assert self.is_writable, "written to a connection that is full"
        assert not self.is_aborted, "written to a connection that is closed"
        self.writes.append(list(commands))
        if self.answers_pings and (b"PING",) in self.writes[-1]:
            asyncio.get_running_loop().call_soon(self.say, b"PONG")

    def pause(self) -> None:
        assert not self.is_paused
        self.is_paused = True

    def resume(self) -> None:
        assert self.is_paused
        self.is_paused = False

    def abort(self) -> None:
        self.is_aborted, self.is_writable, self.user = True, False, None

    # what the test does

    def say(self, *items: Any) -> None:
        if self.user is not None:
            self.user.on_batch(list(items))

    def lose(self, reason: str = "cut") -> None:
        user, self.user = self.user, None
        self.is_writable = False
        if user is not None:
            user.on_lost(reason)


class FakeOpener:
    """Opens what the test has laid out, in turn, then one fresh wire after the other."""

    target = "fake:1"

    def __init__(
        self, *outcomes: Wire | BaseException | Callable[[], Any], answers_pings: bool = True
    ) -> None:
        self.outcomes = deque(outcomes)
        self.answers_pings = answers_pings
        self.wires: list[FakeWire] = []
        self.opened_at: list[float] = []

    async def open(self) -> Wire:
        self.opened_at.append(asyncio.get_running_loop().time())
        outcome: Any = self.outcomes.popleft() if self.outcomes else None
        if isinstance(outcome, BaseException):
            raise outcome
        if callable(outcome):
            await outcome()
        wire = outcome if isinstance(outcome, FakeWire) else FakeWire(answers_pings=self.answers_pings)
        self.wires.append(wire)
        return wire


class FakeDialogue:
    """Says what a test puts into `to_say`, and keeps what it is told."""

    def __init__(self) -> None:
        self.is_stalled = False
        self.is_live = False
        self.subject: str | None = None
        self.marks: list[Callable[[], None]] = []  # of PINGs whose answer somebody waits for
        self.reasons: list[str] = []  # of each `end`
        self.to_say: deque[list[Command]] = deque()
        self.told: list[Any] = []  # begin, end, close and what was received
        self.slice = 1_000_000  # items that one `receive` takes
        self.stall_after: Any = None  # an item after which it stalls
        self.deadlines: list[float] = []
        self.expired_at: list[float] = []

    def begin(self) -> None:
        assert not self.is_live
        self.is_live = True
        self.told.append("begin")

    def commands(self) -> list[Command]:
        return self.to_say.popleft() if self.is_live and self.to_say else []

    def receive(self, backlog: deque[Any]) -> bool:
        assert self.is_live
        self.is_stalled = False
        for _ in range(min(len(backlog), self.slice)):
            item = backlog.popleft()
            if isinstance(item, Exception):
                raise item
            self.told.append(item)
            if item == self.stall_after:
                self.is_stalled = True
                break
        return bool(backlog)

    def ping(self, on_answer: Callable[[], None] | None = None) -> None:
        if on_answer is not None:
            self.marks.append(on_answer)
        self.to_say.append([(b"PING",)])

    def expire(self, now: float) -> float:
        self.expired_at.append(now)
        self.deadlines = [deadline for deadline in self.deadlines if deadline > now]
        return min(self.deadlines, default=math.inf)

    def end(self, reason: str) -> None:
        assert self.is_live, "ended twice"
        self.reasons.append(reason)
        self.is_live = False
        self.told.append("end")

    def close(self, error: PubSubError) -> None:
        self.told.append(error)
