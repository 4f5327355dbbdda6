"""What a subscriber is handed and a publisher gets back.

Lives here: `Message`, `Gap`, `Undecodable`, `Receipt`. Must not live here: buffers, decisions, I/O.
Anybody may import this file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Generic, TypeVar, cast

from .position import Position
from .topic import Subscribable

__all__ = ["Gap", "GapReason", "Message", "Origin", "Receipt", "Undecodable"]

T_co = TypeVar("T_co", covariant=True)


@dataclass(slots=True)
class Origin:
    """Where messages come from; all messages of one channel and topic share one."""

    channel: str
    topic: Subscribable[object]
    decode: Callable[[bytes], object] | None


@dataclass(slots=True, repr=False)
class Message(Generic[T_co]):
    """One message, as handed over to one subscriber. Treat it as read-only: others may share it.

    It is not frozen because a frozen dataclass takes three times as long to make, and holds its
    origin as one because each field more takes 0.02 µs.

    Attributes:
        data: What `decode` made of the payload; the payload itself on a topic of bytes.
        payload: The bytes that were published.
        headers: What the publisher gave as `headers`, or an empty mapping.
    """

    data: T_co
    payload: bytes
    _origin: Origin
    headers: Mapping[str, str]

    @property
    def channel(self) -> str:
        """The channel that it was published to."""
        return self._origin.channel

    @property
    def topic(self) -> Subscribable[T_co]:
        """What matched: the `Topic` or the `Pattern` that was subscribed to."""
        return cast("Subscribable[T_co]", self._origin.topic)

    @property
    def text(self) -> str:
        """The payload as text. Bytes that are not UTF-8 show as U+FFFD; `Topic.text` reports them."""
        return self.payload.decode("utf-8", "replace")

    def __repr__(self) -> str:
        return f"<Message on {self.channel!r}, {len(self.payload)} bytes>"


class GapReason(Enum):
    """Why messages are missing."""

    RECONNECTED = "reconnected"
    """The connection was lost; what was published until it was back is not known."""

    OVERFLOW = "overflow"
    """The subscriber's buffer was full; the number of messages dropped is exact."""

    TRIMMED = "trimmed"
    """The history does not reach back to where the subscriber stood; the number missed is exact."""

    RESET = "reset"
    """The history that the subscriber followed is gone, and another one has begun."""

    ROLLED_BACK = "rolled_back"
    """The server has forgotten messages that were handed over, for example in a failover."""


@dataclass(frozen=True, slots=True)
class Gap:
    """A stretch of messages that this subscriber did not get, at its place among the others.

    A `RECONNECTED` gap is handed over when its channels are subscribed again, so that state fetched
    on seeing it has no hole after it.

    Attributes:
        reason: Why.
        channels: The channels and patterns that were subscribed to and are concerned.
        missed: How many messages; `None` where it cannot be known.
        started: When the first of them was missed, or the connection was lost; UTC.
        ended: When the last of them was missed, or the channels were subscribed again; UTC.
        withdrawn: How many of the last messages of this topic the server has since forgotten, after
            they had been handed over; `None` where it cannot be known.
        before: The position of the last message in front of it, on a topic with history.
        after: The position of the next message, on a topic with history, if there is one.
        cause: How the connection was lost, for people; of `RECONNECTED` only, else empty.
    """

    reason: GapReason
    channels: tuple[str, ...]
    missed: int | None
    started: datetime
    ended: datetime
    withdrawn: int | None = 0
    before: Position | None = None
    after: Position | None = None
    cause: str = ""


@dataclass(frozen=True, slots=True, repr=False)
class Undecodable:
    """A message whose `decode` raised. `events()` yields it; the plain iterator logs and counts it.

    Attributes:
        channel: The channel that it was published to.
        payload: The bytes that were published.
        error: What `decode` raised.
        topic: What matched.
    """

    channel: str
    payload: bytes
    error: Exception
    topic: Subscribable[object]

    def __repr__(self) -> str:  # the repr of an error may hold what it is about
        return f"<Undecodable on {self.channel!r}, {len(self.payload)} bytes: {type(self.error).__name__}>"


@dataclass(frozen=True, slots=True)
class Receipt:
    """The server's answer to a publish.

    Attributes:
        receivers: Connections that the server handed the message to. A process with many subscribers
            on one client counts once; in a cluster only the node that was asked counts.
        position: Where it stands in the topic's history; `None` on a topic without one.
        duplicate: Whether an earlier try had arrived after all, so that this one changed nothing;
            `receivers` is 0 then. Only on topics with history.
    """

    receivers: int
    position: Position | None = None
    duplicate: bool = False
