"""The books of `aiopubsub demo`: what was published, and what became of it at each subscriber.

The messages of a channel are numbered, so what is missing can be counted at the next one that comes.
Each number that is missing must have been reported by a gap in its place, whether the gap could tell
how many it stands for or not.

Lives here: figures and whether they balance. Must not live here: processes (`demo`), words on a screen
(`demo_view`). Pure: no await, clock or I/O.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

__all__ = ["Books", "Ledger", "Row"]

_RATE_REPORTS = 5  # a rate is the mean over so many reports: about a second


@dataclass
class Rate:
    """How fast a count grows."""

    _seen: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=_RATE_REPORTS))

    def add(self, at_s: float, count: int) -> None:
        """The count was this at that time."""
        self._seen.append((at_s, count))

    @property
    def per_second(self) -> int:
        """The mean of late; 0 until there are two reports."""
        if len(self._seen) < 2:
            return 0
        (began_s, first), (ended_s, last) = self._seen[0], self._seen[-1]
        return round((last - first) / (ended_s - began_s)) if ended_s > began_s else 0


@dataclass
class Ledger:
    """What one subscriber has seen.

    Attributes:
        delivered: Messages that came.
        missing: Messages that did not, and whose place had a gap.
        gaps: Gaps that were reported.
        wrong: Messages that did not come without a gap in their place, came twice or out of order, or
            were reported as missing and were not.
    """

    delivered: int = 0
    missing: int = 0
    gaps: int = 0
    wrong: int = 0
    _last: dict[str, int] = field(default_factory=dict[str, int])  # number, by channel
    _reported: int = 0  # by gaps that could tell how many, and not found missing yet
    _excused: set[str] = field(default_factory=set[str])  # channels with a gap that could not
    _channels: tuple[str, ...] = ()

    @classmethod
    def of(cls, channels: tuple[str, ...]) -> Ledger:
        """An empty one, for these channels."""
        return cls(_channels=channels)

    def message(self, channel: str, number: int) -> None:
        """A message came. Those of a channel are numbered from 1."""
        self._look_for_hole(channel, number)
        self.delivered += 1

    def end(self, channel: str, published: int) -> None:
        """The channel has ended, after so many messages."""
        self._look_for_hole(channel, published + 1)

    def gap(self, missed: int | None) -> None:
        """A gap was reported."""
        self.gaps += 1
        if missed is None:
            self._excused.update(self._channels)
        else:
            self._reported += missed

    def close(self) -> None:
        """All channels have ended."""
        self.wrong += self._reported
        self._reported = 0

    def figures(self) -> dict[str, int]:
        """The attributes, by name."""
        return {name: getattr(self, name) for name in ("delivered", "missing", "gaps", "wrong")}

    def _look_for_hole(self, channel: str, number: int) -> None:
        hole = number - self._last.get(channel, 0) - 1
        self._last[channel] = number
        if hole < 0:
            self.wrong += 1
            return
        told = min(hole, self._reported)
        self._reported -= told
        if channel in self._excused:
            self._excused.discard(channel)
            told = hole
        self.missing += told
        self.wrong += hole - told


@dataclass
class Row:
    """One subscriber.

    Attributes:
        name: What kind it is.
        follows: What it is subscribed to, for people.
        channels: The channels that it gets messages of.
        delivered: Messages that it took.
        missing: Messages that are missing, with a gap in their place.
        gaps: Gaps that were reported to it.
        wrong: Messages that went any other way.
        is_done: Whether it has seen the end of each channel.
    """

    name: str
    follows: str
    channels: tuple[str, ...]
    delivered: int = 0
    missing: int = 0
    gaps: int = 0
    wrong: int = 0
    is_done: bool = False
    rate: Rate = field(default_factory=Rate)


@dataclass
class Books:
    """All subscribers, and what was published on each channel.

    Attributes:
        rows: The subscribers.
        published: Messages by channel; those that stayed unconfirmed too.
        unconfirmed: How many of them were published once or not at all.
        faults: What was done to the connections and the server, in words.
        rate: How fast messages are published.
    """

    rows: list[Row]
    published: dict[str, int] = field(default_factory=dict[str, int])
    unconfirmed: int = 0
    faults: list[str] = field(default_factory=list[str])
    rate: Rate = field(default_factory=Rate)

    @property
    def total(self) -> int:
        """Messages published, on all channels."""
        return sum(self.published.values())

    def published_to(self, row: Row) -> int:
        """Messages published on the channels of this subscriber."""
        return sum(self.published.get(channel, 0) for channel in row.channels)

    def verdict(self, row: Row) -> str:
        """One word or two: `"open"` while it runs, `"balanced"`, or what is wrong."""
        if not row.is_done:
            return "open"
        if row.wrong:
            return f"{row.wrong} wrong"
        off = self.published_to(row) - row.delivered - row.missing
        return "balanced" if off == 0 else f"off by {off}"

    @property
    def is_balanced(self) -> bool:
        """Whether every message is accounted for, at every subscriber."""
        return all(self.verdict(row) == "balanced" for row in self.rows)
