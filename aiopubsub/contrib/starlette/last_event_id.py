"""How an event stream and a browser that comes back to it understand each other.

A browser remembers the last `id:` that it was sent, and says it as `Last-Event-ID` when it connects again.
Ours is the text of the positions in all topics with history, with a space between; for one topic that is
`str(position)`. A stream that has none to tell says `live`, so that it knows who comes back from who is
new.

Lives here: making and reading that text. Must not live here: the web, subscribers. `event_stream` calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from aiopubsub.keys import mark_of
from aiopubsub.position import Position
from aiopubsub.topic import Subscribable

__all__ = ["LIVE", "Return", "id_of", "read_id"]

LIVE = "live"


@dataclass(frozen=True, slots=True)
class Return:
    """What a browser that comes back has and has not.

    Attributes:
        positions: Where it stood, by channel.
        lost: Channels and patterns of which it may have missed messages that cannot be told any more:
            those without history, and, if a part of what it says cannot be read, those without a position.
    """

    positions: Mapping[str, Position]
    lost: tuple[str, ...]


def id_of(positions: Iterable[Position]) -> str:
    """The text for a browser to keep."""
    return " ".join(map(str, positions)) or LIVE


def read_id(text: str, topics: Iterable[Subscribable[object]]) -> Return:
    """What a browser says that it was sent last. It may say anything; nothing is raised."""
    if not text:
        return Return({}, ())  # it is new
    topics = list(topics)
    channels = {mark_of(topic.key): topic.name for topic in topics if topic.history is not None}
    positions: dict[str, Position] = {}
    is_readable = True
    for word in text.split():
        try:
            position = Position.parse(word)
            positions[channels[position.mark]] = position
        except (ValueError, KeyError):
            is_readable = is_readable and word == LIVE
    lost = tuple(
        topic.name
        for topic in topics
        if topic.history is None or not (is_readable or topic.name in positions)
    )
    return Return(positions, lost)
