"""What a subscriber is handed and a publisher gets back.

Lives here: `Message`, `Gap`, `Undecodable`, `Receipt`. Must not live here: buffers, decisions, I/O.
Anybody may import this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Generic, TypeVar, cast

from .frame import Place, is_id, is_uid
from .keys import mark_of
from .position import Position
from .topic import Subscribable

__all__ = ["Gap", "GapReason", "KeptMessage", "Message", "Origin", "Receipt", "Undecodable", "position_at"]

T_co = TypeVar("T_co", covariant=True)


class Origin:
    """Where messages come from; all messages of one channel and topic share one.

    Attributes:
        channel: Its name.
        topic: As what its messages are wanted.
        is_bare: Whether they are handed over as they are: there is no codec.
    """

    __slots__ = ("channel", "is_bare", "topic")

    def __init__(self, channel: str, topic: Subscribable[object]) -> None:
        self.channel: str = channel
        self.topic: Subscribable[object] = topic
        self.is_bare: bool = topic.decode is None


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
    def position(self) -> Position | None:
        """Where it stands in its topic's history; `None` if it has none. Fit to be saved for `since`."""
        return None

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


@dataclass(slots=True, repr=False)
class KeptMessage(Message[T_co]):
    """A message that its topic's history keeps.

    Attributes:
        place: Where it stands, as it came.
    """

    place: Place

    @property
    def id(self) -> bytes:
        """Of its entry in the stream."""
        return self.place.split(b" ")[1]

    @property
    def uid(self) -> bytes:
        """Its own name."""
        return self.place.split(b" ")[2]

    @property
    def after(self) -> bytes:
        """The uid of the message in front of it."""
        return self.place.split(b" ")[3]

    @property
    def is_sound(self) -> bool:
        """Whether a message can stand where its header says."""
        return is_id(self.id) and is_uid(self.uid) and is_uid(self.after) and self.uid != b"-"

    @property
    def position(self) -> Position | None:
        return position_at(self.id, self.uid, self._origin.channel) if self.is_sound else None

    @property
    def position_before(self) -> Position | None:
        """In front of it: whoever begins there gets it first."""
        if not self.is_sound:
            return None
        epoch, _, offset = self.id.partition(b"-")
        return position_at(b"%b-%d" % (epoch, int(offset) - 1), self.after, self._origin.channel)


def position_at(name: bytes, uid: bytes, channel: str) -> Position:
    """The position of the entry with this id and uid in the history of a channel."""
    epoch, _, offset = name.partition(b"-")
    mark = mark_of(channel.encode("utf-8", "surrogateescape"))
    return Position(int(epoch), int(offset), mark, uid.decode())


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

    MOVED = "moved"
    """In a cluster: the channel's slot went to another node; what was published until the channel was
    subscribed there is not known."""

    ROLLED_BACK = "rolled_back"
    """The server has forgotten messages that were handed over, for example in a failover."""


@dataclass(frozen=True, slots=True)
class Gap:
    """A stretch of messages that this subscriber did not get, at its place among the others.

    A `RECONNECTED` or `MOVED` gap is handed over when its channels are subscribed again, so that state
    fetched on seeing it has no hole after it.

    Attributes:
        reason: Why.
        channels: The channels and patterns that were subscribed to and are concerned.
        missed: How many messages; `None` where it cannot be known.
        started: When the first of them was missed, or the connection was lost; UTC.
        ended: When the last of them was missed, or the channels were subscribed again; UTC.
        withdrawn: How many of the last messages of this topic the server has since forgotten, after
            they had been handed over; `None` where it cannot be known.
        before: The position of the last message in front of it that the history still has, on a topic
            with history: the fork, if it was rolled back.
        after: The position of the next message, on a topic with history, if there is one.
        cause: What happened, for people; of `RECONNECTED` and `MOVED` only, else empty.
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
    _stood: Position | None = field(default=None, repr=False, compare=False)  # where it was found


@dataclass(frozen=True, slots=True, repr=False)
class Undecodable:
    """A message whose `decode` raised. `events()` yields it; the plain iterator logs and counts it.

    Attributes:
        channel: The channel that it was published to.
        payload: The bytes that were published.
        error: What `decode` raised.
        topic: What matched.
        position: Where it stands in its topic's history; `None` if it has none.
    """

    channel: str
    payload: bytes
    error: Exception
    topic: Subscribable[object]
    position: Position | None = None

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
