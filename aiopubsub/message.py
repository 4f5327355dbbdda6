"""What a subscriber is handed and a publisher gets back.

Lives here: `Message`, `Gap`, `Undecodable`, `Receipt`. Must not live here: buffers, decisions, I/O.
Anybody may import this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Generic, TypeVar

from .topic import Subscribable

__all__ = ["Gap", "GapReason", "Message", "Receipt", "Undecodable"]

T_co = TypeVar("T_co", covariant=True)


@dataclass(slots=True, repr=False)
class Message(Generic[T_co]):
    """One message, as handed over to one subscriber. Treat it as read-only: others may share it.

    It is not frozen because a frozen dataclass takes three times as long to make.

    Attributes:
        channel: The channel that it was published to.
        data: What `decode` made of the payload; the payload itself on a topic of bytes.
        payload: The bytes that were published.
        topic: What matched: the `Topic` or the `Pattern` that was subscribed to.
        headers: What the publisher gave as `headers`, or an empty mapping.
    """

    channel: str
    data: T_co
    payload: bytes
    topic: Subscribable[T_co]
    headers: Mapping[str, str]

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
    """

    reason: GapReason
    channels: tuple[str, ...]
    missed: int | None
    started: datetime
    ended: datetime


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


@dataclass(slots=True)
class Receipt:
    """The server's answer to a publish.

    Attributes:
        receivers: Connections that the server handed the message to. A process with many subscribers
            on one client counts once; in a cluster only the node that was asked counts.
    """

    receivers: int
