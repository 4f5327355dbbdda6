"""The books of `aiopubsub demo`: what was published, and what became of it at each subscriber.

Lives here: figures and whether they balance. Must not live here: processes (`demo`), words on a screen
(`demo_view`). Pure: no await, clock or I/O.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

__all__ = ["Books", "Row"]

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
class Row:
    """One subscriber.

    Attributes:
        name: What kind it is.
        follows: What it is subscribed to, for people.
        channels: The channels that it gets messages of.
        delivered: Messages that it took.
        missing: Messages that were reported to it as missing.
        has_unknown: Whether a gap was reported whose number cannot be known.
        is_done: Whether it has seen the end of each channel.
    """

    name: str
    follows: str
    channels: tuple[str, ...]
    delivered: int = 0
    missing: int = 0
    has_unknown: bool = False
    is_done: bool = False
    rate: Rate = field(default_factory=Rate)


@dataclass
class Books:
    """All subscribers, and what was published on each channel."""

    rows: list[Row]
    published: dict[str, int] = field(default_factory=dict[str, int])
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
        if row.has_unknown:
            return "unknown"
        off = self.published_to(row) - row.delivered - row.missing
        return "balanced" if off == 0 else f"off by {off}"

    @property
    def is_balanced(self) -> bool:
        """Whether every message is accounted for, at every subscriber."""
        return all(self.verdict(row) == "balanced" for row in self.rows)
