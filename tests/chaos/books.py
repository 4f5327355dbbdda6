"""Books of a long run: what was published, what each reader was handed, and whether the two agree.

A message is one number, made of its source and its place there, and so is a gap; a run of hours has
millions of them, and the memory that is watched must not be that of the books.

Lives here: `Source`, `Reader`, their checks. Must not live here: faults, and what they are done to.
"""

from __future__ import annotations

import asyncio
import contextlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import aiopubsub as ps

CHANNELS = ("news.0", "news.1")
SOURCES = 2
END = 10**9
"""From here on a source's numbers are not messages, but the word that it has ended, one per channel."""

UNDER_WAY, CONFIRMED, UNCONFIRMED, NOT_SENT = range(4)

RECONNECTED = -1
"""The entry of a gap, or of one because a slot moved; one of n messages that overflowed is `-1 - n`."""


class Source:
    """A publisher that numbers its messages, and knows what became of each.

    Args:
        index: Which.
        pub: Sends them.
        channels: Where to, in turn; of several that have no common order, one.
    """

    def __init__(self, index: int, pub: ps.Publisher, channels: Sequence[str] = CHANNELS) -> None:
        self.index = index
        self.pub = pub
        self._channels = channels
        self.outcomes = bytearray()

    async def run(self, is_over: asyncio.Event, per_s: float) -> None:
        """Publish at this rate; return when each is accounted for."""
        async with asyncio.TaskGroup() as publishes:
            while not is_over.is_set():
                publishes.create_task(self._publish(len(self.outcomes)))
                self.outcomes.append(UNDER_WAY)
                await asyncio.sleep(1 / per_s)

    async def end(self) -> None:
        """Say on every channel that it is over, each time until that is confirmed."""
        for number, channel in enumerate(CHANNELS, END):
            while True:
                with contextlib.suppress(ps.Unconfirmed, ps.NotSent):
                    await self.pub.publish(channel, b"%d:%d" % (number, self.index))
                    break

    async def _publish(self, number: int) -> None:
        try:
            channel = self._channels[number % len(self._channels)]
            await self.pub.publish(channel, b"%d:%d" % (number, self.index))
            self.outcomes[number] = CONFIRMED
        except ps.Unconfirmed:
            self.outcomes[number] = UNCONFIRMED
        except ps.NotSent:
            self.outcomes[number] = NOT_SENT

    def confirmed_between(self, before: int, after: int) -> list[int]:
        """Confirmed messages after the one and before the other."""
        return [n for n in range(before + 1, after) if self.outcomes[n] == CONFIRMED]


@dataclass
class Life:
    """What one subscriber was handed, from its opening to its end.

    What its twin had received stands beside it: before and after the opening, and at the end.
    """

    entries: array[int] = field(default_factory=lambda: array("q"))
    too_slow: int = 0  # messages that `SlowConsumer` told of
    stats: ps.SubscriberStats | None = None
    opened: tuple[int, int] = (0, 0)
    ended: int = 0

    @property
    def messages(self) -> int:
        return sum(entry >= 0 for entry in self.entries)

    @property
    def overflowed(self) -> int:
        return sum(RECONNECTED - entry for entry in self.entries if entry < RECONNECTED)

    @property
    def gaps(self) -> int:
        return sum(entry < 0 for entry in self.entries)


class Reader:
    """A consumer that may be paused, with a subscriber; after `SlowConsumer` with a new one.

    Args:
        name: For people.
        make: Makes a subscriber.
        twin: A reader of the same topics on the same connection, which drops nothing: the server tells
            both the same, so their books must agree to the message.
    """

    def __init__(
        self, name: str, make: Callable[[], ps.Subscriber[bytes]], twin: Reader | None = None
    ) -> None:
        self.name = name
        self.sub = make()
        self.lives: list[Life] = []
        self.is_open = asyncio.Event()
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.ends_heard: set[int] = set()
        self._make = make
        self._twin = twin

    @property
    def has_heard_the_end(self) -> bool:
        """Whether every source has said so on every channel."""
        return len(self.ends_heard) == SOURCES * len(CHANNELS)

    async def run(self) -> None:
        """Until it is drained; its iterator must not end before."""
        while True:
            life = Life()
            self.lives.append(life)
            try:
                await self._live(life)
            except ps.SlowConsumer as error:
                life.too_slow = error.missed
                life.ended = self._twin_received()
                life.stats = self.sub.stats
                self.sub = self._make()
            else:
                life.ended = self._twin_received()
                life.stats = self.sub.stats
                assert self.has_heard_the_end, f"{self.name}: the iterator has ended"
                return

    async def _live(self, life: Life) -> None:
        before = self._twin_received()
        async with self.sub:
            life.opened = (before, self._twin_received())
            self.is_open.set()
            async for event in self.sub.events():
                entry = entry_of(event)
                life.entries.append(entry)
                if entry >= END:
                    self.ends_heard.add(entry)
                await asyncio.sleep(0)  # more may come between two messages, as with a real consumer
                await self.may_go_on.wait()

    def _twin_received(self) -> int:
        return 0 if self._twin is None else self._twin.sub.stats.received

    # -- checks, when all is over ------------------------------------------------------------------

    def check(self, sources: list[Source], moves: int = 0) -> None:
        """What was promised to this reader; slots were moved so often."""
        for source in sources:
            self._check_messages_of(source)
        for life in self.lives:
            assert life.stats is not None
            assert life.stats.gaps == life.gaps, self.name
            assert life.stats.dropped == life.overflowed + life.too_slow, self.name
            assert life.stats.delivered == life.messages, self.name
            assert life.entries.count(RECONNECTED) <= life.stats.reconnects + moves, self.name
        if self._twin is not None:
            self._check_against([entry for entry in self._twin.lives[0].entries if entry >= 0])

    def _check_messages_of(self, source: Source) -> None:
        """No number twice, confirmed ones in order, and a gap in every jump.

        One whose reply was lost may have been on its way for long, and come after later ones.
        """
        where = f"{self.name}, messages of source {source.index}"
        got = bytearray(len(source.outcomes))
        last = -1
        for life in self.lives:
            previous: int | None = None
            has_gap = False
            for entry in life.entries:
                number, index = divmod(entry, SOURCES)
                if entry < 0:
                    has_gap = True
                elif index == source.index and entry < END:
                    assert source.outcomes[number] in (CONFIRMED, UNCONFIRMED), f"{where}: not sent"
                    assert not got[number], f"{where}: {number} doubled"
                    got[number] = True
                    if source.outcomes[number] != CONFIRMED:
                        continue
                    assert number > last, f"{where}: {number} after {last}"
                    if previous is not None and not has_gap:
                        missing = source.confirmed_between(previous, number)
                        assert not missing, f"{where}: {missing} are missing in silence"
                    last = previous = number
                    has_gap = False

    def _check_against(self, heard: list[int]) -> None:
        """Each message, and each number of dropped ones, stands where the twin heard just that."""
        for nth, life in enumerate(self.lives):
            where = f"{self.name}, life {nth}"
            place = life.ended - life.messages - life.overflowed - life.too_slow
            assert life.opened[0] <= place <= life.opened[1], f"{where}: begins with {place}: {life.opened}"
            for entry in life.entries:
                if entry >= 0:
                    assert heard[place] == entry, f"{where}: {entry}, and {heard[place]} was due"
                    place += 1
                else:
                    place += RECONNECTED - entry
            assert place + life.too_slow == life.ended, where


def entry_of(event: ps.Message[bytes] | ps.Gap | ps.Undecodable) -> int:
    """An event as one number."""
    match event:
        case ps.Message():
            number, index = map(int, event.data.split(b":"))
            return number * SOURCES + index
        case ps.Gap(reason=ps.GapReason.OVERFLOW, missed=int(missed)) if missed > 0:
            return RECONNECTED - missed
        case ps.Gap(reason=ps.GapReason.RECONNECTED | ps.GapReason.MOVED, missed=None):
            return RECONNECTED
        case _:
            raise AssertionError(f"not to be expected: {event}")


def books_bytes(sources: list[Source], readers: list[Reader]) -> int:
    """What the books themselves take."""
    return sum(len(source.outcomes) for source in sources) + sum(
        len(life.entries) * life.entries.itemsize for reader in readers for life in reader.lives
    )


def summary(sources: list[Source], readers: list[Reader]) -> Iterator[str]:
    """The books in a few lines."""
    for source in sources:
        counts = [source.outcomes.count(outcome) for outcome in (CONFIRMED, UNCONFIRMED, NOT_SENT)]
        yield (
            f"source {source.index}: {len(source.outcomes)} published, "
            "{} confirmed, {} unconfirmed, {} not sent".format(*counts)
        )
    for reader in readers:
        lives = reader.lives
        yield (
            f"{reader.name}: {sum(life.messages for life in lives)} messages, "
            f"{sum(life.entries.count(RECONNECTED) for life in lives)} gaps after a reconnect, "
            f"{sum(life.overflowed + life.too_slow for life in lives)} reported as overflow, "
            f"{len(lives)} subscribers"
        )
