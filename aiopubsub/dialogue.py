"""What a session needs of the two sides that can speak over it: the router and the outbox.

Lives here: the small protocol between decisions (layer 1) and connections (layer 3 and up), and the
words that both use. Must not live here: anything that runs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

from .errors import PubSubError

__all__ = ["PUBLISH", "SPUBLISH", "Command", "Dialogue", "OutOfStep", "Promise"]

PUBLISH = b"PUBLISH"
SPUBLISH = b"SPUBLISH"
"""The commands that are sent most; the second one within a shard of a cluster. Wires look for them, and
send them faster."""

Command: TypeAlias = tuple[bytes, ...]
"""A command and its arguments, as the server is to get them."""


class OutOfStep(Exception):
    """The server said something that cannot be an answer to what it was asked."""


class Promise(Protocol):
    """Where an answer goes; an `asyncio.Future` is one."""

    def done(self) -> bool: ...
    def set_result(self, result: Any, /) -> None: ...
    def set_exception(self, exception: PubSubError, /) -> None: ...


class Dialogue(Protocol):
    """One side of a standing connection: it outlives sessions and decides what is said in each."""

    @property
    def is_stalled(self) -> bool:
        """Whether the consumer of the last `receive` has no room for more."""
        ...

    @property
    def subject(self) -> str | None:
        """What is listened to, for people, empty if nothing is; `None` on a side that is sent nothing but
        answers, and so cannot fall behind the server."""
        ...

    def begin(self) -> None:
        """A session begins; the server knows nothing of us."""
        ...

    def commands(self) -> list[Command]:
        """What to send now, in order; asked again until it is empty."""
        ...

    def receive(self, backlog: deque[Any]) -> bool:
        """Take replies and pushes from the left and deal with them, for as long as is decent.

        Returns whether there is more to do: call again in the next turn of the event loop.
        """
        ...

    def ping(self, on_answer: Callable[[], None] = ...) -> None:
        """Let the next `commands()` hold a PING.

        A side with a `subject` calls back when it is answered, or never will be.
        """
        ...

    def expire(self, now: float) -> float:
        """Give up what is overdue; return the earliest deadline that is left, or infinity."""
        ...

    def end(self, reason: str) -> None:
        """The session has ended; why."""
        ...

    def close(self, error: PubSubError) -> None:
        """There will be no other session."""
        ...
