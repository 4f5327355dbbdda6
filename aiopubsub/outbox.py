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
from copy import copy
from typing import Any, Protocol, TypeAlias

from .dialogue import PUBLISH, Command, OutOfStep
from .errors import ErrorReply, NotSent, PublishRefused, PubSubError, Unconfirmed

__all__ = ["Batch", "Line", "Outbox", "Promise", "Request", "channel_of"]

_PONG = b"PONG"

WRITE_BYTES = 256 * 1024
"""Payload bytes in one write: enough to fill a socket buffer, little enough to stop soon after it."""


class Promise(Protocol):
    """Where an answer goes; an `asyncio.Future` is one."""

    def done(self) -> bool: ...
    def set_result(self, result: Any, /) -> None: ...
    def set_exception(self, exception: PubSubError, /) -> None: ...


Request: TypeAlias = "tuple[Promise, float, Command, Line]"
"""One command that is to have an answer: who gets it, when the caller gives up by the clock of
`expire`, the command, and the line it stands in. A plain tuple, because an object takes 0.2 µs more."""


class Batch:
    """Many commands of one line, with one promise: it is kept when the last answer is here.

    Args:
        promise: Gets `None`, whatever the answers are.
        deadline: As of a `Request`.
        commands: What is sent, at once, in order.
        line: Where it stands.

    Attributes:
        replies: The answers so far, in order; an `ErrorReply` where the server refused.
        error: Why the rest of the commands will have no answer, or `None`. `_channel` says for which.
    """

    __slots__ = ("commands", "deadline", "error", "line", "promise", "replies")

    def __init__(self, promise: Promise, deadline: float, commands: list[Command], line: Line) -> None:
        self.promise = promise
        self.deadline = deadline
        self.commands = commands
        self.line = line
        self.replies: list[Any] = []
        self.error: PubSubError | None = None

    @property
    def in_flight(self) -> int:
        """Commands without an answer, once it was sent."""
        return len(self.commands) - len(self.replies)

    def answer(self, reply: object) -> bool:
        """Take the next answer; whether it was the last."""
        self.replies.append(reply)
        if self.in_flight:
            return False
        if not self.promise.done():
            self.promise.set_result(None)
        return True

    def fail(self, error: PubSubError) -> None:
        """There will be no more answers."""
        self.error = error
        self.promise.set_result(None)

    def failures(self) -> dict[int, PubSubError]:
        """What went wrong, by the index of the command."""
        failures: dict[int, PubSubError] = {
            index: PublishRefused(channel_of(self.commands[index]), str(reply))
            for index, reply in enumerate(self.replies)
            if isinstance(reply, ErrorReply)
        }
        if self.error is not None:
            failures |= dict.fromkeys(range(len(self.replies), len(self.commands)), self.error)
        return failures


class Line:
    """The requests of one publisher, in their order.

    Attributes:
        max_in_flight: Commands that may be without an answer at a time.
        in_flight: Those that are.
        waiting: Requests that were not yet sent.
        closed_by: Why it takes no more, or `None`.
    """

    __slots__ = ("closed_by", "in_flight", "max_in_flight", "waiting")

    def __init__(self, max_in_flight: int) -> None:
        self.max_in_flight = max_in_flight
        self.in_flight = 0
        self.waiting: deque[Request | Batch] = deque()
        self.closed_by: PubSubError | None = None

    def add(self, request: Request | Batch) -> bool:
        """Put a request at the end; whether nothing stood before it, so that somebody must be told.

        Raises:
            PubSubError: The line is closed; why.
        """
        if self.closed_by is not None:
            raise copy(self.closed_by)
        waiting = self.waiting
        waiting.append(request)
        return len(waiting) == 1

    def close(self, error: PubSubError) -> None:
        """Tell what still waits, and take no more."""
        self.closed_by = error
        while self.waiting:
            _fail(self.waiting.popleft(), copy(error))  # each raise grows its own traceback


class Outbox:
    """The decisions of one commanding connection."""

    is_stalled = False  # it always takes what comes
    subject = None  # it is sent nothing but answers

    def __init__(self, push: type[list[Any]]) -> None:
        self._push = push
        self._lines: list[Line] = []
        self._replies: deque[Request | Batch | None] = deque()  # None: a PING of our own
        self._pings = 0
        self._is_live = False
        self._closed_by: PubSubError | None = None

    @property
    def in_flight(self) -> int:
        """Commands that were sent and have no answer yet."""
        return sum(request.in_flight if isinstance(request, Batch) else 1 for request in self._replies)

    @property
    def waiting(self) -> int:
        """Commands that were not sent yet."""
        return sum(
            request.in_flight if isinstance(request, Batch) else 1
            for line in self._lines
            for request in line.waiting
        )

    # -- what publishers want ----------------------------------------------------------------------

    def open_line(self, max_in_flight: int) -> Line:
        """A line of its own for a publisher, until `close_line`."""
        line = Line(max_in_flight)
        line.closed_by = self._closed_by
        self._lines.append(line)
        return line

    def close_line(self, line: Line, error: PubSubError) -> None:
        """Tell what still waits in a line, and let go of it."""
        line.close(error)
        if line in self._lines:
            self._lines.remove(line)

    def expire(self, now: float) -> float:
        """Give up what is overdue; return the earliest deadline that is left, or infinity."""
        earliest = math.inf
        for line in self._lines:
            waiting = line.waiting
            while waiting:
                promise, deadline, channel = _look_at(waiting[0])
                if deadline > now and not promise.done():
                    earliest = min(earliest, deadline)
                    break
                _fail(waiting.popleft(), NotSent(channel, self._why_not_sent()))
        for request in self._replies:
            if request is None:
                continue
            promise, deadline, channel = _look_at(request)
            if promise.done():
                continue
            if deadline > now:
                earliest = min(earliest, deadline)
            else:
                _fail(request, Unconfirmed(channel, "the server did not answer in time"))
                # if the answer is not late but missing, all later ones stand one place too early:
                # this one will show it, because a PONG cannot pass for an answer to PUBLISH
                self._pings = 1
        return earliest

    def close(self, error: PubSubError) -> None:
        """Nothing more will be sent: whoever waits is told why."""
        self._closed_by = error
        for line in self._lines:
            line.close(error)

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
            if line.waiting:
                left = self._send(line, commands, left)
            if left <= 0:  # the next write begins with the next line, so that none starves
                self._lines = self._lines[seen:] + self._lines[:seen]
                break
        for _ in range(self._pings):
            self._replies.append(None)
            commands.append((b"PING",))
        self._pings = 0
        return commands

    def ping(self, on_answer: object = None) -> None:
        """Let the next `commands()` hold a PING. Its answer proves that the server lives, and that the
        answers before it were the right ones."""
        self._pings += 1

    def receive(self, backlog: deque[Any]) -> bool:  # noqa: PLR0912  # one loop, no call for each answer
        """Deal with all that the server said; so there is never more to do.

        Raises:
            OutOfStep: There was a reply that nobody asked for, or one that cannot be the answer that
                was due.
        """
        replies, push = self._replies, self._push
        next_reply = backlog.popleft
        while backlog:
            reply = next_reply()
            if reply.__class__ is push:
                continue
            if not replies:
                raise OutOfStep(f"a reply that nobody asked for: {type(reply).__name__}")
            request = replies[0]
            if isinstance(request, tuple):
                promise, _, command, line = request
                error: PubSubError | None = None
                if reply.__class__ is not int and command[0] == PUBLISH:
                    _check_refusal(reply)
                    error = PublishRefused(channel_of(command), str(reply))
                replies.popleft()
                line.in_flight -= 1
                if promise.done():
                    continue  # the caller has given up
                if error is None:
                    promise.set_result(reply)
                else:
                    promise.set_exception(error)
            elif request is None:
                replies.popleft()
                if reply != _PONG and reply.__class__ is not ErrorReply:  # no permission, perhaps
                    raise OutOfStep(f"the answer to a PING was due, not {type(reply).__name__}")
            else:
                if reply.__class__ is not int:
                    _check_refusal(reply)
                request.line.in_flight -= 1
                if request.answer(reply):
                    replies.popleft()
        return False

    def end(self, reason: str = "closed") -> None:
        """The session has ended: what was sent and not answered stays unconfirmed."""
        self._is_live = False
        for request in self._replies:
            if request is not None:
                why = f"the connection was lost before the server answered: {reason}"
                _fail(request, Unconfirmed(_look_at(request)[2], why))
        for line in self._lines:
            line.in_flight = 0
        self._replies.clear()
        self._pings = 0

    def _send(self, line: Line, commands: list[Command], left: int) -> int:
        """Move what fits from a line to the commands and the replies; bytes that are left."""
        waiting, replies = line.waiting, self._replies
        free = line.max_in_flight - line.in_flight
        while waiting and free > 0 and left > 0:
            request = waiting[0]
            if isinstance(request, tuple):
                waiting.popleft()
                promise, _, command, _ = request
                if promise.done():
                    continue  # the caller has given up
                commands.append(command)
                free -= 1
                left -= len(command[-1])
            else:
                count = request.in_flight
                if count > free < line.max_in_flight:
                    break
                waiting.popleft()
                if request.promise.done():
                    continue
                commands += request.commands
                free -= count
                left -= sum(len(command[-1]) for command in request.commands)
            replies.append(request)
        line.in_flight = line.max_in_flight - free
        return left

    def _why_not_sent(self) -> str:
        if self._is_live:
            return "too many publishes were in flight for the whole timeout"
        return "there was no connection for the whole timeout"


def channel_of(command: Command) -> str:
    """The channel that a command is about, for errors."""
    return command[1].decode() if len(command) > 1 else ""


def _check_refusal(reply: object) -> None:
    """What answers a PUBLISH and is no number must be an error."""
    if reply.__class__ is not ErrorReply:
        raise OutOfStep(f"the answer to a PUBLISH was due, not {type(reply).__name__}")


def _look_at(request: Request | Batch) -> tuple[Promise, float, str]:
    """The promise, the deadline, and the channel of the first command without an answer."""
    if isinstance(request, Batch):
        return request.promise, request.deadline, channel_of(request.commands[len(request.replies)])
    promise, deadline, command, _ = request
    return promise, deadline, channel_of(command)


def _fail(request: Request | Batch, error: PubSubError) -> None:
    """Tell why there will be no answer, unless the caller has given up."""
    if isinstance(request, Batch):
        if not request.promise.done():
            request.fail(error)
    elif not request[0].done():
        request[0].set_exception(error)
