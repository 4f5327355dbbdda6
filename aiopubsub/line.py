"""What a publisher wants of the server, and the line in which it waits.

Lives here: the kinds of request, what each does with an answer or a failure, and lines. Must not live
here: when something is sent, whose answer it is (`outbox`). A publisher makes requests and adds them to
its line; the outbox takes them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from copy import copy
from typing import Any, TypeAlias

from .append import Append, pack, unpack
from .dialogue import Command, Promise
from .errors import ErrorReply, PublishRefused, PubSubError, Unconfirmed
from .keys import history_key

__all__ = ["Batch", "Call", "Line", "Request", "channel_of", "fail", "look_at"]

_KNOWN = 1024  # histories of which a publisher knows how far they reach; one more and it starts anew

Request: TypeAlias = "tuple[Promise, float, Command, Line]"
"""One command that is to have an answer: who gets it, when the caller gives up by the clock of
`expire`, the command, and the line it stands in. A plain tuple, because an object takes 0.2 µs more."""


class Batch:
    """Many commands with one promise: it is kept when the last answer is here.

    Args:
        promise: Gets `None`, whatever the answers are.
        deadline: As of a `Request`.
        commands: What is sent, at once, in order.

    Attributes:
        line: That it was sent from.
        answers: What became of each command: the receivers, or an error; `None` until it is known.
    """

    __slots__ = ("_left", "answers", "commands", "deadline", "line", "promise")

    line: Line

    def __init__(self, promise: Promise, deadline: float, commands: list[Command]) -> None:
        self.promise: Promise = promise
        self.deadline: float = deadline
        self.commands: list[Command] = commands
        self.answers: list[int | PubSubError | None] = [None] * len(commands)
        self._left = len(commands)

    @property
    def size(self) -> int:
        """Commands in all."""
        return len(self.commands)

    @property
    def in_flight(self) -> int:
        """Commands without an answer, once it was sent."""
        return self._left

    @property
    def next_index(self) -> int:
        """Of the first command without an answer, if they come in order."""
        return len(self.commands) - self._left

    def settle(self, index: int, answer: int | PubSubError) -> bool:
        """One answer is known; whether it was the last."""
        if self.answers[index] is None:  # else it is too late
            self.answers[index] = answer
        self._left -= 1
        if self._left:
            return False
        if not self.promise.done():
            self.promise.set_result(None)
        return True

    def fail(self, error: PubSubError) -> None:
        """Nobody waits for more answers."""
        self.answers = [error if answer is None else answer for answer in self.answers]
        self.promise.set_result(None)

    def parts(self) -> Iterator[tuple[Command, Promise]]:
        """Each command with a promise of its own, to be sent each on its way."""
        return ((command, _Part(self, index)) for index, command in enumerate(self.commands))

    def failures(self) -> dict[int, PubSubError]:
        """What went wrong, by the index of the command."""
        answers = enumerate(self.answers)
        return {index: answer for index, answer in answers if isinstance(answer, PubSubError)}


class _Part:
    """The promise of one command of a batch."""

    __slots__ = ("_batch", "_index")

    def __init__(self, batch: Batch, index: int) -> None:
        self._batch = batch
        self._index = index

    def done(self) -> bool:
        return self._batch.promise.done()

    def set_result(self, result: Any, /) -> None:
        self._batch.settle(self._index, result)

    def set_exception(self, exception: PubSubError, /) -> None:
        self._batch.settle(self._index, exception)


class Call:
    """Appends of one line to one history that are sent as one command."""

    __slots__ = ("appends", "in_flight", "key", "line")

    def __init__(self, appends: list[Append], line: Line) -> None:
        self.appends: list[Append] = appends
        self.line: Line = line
        self.key: bytes = history_key(appends[0].channel)
        self.in_flight: int = sum(append.in_flight for append in appends)

    def command(self) -> Command:
        """What to send."""
        return pack(self.key, self.appends, self.line.known.get(self.key))

    def answer(self, reply: object) -> None:
        """Tell those who wait.

        Raises:
            OutOfStep: It cannot be the answer to this call.
        """
        if isinstance(reply, ErrorReply):
            for append in self.appends:
                fail(append, PublishRefused(append.channel.decode(), str(reply)))
            return
        results = unpack(reply, self.in_flight)
        self.line.know(self.key, results[-1][0])
        for append in self.appends:
            count = append.in_flight
            append.results, results = results[:count], results[count:]
            if not append.promise.done():
                append.promise.set_result(None)

    def take_back(self) -> None:
        """Let those who still wait stand at the head of the line again: a message has a name, so it is
        stored once however often it is sent. From a line that was closed meanwhile nothing is sent."""
        for append in reversed(self.appends):
            append.was_sent = True
            if self.line.closed_by is not None:
                fail(
                    append, Unconfirmed(append.channel.decode(), "it was closed before the server answered")
                )
            elif not append.promise.done():
                self.line.waiting.appendleft(append)


class Line:
    """The requests of one publisher, in their order.

    Attributes:
        max_in_flight: Commands that may be without an answer at a time.
        in_flight: Those that are.
        waiting: Requests that are to be sent.
        known: The last id that its publisher knows to be stored, by key; of `_KNOWN` histories.
        closed_by: Why it takes no more, or `None`.
        is_asking: In a cluster: whether the node is only about to get the slots (ASK).
    """

    __slots__ = ("closed_by", "in_flight", "is_asking", "known", "max_in_flight", "waiting")

    def __init__(self, max_in_flight: int) -> None:
        self.max_in_flight: int = max_in_flight
        self.in_flight: int = 0
        self.waiting: deque[Request | Batch | Append] = deque()
        self.known: dict[bytes, bytes] = {}
        self.closed_by: PubSubError | None = None
        self.is_asking: bool = False

    def add(self, request: Request | Batch | Append) -> bool:
        """Put a request at the end; whether nothing stood before it, so that somebody must be told.

        Raises:
            PubSubError: The line is closed; why.
        """
        if self.closed_by is not None:
            raise copy(self.closed_by)
        waiting = self.waiting
        waiting.append(request)
        return len(waiting) == 1

    def is_waiting(self, key: bytes) -> bool:
        """Whether what is added now, about this key, has to wait."""
        return bool(self.waiting)

    def close(self, error: PubSubError) -> None:
        """Tell what still waits, and take no more."""
        self.closed_by = error
        while self.waiting:
            request = self.waiting.popleft()
            if isinstance(request, Append) and request.was_sent:
                reason = "it was closed before the server answered"
                fail(request, Unconfirmed(request.channel.decode(), reason))
            else:
                fail(request, copy(error))  # each raise grows its own traceback

    def know(self, key: bytes, last: bytes) -> None:
        """So far a history is known to reach."""
        if len(self.known) >= _KNOWN:
            self.known.clear()
        self.known[key] = last


def channel_of(command: Command) -> str:
    """The channel that a command is about, for errors."""
    return command[1].decode() if len(command) > 1 else ""


def look_at(request: Request | Batch | Append) -> tuple[Promise, float, str]:
    """The promise, the deadline, and the channel of the first command without an answer."""
    if isinstance(request, Append):
        return request.promise, request.deadline, request.channel.decode()
    if isinstance(request, Batch):
        return request.promise, request.deadline, channel_of(request.commands[request.next_index])
    promise, deadline, command, _ = request
    return promise, deadline, channel_of(command)


def fail(request: Request | Batch | Append, error: PubSubError) -> None:
    """Tell why there will be no answer, unless the caller has given up."""
    if isinstance(request, tuple):
        if not request[0].done():
            request[0].set_exception(error)
    elif not request.promise.done():
        request.fail(error)
