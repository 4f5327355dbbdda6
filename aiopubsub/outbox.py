"""Requests on their way to the server and back.

A request first waits in the line of its publisher. When the connection takes it, it moves to the
replies, where the server's answer finds it, because answers come in the order of the requests. A
caller who gives up leaves a request behind: in the line it is passed over, among the replies it keeps
its place.

Lives here: order, windows, deadlines, and who is told what. Must not live here: sockets, waiting,
clocks. A publisher calls `open_line` and `add`; the session calls the rest.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from copy import copy
from typing import Any, Protocol

from .dialogue import Command, OutOfStep
from .errors import ErrorReply, NotSent, PublishRefused, PubSubError, Unconfirmed

__all__ = ["Line", "Outbox", "Promise", "Request"]

WRITE_BYTES = 256 * 1024
"""Payload bytes in one write: enough to fill a socket buffer, little enough to stop soon after it."""


class Promise(Protocol):
    """Where an answer goes; an `asyncio.Future` is one."""

    def done(self) -> bool: ...
    def set_result(self, result: Any, /) -> None: ...
    def set_exception(self, exception: PubSubError, /) -> None: ...


class Request:
    """One command that is to have an answer.

    Args:
        channel: What it concerns, for errors.
        command: The command and its arguments.
        promise: Gets the reply, or a `PubSubError`.
        deadline: When the caller gives up, by the clock of `expire`.
    """

    __slots__ = ("channel", "command", "deadline", "line", "promise")

    def __init__(self, channel: str, command: Command, promise: Promise, deadline: float) -> None:
        self.channel = channel
        self.command = command
        self.promise = promise
        self.deadline = deadline
        self.line: Line | None = None


class Line:
    """The requests of one publisher, in their order.

    Attributes:
        max_in_flight: Requests that may be without an answer at a time.
        in_flight: Those that are.
        waiting: Those that were not yet sent.
    """

    __slots__ = ("in_flight", "max_in_flight", "waiting")

    def __init__(self, max_in_flight: int) -> None:
        self.max_in_flight = max_in_flight
        self.in_flight = 0
        self.waiting: deque[Request] = deque()


class Outbox:
    """The decisions of one commanding connection."""

    is_stalled = False  # it always takes what comes

    def __init__(self, push: type[list[Any]]) -> None:
        self._push = push
        self._lines: list[Line] = []
        self._replies: deque[Request | None] = deque()  # None: a PING of our own
        self._pings = 0
        self._is_live = False
        self._closed_by: PubSubError | None = None

    @property
    def in_flight(self) -> int:
        """Requests that were sent and have no answer yet."""
        return len(self._replies)

    @property
    def waiting(self) -> int:
        """Requests that were not sent yet."""
        return sum(len(line.waiting) for line in self._lines)

    # -- what publishers want ----------------------------------------------------------------------

    def open_line(self, max_in_flight: int) -> Line:
        """A line of its own for a publisher, until `close_line`."""
        line = Line(max_in_flight)
        self._lines.append(line)
        return line

    def close_line(self, line: Line, error: PubSubError) -> None:
        """Tell what still waits in a line, and let go of it."""
        _fail(line.waiting, error)
        if line in self._lines:
            self._lines.remove(line)

    def add(self, line: Line, request: Request) -> None:
        """Put a request at the end of its line.

        Raises:
            PubSubError: The outbox is closed; why.
        """
        if self._closed_by is not None:
            raise copy(self._closed_by)
        request.line = line
        line.waiting.append(request)

    def expire(self, now: float) -> float:
        """Give up what is overdue; return the earliest deadline that is left, or infinity."""
        earliest = math.inf
        for line in self._lines:
            waiting = line.waiting
            while waiting and (waiting[0].promise.done() or waiting[0].deadline <= now):
                request = waiting.popleft()
                if not request.promise.done():
                    request.promise.set_exception(NotSent(request.channel, self._why_not_sent()))
            if waiting:
                earliest = min(earliest, waiting[0].deadline)
        for sent in self._replies:
            if sent is None or sent.promise.done():
                continue
            if sent.deadline <= now:
                reason = "the server did not answer in time"
                sent.promise.set_exception(Unconfirmed(sent.channel, reason))
            else:
                earliest = min(earliest, sent.deadline)
        return earliest

    def close(self, error: PubSubError) -> None:
        """Nothing more will be sent: whoever waits is told why."""
        self._closed_by = error
        for line in self._lines:
            _fail(line.waiting, error)

    # -- what the session tells and asks -----------------------------------------------------------

    def begin(self) -> None:
        """A session begins."""
        self._is_live = True

    def commands(self) -> list[Command]:
        """What to send now, in order, `WRITE_BYTES` at most; empty when nothing waits or fits."""
        if not self._is_live:
            return []
        commands: list[Command] = []
        left = WRITE_BYTES
        for seen, line in enumerate(self._lines, 1):
            waiting = line.waiting
            while waiting and line.in_flight < line.max_in_flight and left > 0:
                request = waiting.popleft()
                if request.promise.done():
                    continue
                line.in_flight += 1
                self._replies.append(request)
                commands.append(request.command)
                left -= len(request.command[-1])
            if left <= 0:  # the next write begins with the next line, so that none starves
                self._lines = self._lines[seen:] + self._lines[:seen]
                break
        for _ in range(self._pings):
            self._replies.append(None)
            commands.append((b"PING",))
        self._pings = 0
        return commands

    def ping(self) -> None:
        """Let the next `commands()` hold a PING; whatever the server answers proves that it lives."""
        self._pings += 1

    def receive(self, batch: Sequence[Any], start: int) -> int:
        """Deal with what the server said, from `start` on; return how far it went: to the end.

        Raises:
            OutOfStep: There was a reply that nobody asked for.
        """
        replies = self._replies
        for index in range(start, len(batch)):
            reply = batch[index]
            if reply.__class__ is self._push:
                continue
            if not replies:
                raise OutOfStep(f"a reply that nobody asked for: {type(reply).__name__}")
            request = replies.popleft()
            if request is None:
                continue
            if request.line is not None:
                request.line.in_flight -= 1
            if request.promise.done():
                continue  # the caller has given up
            if isinstance(reply, ErrorReply):
                request.promise.set_exception(PublishRefused(request.channel, str(reply)))
            else:
                request.promise.set_result(reply)
        return len(batch)

    def end(self) -> None:
        """The session has ended: what was sent and not answered stays unconfirmed."""
        self._is_live = False
        for request in self._replies:
            if request is not None and not request.promise.done():
                reason = "the connection was lost before the server answered"
                request.promise.set_exception(Unconfirmed(request.channel, reason))
        for line in self._lines:
            line.in_flight = 0
        self._replies.clear()
        self._pings = 0

    def _why_not_sent(self) -> str:
        if self._is_live:
            return "too many publishes were in flight for the whole timeout"
        return "there was no connection for the whole timeout"


def _fail(waiting: deque[Request], error: PubSubError) -> None:
    while waiting:
        request = waiting.popleft()
        if not request.promise.done():
            request.promise.set_exception(copy(error))  # each raise grows its own traceback
