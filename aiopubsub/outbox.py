"""Requests on their way to the server and back.

A request first waits in the line of its publisher. When the connection takes it, it moves to the
replies, where the server's answer finds it, because answers come in the order of the requests. A
caller who gives up leaves a request behind: in the line it is passed over, among the replies it keeps
its place.

Lives here: order, windows, deadlines, and who is told what. Must not live here: what a request is
(`line`), sockets, waiting, clocks. A publisher calls `open_line`, and `add` of its line; the session
calls the rest.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

from .append import CALL_BYTES, CALL_ENTRIES, LOADS, SHAS, Append, Writes
from .dialogue import PUBLISH, SPUBLISH, Command, OutOfStep
from .errors import ErrorReply, NotSent, PublishRefused, PubSubError, Unconfirmed
from .line import Batch, Call, Line, Request, channel_of, fail, look_at
from .slots import Redirect, redirect_of
from .topic import History

__all__ = ["WRITE_BYTES", "Outbox"]

_PONG = b"PONG"
_PUBLISHING = (PUBLISH, SPUBLISH)

WRITE_BYTES = 256 * 1024
"""Payload bytes in one write: enough to fill a socket buffer, little enough to stop soon after it."""


class _Own(Enum):
    """What we ask for ourselves."""

    PING = "ping"
    LOAD = "load"
    ASKING = "asking"


class _Fence:
    """A PING whose answer says that all before it is answered."""

    in_flight = 1

    def __init__(self, on_passed: Callable[[], None]) -> None:
        self.on_passed = on_passed


class Outbox:
    """The decisions of one commanding connection.

    Args:
        push: The type of a RESP3 push, to tell it from a reply.
        redirected: In a cluster: gets what the server has not done, because it does not serve the
            slot, or not now; and the line that it was in.
    """

    in_cluster = False
    is_stalled = False  # it always takes what comes
    subject = None  # it is sent nothing but answers

    histories: dict[str, History]
    """The histories of topics that publishers have given, so that all give the same."""

    def __init__(
        self,
        push: type[list[Any]],
        redirected: Callable[[Request | Append, Line, Redirect], None] | None = None,
    ) -> None:
        self.histories = {}
        self._push = push
        self._redirected = redirected
        self._lines: list[Line] = []
        self._replies: deque[Request | Batch | Call | _Own | _Fence] = deque()
        self._fences: list[_Fence] = []  # to be sent
        self._pings = 0
        self._loaded: set[bytes] = set()  # what the server of this session was told, by verb
        self._load_error: ErrorReply | None = None  # what it said to that
        self._writes = Writes()
        self._is_live = False
        self._closed_by: PubSubError | None = None

    @property
    def in_flight(self) -> int:
        """Commands that were sent and have no answer yet."""
        return sum(map(_count, self._replies))

    @property
    def waiting(self) -> int:
        """Commands that were not sent yet."""
        return sum(_count(request) for line in self._lines for request in line.waiting)

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

    def fence(self, on_passed: Callable[[], None]) -> None:
        """Call back when all that was sent until now is answered, or never will be."""
        if self._replies:
            self._fences.append(_Fence(on_passed))
        else:
            on_passed()

    def expire(self, now: float) -> float:
        """Give up what is overdue; return the earliest deadline that is left, or infinity."""
        earliest = math.inf
        for line in self._lines:
            waiting = line.waiting
            while waiting:
                request = waiting[0]
                promise, deadline, channel = look_at(request)
                if deadline > now and not promise.done():
                    earliest = min(earliest, deadline)
                    break
                waiting.popleft()
                if isinstance(request, Append) and request.was_sent:
                    fail(request, Unconfirmed(channel, "the connection was lost, " + self._why_not_sent()))
                else:
                    fail(request, NotSent(channel, self._why_not_sent()))
        for request in self._unanswered():
            promise, deadline, channel = look_at(request)
            if promise.done():
                continue
            if deadline > now:
                earliest = min(earliest, deadline)
            else:
                fail(request, Unconfirmed(channel, "the server did not answer in time"))
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
        self._loaded.clear()

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
            self._replies.append(_Own.PING)
            commands.append((b"PING",))
        self._pings = 0
        for fence in self._fences:
            self._replies.append(fence)
            commands.append((b"PING",))
        self._fences.clear()
        return commands

    def ping(self, on_answer: object = None) -> None:
        """Let the next `commands()` hold a PING. Its answer proves that the server lives, and that the
        answers before it were the right ones."""
        self._pings += 1

    def receive(self, backlog: deque[Any]) -> bool:  # noqa: PLR0912  # one loop, no call for each
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
                if reply.__class__ is not int:
                    if command[0] in _PUBLISHING:
                        error = _refusal(command, reply)
                    else:
                        self._writes.check(reply)
                replies.popleft()
                line.in_flight -= 1
                if reply.__class__ is ErrorReply and self._is_redirected(request, line, reply):
                    continue
                if promise.done():
                    continue  # the caller has given up
                if error is None:
                    promise.set_result(reply)
                else:
                    promise.set_exception(error)
            elif isinstance(request, Batch):
                answer: int | PubSubError = reply
                if reply.__class__ is not int:
                    answer = _refusal(request.commands[request.next_index], reply)
                request.line.in_flight -= 1
                if request.settle(request.next_index, answer):
                    replies.popleft()
            else:
                self._on_other(request, reply)
                replies.popleft()
        return False

    def end(self, reason: str = "closed") -> None:
        """The session has ended: what was sent and not answered stays unconfirmed."""
        self._is_live = False
        why = f"the connection was lost before the server answered: {reason}"
        for request in reversed(self._replies):
            if isinstance(request, Call):
                request.take_back()
            elif not isinstance(request, (_Own, _Fence)):
                fail(request, Unconfirmed(look_at(request)[2], why))
        for line in self._lines:
            line.in_flight = 0
        fences = [*(reply for reply in self._replies if isinstance(reply, _Fence)), *self._fences]
        self._replies.clear()
        self._fences.clear()
        self._pings = 0
        for fence in fences:
            fence.on_passed()

    # -- inside ------------------------------------------------------------------------------------

    def _unanswered(self) -> Iterator[Request | Batch | Append]:
        """What was sent and has no answer, of those who wait."""
        for request in self._replies:
            if isinstance(request, Call):
                yield from request.appends
            elif not isinstance(request, (_Own, _Fence)):
                yield request

    def _is_redirected(self, request: Request | Append, line: Line, reply: object) -> bool:
        """Whether an error says that the server has not done it, and somebody will see to it."""
        redirect = None if self._redirected is None else redirect_of(str(reply))
        if redirect is None or self._redirected is None:
            return False
        self._redirected(request, line, redirect)
        return True

    def _on_other(self, request: Call | _Own | _Fence, reply: object) -> None:
        """The answer to what is asked less often."""
        is_error = reply.__class__ is ErrorReply
        if isinstance(request, _Fence):
            request.on_passed()
        elif request is _Own.ASKING:
            if is_error:
                raise OutOfStep(f"ASKING was refused: {reply}")
        elif request is _Own.PING:
            if reply != _PONG and not is_error:  # an error: no permission, perhaps
                raise OutOfStep(f"the answer to a PING was due, not {type(reply).__name__}")
        elif request is _Own.LOAD:
            if reply not in SHAS.values() and not is_error:
                raise OutOfStep(f"the name of a script was due, not {type(reply).__name__}")
            self._load_error = reply if isinstance(reply, ErrorReply) else None
        elif is_error and str(reply).startswith("LOADING"):
            raise OutOfStep("the server is still loading its data")
        elif is_error and str(reply).startswith("NOSCRIPT"):
            if self._load_error is None:  # somebody has flushed it: begin again, so that order is kept
                raise OutOfStep("the server has lost the script that appends to histories")
            request.line.in_flight -= request.in_flight
            request.answer(self._load_error)
        else:
            self._writes.check(reply)
            request.line.in_flight -= request.in_flight
            line = request.line
            if not is_error or not all(self._is_redirected(it, line, reply) for it in request.appends):
                request.answer(reply)

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
                if line.is_asking:
                    replies.append(_Own.ASKING)
                    commands.append((b"ASKING",))
                commands.append(command)
                free -= 1
                left -= len(command[-1])
            elif request.promise.done():
                waiting.popleft()
                continue
            elif request.in_flight > free < line.max_in_flight:
                break
            elif isinstance(request, Append):
                call = Call(self._gather(request, waiting, free), line)
                verb = call.appends[0].verb
                if verb not in self._loaded:
                    self._loaded.add(verb)
                    replies.append(_Own.LOAD)
                    commands.append(LOADS[verb])
                if line.is_asking:
                    replies.append(_Own.ASKING)
                    commands.append((b"ASKING",))
                commands.append(call.command())
                replies.append(call)
                free -= call.in_flight
                left -= sum(append.bytes for append in call.appends)
                continue
            else:
                waiting.popleft()
                request.line = line
                commands += request.commands
                free -= request.in_flight
                left -= sum(len(command[-1]) for command in request.commands)
            replies.append(request)
        line.in_flight = line.max_in_flight - free
        return left

    @staticmethod
    def _gather(first: Append, waiting: deque[Request | Batch | Append], free: int) -> list[Append]:
        """The first append of a line, and those behind it that can go in the same call."""
        appends: list[Append] = []
        count, size = 0, 0
        while waiting and isinstance(append := waiting[0], Append):
            if not append.promise.done():  # else the caller has given up
                is_alike = _kind_of(append) == _kind_of(first)
                count += append.in_flight
                size += append.bytes
                if appends and (not is_alike or count > min(free, CALL_ENTRIES) or size > CALL_BYTES):
                    break
                appends.append(append)
            waiting.popleft()
        return appends

    def _why_not_sent(self) -> str:
        if self._is_live:
            return "too many publishes were in flight for the whole timeout"
        return "there was no connection for the whole timeout"


def _kind_of(append: Append) -> tuple[object, ...]:
    """Appends of one kind may go in one call."""
    return (append.channel, append.history, append.verb)


def _refusal(command: Command, reply: object) -> PublishRefused:
    """What answers a PUBLISH and is no number must be an error."""
    if reply.__class__ is not ErrorReply:
        raise OutOfStep(f"the answer to a PUBLISH was due, not {type(reply).__name__}")
    return PublishRefused(channel_of(command), str(reply))


def _count(request: Request | Batch | Append | Call | _Own | _Fence) -> int:
    """Commands of a request that wait, or messages of it."""
    return 1 if isinstance(request, (tuple, _Own)) else request.in_flight
