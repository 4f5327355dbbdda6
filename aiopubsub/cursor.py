"""A durable cursor: what a named subscriber is done with, kept on the server.

A message is done when the task that got it asks for the next one. The server has confirmed that before
the next message is handed over, so a process that is killed repeats what it was at, and nothing else.
(To send it would not do: a socket that a killed process leaves with unread bytes is reset, and the
server drops what it has not read yet.) While there is no connection nobody waits; the last position of
each topic goes out when there is one.

Lives here: what is done, loading and saving. Must not live here: iterating. A subscriber with a name
owns one.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from .deployment import Commanding
from .dialogue import Command
from .errors import ConnectFailed, CursorFailed, ErrorReply, PubSubError
from .keys import cursor_key
from .message import KeptMessage
from .position import Position

__all__ = ["Cursor"]

_MAX_IN_FLIGHT = 1000  # positions without an answer: one for each task, at most
_MAX_TASKS = 10_000  # that can be at a message at a time


class _Handed(NamedTuple):
    """A message that a task is at, and where its topic stood before it."""

    channel: str
    before: Position | None


class _Save:
    """A position on its way to the server; the promise of the request that carries it."""

    def __init__(
        self, channel: str, position: Position, on_answer: Callable[[_Save, object], None]
    ) -> None:
        self.channel = channel
        self.position = position
        self.settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._on_answer = on_answer

    def done(self) -> bool:
        return False  # nobody gives it up

    def set_result(self, result: Any, /) -> None:
        self._on_answer(self, result)

    def set_exception(self, exception: PubSubError, /) -> None:
        self._on_answer(self, exception)


class Cursor:
    """The cursor of one subscriber, for all of its topics with history.

    Args:
        name: Under which it is kept.
        link: To the server.
        on_error: Told when the server refuses to keep a position.
    """

    def __init__(self, name: str, link: Commanding, on_error: Callable[[PubSubError], None]) -> None:
        self._name = name
        self._link = link
        self._on_error = on_error
        self._line = link.dialogue.open_line(_MAX_IN_FLIGHT)
        self._handed: dict[asyncio.Task[Any] | None, _Handed] = {}
        self._stands: dict[str, Position | None] = {}  # after the last message handed over
        self._later: dict[str, Position] = {}  # to be sent when the line is free
        self._sent: dict[str, _Save] = {}  # the last one of each topic
        self._loop = asyncio.get_running_loop()

    async def load(self, channel: bytes, timeout: float | None) -> Position | None:
        """The position that was saved last, if one was.

        Raises:
            ConnectFailed: There was no answer in time.
            CursorFailed: The server refused, or something else is kept there.
        """
        answer: asyncio.Future[Any] = self._loop.create_future()
        command: Command = (b"GET", cursor_key(channel, self._name))
        deadline = math.inf if timeout is None else self._loop.time() + timeout
        self._line.add((answer, deadline, command, self._line))
        self._link.open()
        self._link.kick(deadline)
        try:
            text = await answer
        except (PubSubError, OSError) as error:
            raise ConnectFailed(
                "the server", f"the cursor {self._name!r} was not loaded: {error}"
            ) from error
        if text is None:
            return None
        try:
            if isinstance(text, ErrorReply):
                raise ValueError(str(text))  # noqa: TRY004  # the server's word, as the next line's is
            position = Position.parse(text.decode())
        except ValueError as error:
            raise CursorFailed(self._name, channel.decode(), str(error)) from error
        self._stands[channel.decode()] = position
        return position

    async def finish(self) -> None:
        """The task that calls asks for more: what it was at is done.

        Waits until the server has confirmed that, or the connection is lost. Cancelling it leaves it
        done.
        """
        handed = self._handed.pop(asyncio.current_task(), None)
        if handed is None:
            return
        channel = handed.channel
        open_ones = (other.before for other in self._handed.values() if other.channel == channel)
        position = next(open_ones, self._stands.get(channel))
        if position is not None:
            await self._save(channel, position)

    async def begin(self, channel: str, position: Position) -> None:
        """The subscriber begins here, unless it went on from somewhere: kept as if all before it were
        done, so that a process that ends before its first message comes back to it."""
        if channel not in self._stands:
            self._stands[channel] = position
            await self._save(channel, position)

    async def _save(self, channel: str, position: Position) -> None:
        self._later.pop(channel, None)
        key = channel.encode()
        if self._line.is_waiting(key):  # there is no connection
            self._later[channel] = position
        else:
            save = self._send(channel, position)
            if self._link.is_live(key):
                await save.settled

    def hand_over(self, message: KeptMessage[Any]) -> None:
        """The task that calls gets a message."""
        channel = message.channel
        if len(self._handed) < _MAX_TASKS:
            self._handed[asyncio.current_task()] = _Handed(channel, self._stands.get(channel))
        self._stands[channel] = message.position

    async def aclose(self) -> None:
        """Wait until what was saved is confirmed; the caller sets a limit. Nothing more is saved then."""
        try:
            while self._line.waiting or self._line.in_flight or self._later:
                answer: asyncio.Future[Any] = self._loop.create_future()
                self._line.add((answer, self._loop.time() + 1, (b"PING",), self._line))
                self._link.kick()
                await answer
        except PubSubError:
            pass  # there is no connection: what is not saved will be repeated
        finally:
            self._link.dialogue.close_line(self._line, PubSubError("the cursor is closed"))

    def _send(self, channel: str, position: Position) -> _Save:
        save = self._sent[channel] = _Save(channel, position, self._on_answer)
        command: Command = (b"SET", cursor_key(channel.encode(), self._name), str(position).encode())
        self._line.add((save, math.inf, command, self._line))
        self._link.kick()
        return save

    def _on_answer(self, save: _Save, answer: object) -> None:
        if isinstance(answer, ErrorReply):
            self._on_error(CursorFailed(self._name, save.channel, str(answer)))
        elif isinstance(answer, PubSubError) and self._sent[save.channel] is save:
            # the connection took the answer with it; an older save must not come after a newer one
            self._later.setdefault(save.channel, save.position)
        if not save.settled.done():
            save.settled.set_result(None)
        for channel in list(self._later):
            if not self._line.is_waiting(channel.encode()) and self._line.closed_by is None:
                self._send(channel, self._later.pop(channel))
