"""What subscribers want, one channel or pattern at a time, and who waits for it.

Lives here: `Target`, a channel or pattern as the server knows it; `Route`, the mailboxes that want it;
`Ticket`, what a caller waits for. Must not live here: what is said to the server. The router calls; a
subscriber makes tickets.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from enum import Enum
from typing import NamedTuple

from .errors import PubSubError
from .mailbox import Mailbox
from .topic import Pattern, Subscribable

__all__ = ["Kind", "Route", "Target", "Ticket"]


class Kind(Enum):
    """How a channel is subscribed to: the two commands for it."""

    CHANNEL = (b"SUBSCRIBE", b"UNSUBSCRIBE")
    PATTERN = (b"PSUBSCRIBE", b"PUNSUBSCRIBE")


class Target(NamedTuple):
    """A channel or a pattern, as the server knows it."""

    kind: Kind
    key: bytes

    @classmethod
    def of(cls, topic: Subscribable[object]) -> Target:
        """The target of a topic or a pattern."""
        return cls(Kind.PATTERN if isinstance(topic, Pattern) else Kind.CHANNEL, topic.key)


class Ticket:
    """What one caller waits for: until every target of it is settled.

    Attributes:
        refused: The server's reason for each channel or pattern that it refused.
        error: Why nothing will ever settle, or `None`.
        is_done: Whether nothing is left to wait for.
    """

    __slots__ = ("_on_done", "_remaining", "error", "is_done", "refused")

    def __init__(self, on_done: Callable[[], None]) -> None:
        self._on_done = on_done
        self._remaining = 0
        self.refused: dict[str, str] = {}
        self.error: PubSubError | None = None
        self.is_done = False

    def hold(self) -> None:
        """One thing more to wait for."""
        self._remaining += 1

    def release(self) -> None:
        """One thing less."""
        self._remaining -= 1
        self.check()

    def check(self) -> None:
        """Done, if nothing is left."""
        if not self._remaining and not self.is_done:
            self.is_done = True
            self._on_done()


class Route:
    """The wish for one target: which mailboxes want it, grouped by topic.

    Mailboxes whose topics are equal share one message object.

    Attributes:
        name: The channel or pattern.
        groups: The mailboxes by topic.
        fan_out: How many there are.
        channel: The channel of its messages; empty for a pattern, whose pushes tell it.
        only: The topic and the mailbox, while there is but one; so most routes need no loops.
    """

    __slots__ = ("channel", "fan_out", "groups", "name", "only")

    def __init__(self, target: Target, name: str) -> None:
        self.name = name
        self.channel = name if target.kind is Kind.CHANNEL else ""
        self.groups: dict[Subscribable[object], dict[Mailbox, None]] = {}
        self.fan_out = 0
        self.only: tuple[Subscribable[object], Mailbox] | None = None

    def add(self, topic: Subscribable[object], mailbox: Mailbox) -> None:
        """Let a mailbox have its messages as this topic."""
        self.groups.setdefault(topic, {})[mailbox] = None
        self._count()

    def discard(self, mailbox: Mailbox) -> None:
        """Let a mailbox have them no more."""
        for topic, group in list(self.groups.items()):
            group.pop(mailbox, None)
            if not group:
                del self.groups[topic]
        self._count()

    def mailboxes(self) -> Iterator[Mailbox]:
        """Who wants it."""
        return itertools.chain.from_iterable(self.groups.values())

    def _count(self) -> None:
        self.fan_out = sum(map(len, self.groups.values()))
        self.only = None
        if self.fan_out == 1:
            topic, group = next(iter(self.groups.items()))
            self.only = (topic, next(iter(group)))
