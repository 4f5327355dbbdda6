"""Books of what was published and what was delivered, for tests that make trouble."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import aiopubsub as ps


@dataclass
class Feed:
    """Publishes the numbers 0, 1, 2, … one by one, and notes what became of each."""

    pub: ps.Publisher
    channel: str | ps.Topic[bytes]
    begun: int = 0
    confirmed: set[int] = field(default_factory=set)
    unconfirmed: set[int] = field(default_factory=set)
    not_sent: set[int] = field(default_factory=set)

    async def reach(self, number: int) -> None:
        """Until so many were begun; no event tells, so it looks again and again."""
        while self.begun < number:
            await asyncio.sleep(0.01)

    async def publish(self, number: int) -> None:
        try:
            await self.pub.publish(self.channel, b"%d" % number)
            self.confirmed.add(number)
        except ps.Unconfirmed:
            self.unconfirmed.add(number)
        except ps.NotSent:
            self.not_sent.add(number)


@contextlib.asynccontextmanager
async def feeding(
    pub: ps.Publisher, channel: str | ps.Topic[bytes], *, per_s: float
) -> AsyncIterator[Feed]:
    """Publish numbers at a rate, until the block is left; then wait until each is accounted for."""
    feed = Feed(pub, channel)
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as publishes:

        async def publish() -> None:
            began_at = loop.time()
            while True:
                while feed.begun < (loop.time() - began_at) * per_s:
                    publishes.create_task(feed.publish(feed.begun))
                    feed.begun += 1
                await asyncio.sleep(0.5 / per_s)

        clock = asyncio.create_task(publish())
        try:
            yield feed
        finally:
            clock.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await clock
    assert feed.begun == len(feed.confirmed) + len(feed.unconfirmed) + len(feed.not_sent)


async def lost(client: ps.Client, role: str) -> None:
    """Until a connection was given up for the first time; no event tells, so it looks again and again."""
    async with asyncio.timeout(60):
        while (link := client.stats.links[role]).state == "live" and not link.reconnects:
            await asyncio.sleep(0.002)


async def reconnected(client: ps.Client, role: str, times: int) -> None:
    """Until a connection was opened again so often, and is live; no event tells, either."""
    async with asyncio.timeout(10):
        while (link := client.stats.links[role]).state != "live" or link.reconnects < times:
            await asyncio.sleep(0.002)


class Watcher:
    """Takes all events of a subscriber, and lets a test wait for what it wants to see.

    Attributes:
        events: All that came.
        gaps: Of these, the gaps.
        numbers: Of these, the messages.
    """

    def __init__(self, sub: ps.Subscriber) -> None:
        self.sub = sub
        self.events: list[ps.Message | ps.Gap | ps.Undecodable] = []
        self.gaps: list[ps.Gap] = []
        self.numbers: list[int] = []
        self.task = asyncio.create_task(self._watch())
        self._changed = asyncio.Event()

    @property
    def last(self) -> int:
        """The last number that came, or -1."""
        return self.numbers[-1] if self.numbers else -1

    async def until(self, is_true: Callable[[], bool], *, timeout: float = 10) -> None:
        """Return when it is true; looks after each event. Raises what the iterator raised."""
        async with asyncio.timeout(timeout):
            while not is_true():
                self._changed.clear()
                await self._changed.wait()
                if self.task.done():
                    self.task.result()
                    raise AssertionError("the iterator has ended")

    async def _watch(self) -> None:
        try:
            async for event in self.sub.events():
                self.events.append(event)
                if isinstance(event, ps.Gap):
                    self.gaps.append(event)
                elif isinstance(event, ps.Message):
                    self.numbers.append(int(event.data))
                self._changed.set()
        finally:
            self._changed.set()


@contextlib.asynccontextmanager
async def watching(sub: ps.Subscriber) -> AsyncIterator[Watcher]:
    """Watch a subscriber until the block is left; its iterator must neither end nor raise before."""
    watcher = Watcher(sub)
    try:
        yield watcher
        assert not watcher.task.done(), "the iterator has ended"
    finally:
        watcher.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher.task


def jumps(watcher: Watcher) -> list[int]:
    """Where numbers are missing: indexes into `events` of what stands in each jump.

    Fails where a number is doubled or out of order, or where nothing stands in a jump.
    """
    last = None
    between: list[int] = []
    found: list[int] = []
    for index, event in enumerate(watcher.events):
        if isinstance(event, ps.Message):
            number = int(event.data)
            assert last is None or number > last, f"{number} after {last}: doubled or out of order"
            if last is not None and number > last + 1:
                assert between, f"{number} after {last}, and no gap was reported"
                found += between
            last, between = number, []
        else:
            between.append(index)
    return found
