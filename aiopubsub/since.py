"""Where a subscriber begins in the histories of its topics: what users may say, and what it means.

Lives here: reading and checking `since`, before anything is sent. Must not live here: following a
history (the trail). A subscriber calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, TypeAlias

from .keys import mark_of
from .position import Position
from .topic import Subscribable

__all__ = ["BEGINNING", "Since", "SinceLike", "start_of_each"]

BEGINNING: Literal["beginning"] = "beginning"

Since: TypeAlias = Position | Literal["beginning"] | None
"""Where to begin in one history: after a position, with the first message that is kept, or now."""

SinceLike: TypeAlias = Position | str | Mapping[str, Position | str | None] | None
"""The same as users say it: also a position's text, also for each channel."""


def start_of_each(since: SinceLike, topics: Iterable[Subscribable[object]]) -> dict[str, Since]:
    """Where to begin in each topic that has a history, by channel.

    Raises:
        ValueError: A topic has no history to begin in; a position is unreadable, or another topic's;
            a channel is not among the topics.
        TypeError: It is none of what `since` may be.
    """
    kept = {topic.name: topic for topic in topics if topic.history is not None}
    if since is None:
        return dict.fromkeys(kept)
    if isinstance(since, Mapping):
        for channel in since:
            _check_kept(channel, kept)
        return {name: _start(since.get(name), topic) for name, topic in kept.items()}
    for topic in topics:
        _check_kept(topic.name, kept)
    return {name: _start(since, topic) for name, topic in kept.items()}


def _check_kept(channel: str, kept: Mapping[str, object]) -> None:
    if channel not in kept:
        raise ValueError(
            f"since: {channel!r} is not a topic with history here; give the Topic a `history`, or say "
            "`since` for the others alone, as {channel: position}"
        )


def _start(since: Position | str | None, topic: Subscribable[object]) -> Since:
    if since is None or since == BEGINNING:
        return BEGINNING if since else None
    if isinstance(since, str):
        try:
            since = Position.parse(since)
        except ValueError as error:
            raise ValueError(f"since: {error}, or say 'beginning'") from None
    if not isinstance(since, Position):
        raise TypeError(
            f"since must be a Position, its text, 'beginning' or a mapping, not {type(since).__name__}"
        )
    if since.mark != mark_of(topic.key):
        raise ValueError(f"since: {since} is not a position of {topic.name!r}, but of another topic")
    return since
