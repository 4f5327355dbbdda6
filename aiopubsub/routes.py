"""What subscribers want, one channel or pattern at a time, and who waits for it.

Lives here: `Target`, a channel or pattern as the server knows it; `Route`, the mailboxes that want it;
`Ticket`, what a caller waits for. Must not live here: what is said to the server. The router calls; a
subscriber makes tickets.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import NamedTuple

from .errors import PubSubError
from .mailbox import Mailbox
from .message import KeptMessage, Message, Origin
from .topic import Pattern, Subscribable
from .trail import Trail

__all__ = ["Group", "Kind", "Route", "Target", "Ticket"]

_ORIGINS = 1024  # remembered for a pattern: to make one takes a third of receiving a message


class Kind(Enum):
    """How a channel is subscribed to: the two commands for it."""

    # Enum's own is written in Python: six times the time of a look-up
    __hash__: Callable[..., int] = object.__hash__

    CHANNEL = (b"SUBSCRIBE", b"UNSUBSCRIBE")
    PATTERN = (b"PSUBSCRIBE", b"PUNSUBSCRIBE")
    SHARD = (b"SSUBSCRIBE", b"SUNSUBSCRIBE")


class Target(NamedTuple):
    """A channel or a pattern, as the server knows it."""

    kind: Kind
    key: bytes

    @classmethod
    def of(cls, topic: Subscribable[object], *, in_cluster: bool = False) -> Target:
        """The target of a topic or a pattern."""
        if isinstance(topic, Pattern):
            return cls(Kind.PATTERN, topic.key)
        return cls(Kind.SHARD if in_cluster and topic.sharded else Kind.CHANNEL, topic.key)


class Ticket:
    """What one caller waits for: until every target of it is settled.

    Args:
        on_done: Called once, when it is; without one nobody waits.

    Attributes:
        refused: The server's reason for each channel or pattern that it refused.
        error: Why nothing will ever settle, or `None`.
        is_done: Whether nothing is left to wait for.
    """

    __slots__ = ("_on_done", "_remaining", "error", "is_done", "refused")

    def __init__(self, on_done: Callable[[], None] | None = None) -> None:
        self._on_done = on_done
        self._remaining = 0
        self.refused: dict[str, str] = {}
        self.error: PubSubError | None = None
        self.is_done: bool = False

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
            if self._on_done is not None:
                self._on_done()


class Group:
    """The mailboxes of one target that want its messages as the same topic: they share one object.

    Attributes:
        topic: As what they want them.
        mailboxes: Who they are, in the order of subscribing; with their trails if it has a history.
        origin: Of its messages; that of a pattern has no channel.
    """

    __slots__ = ("_origins", "mailboxes", "origin", "topic")

    def __init__(self, topic: Subscribable[object], channel: str) -> None:
        self.topic: Subscribable[object] = topic
        self.mailboxes: dict[Mailbox, Trail | None] = {}
        self.origin: Origin = Origin(channel, topic)
        self._origins: dict[bytes, Origin] = {}  # of a pattern, by channel

    def origin_in(self, key: bytes) -> Origin:
        """The origin of a pattern's message in this channel."""
        origin = self._origins.get(key)
        if origin is None:
            if len(self._origins) >= _ORIGINS:
                self._origins.clear()
            channel = key.decode("utf-8", "surrogateescape")
            origin = self._origins[key] = Origin(channel, self.topic)
        return origin

    def own(self, message: Message[object]) -> Message[object]:
        """A message of another group of the same target, as one of this group."""
        origin = self.origin
        if not origin.channel:
            origin = self.origin_in(message.channel.encode("utf-8", "surrogateescape"))
        payload, headers = message.payload, message.headers
        if isinstance(message, KeptMessage):
            return KeptMessage(payload, payload, origin, headers, message.place)
        return Message(payload, payload, origin, headers)


class Route:
    """The wish for one target: which mailboxes want it, grouped by topic.

    Attributes:
        target: What the server knows it as.
        name: The channel or pattern.
        groups: The mailboxes by topic.
        first: One of the groups.
        origin: Of the first group's messages; here too, because with 100 000 channels each object
            that is looked at takes 0.1 µs to fetch from memory.
        only: The mailbox, while there is but one, without a trail; so most routes need no loops.
    """

    __slots__ = ("_channel", "first", "groups", "name", "only", "origin", "target")

    def __init__(self, target: Target, name: str) -> None:
        self.target: Target = target
        self.name: str = name
        self.groups: dict[Subscribable[object], Group] = {}
        self.first: Group
        self.origin: Origin
        self.only: Mailbox | None = None
        self._channel = "" if target.kind is Kind.PATTERN else name

    def add(self, topic: Subscribable[object], mailbox: Mailbox, trail: Trail | None) -> None:
        """Let a mailbox have its messages as this topic, along a trail if that has a history."""
        group = self.groups.get(topic)
        if group is None:
            group = self.groups[topic] = Group(topic, self._channel)
        group.mailboxes[mailbox] = trail
        self._choose()

    def discard(self, mailbox: Mailbox) -> None:
        """Let a mailbox have them no more."""
        for topic, group in list(self.groups.items()):
            group.mailboxes.pop(mailbox, None)
            if not group.mailboxes:
                del self.groups[topic]
        self._choose()

    def holds(self, topic: Subscribable[object], mailbox: Mailbox) -> bool:
        """Whether a mailbox has its messages as this topic."""
        return topic in self.groups and mailbox in self.groups[topic].mailboxes

    def mailboxes(self) -> Iterable[Mailbox]:
        """Who wants it."""
        if self.only is not None:
            return (self.only,)
        return itertools.chain.from_iterable(group.mailboxes for group in self.groups.values())

    def live_mailboxes(self) -> Iterable[Mailbox]:
        """Those of them that have nothing but pushes."""
        if self.only is not None:
            return (self.only,)
        pairs = itertools.chain.from_iterable(group.mailboxes.items() for group in self.groups.values())
        return [mailbox for mailbox, trail in pairs if trail is None]

    def count_malformed(self) -> None:
        """A message looked like a frame and is none."""
        for mailbox in self.mailboxes():
            mailbox.malformed += 1

    def trails(self) -> Iterator[Trail]:
        """The trails of those who want its history."""
        for group in self.groups.values():
            yield from (trail for trail in group.mailboxes.values() if trail is not None)

    def _choose(self) -> None:
        self.only = None
        if self.groups:
            self.first = next(iter(self.groups.values()))
            self.origin = self.first.origin
            if len(self.groups) == len(self.first.mailboxes) == 1 and not self.first.topic.history:
                self.only = next(iter(self.first.mailboxes))
