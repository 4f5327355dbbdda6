"""A random schedule of all faults against a real server; at the end the books must balance.

The schedule comes from a seed. `AIOPUBSUB_CHAOS_FAULTS` (60) and `AIOPUBSUB_CHAOS_SEED` (1) set its
length and the seed; a failure prints both, and the same two replay the schedule.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import random
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import redis

import aiopubsub as ps
from aiopubsub.testing import Proxy, Server
from tests.conftest import start

pytestmark = pytest.mark.anyio

FAULTS = int(os.environ.get("AIOPUBSUB_CHAOS_FAULTS", "60"))
SEED = int(os.environ.get("AIOPUBSUB_CHAOS_SEED", "1"))

HEARTBEAT_S = 0.2
CHANNELS = ("news.0", "news.1")
END = 10**9
MB = 1_000_000

Event = ps.Message[bytes] | ps.Gap | ps.Undecodable


class Source:
    """A publisher that numbers its messages, and knows what became of each."""

    def __init__(self, name: str, pub: ps.Publisher) -> None:
        self.name = name
        self.pub = pub
        self.begun = 0
        self.confirmed: set[int] = set()
        self.unconfirmed: set[int] = set()
        self.not_sent: set[int] = set()

    async def publish(self, number: int) -> None:
        channel = CHANNELS[number % len(CHANNELS)]
        try:
            await self.pub.publish(channel, f"{self.name}:{number}")
            self.confirmed.add(number)
        except ps.Unconfirmed:
            self.unconfirmed.add(number)
        except ps.NotSent:
            self.not_sent.add(number)

    async def run(self, is_over: asyncio.Event, per_s: float) -> None:
        async with asyncio.TaskGroup() as publishes:
            while not is_over.is_set():
                publishes.create_task(self.publish(self.begun))
                self.begun += 1
                await asyncio.sleep(1 / per_s)

    async def end(self) -> None:
        """The last number, on every channel; again and again until it is confirmed."""
        for channel in CHANNELS:
            while True:
                with contextlib.suppress(ps.Unconfirmed, ps.NotSent):
                    await self.pub.publish(channel, f"{self.name}:{END}")
                    break


class Reader:
    """A subscriber and all that it was handed, which may be told to pause."""

    def __init__(self, name: str, sub: ps.Subscriber[bytes]) -> None:
        self.name = name
        self.sub = sub
        self.events: list[Event] = []
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.has_heard_the_end = asyncio.Event()

    async def run(self, ends: int) -> None:
        """Until it is drained."""
        seen: set[tuple[str, bytes]] = set()
        async for event in self.sub.events():
            await self.may_go_on.wait()
            if isinstance(event, ps.Message) and event.data.endswith(b":%d" % END):
                seen.add((event.channel, event.data))
                if len(seen) == ends:
                    self.has_heard_the_end.set()
            else:
                self.events.append(event)
        assert self.has_heard_the_end.is_set(), f"{self.name}: the iterator has ended"

    def check(self, source: Source) -> None:
        """No number twice, confirmed ones in order, and a gap in every jump."""
        where = f"{self.name}, messages of {source.name}"
        numbers = [
            (index, int(event.data.split(b":")[1]))
            for index, event in enumerate(self.events)
            if isinstance(event, ps.Message) and event.data.startswith(source.name.encode() + b":")
        ]
        assert len({n for _, n in numbers}) == len(numbers), f"{where}: doubled"
        assert {n for _, n in numbers} <= source.confirmed | source.unconfirmed, f"{where}: not sent"
        got = {n for _, n in numbers}
        # one whose reply was lost may have been on its way for long, and come after later ones
        certain = [(index, n) for index, n in numbers if n in source.confirmed]
        for (at, before), (then, after) in itertools.pairwise(certain):
            assert before < after, f"{where}: {after} after {before}"
            missing = [n for n in range(before + 1, after) if n in source.confirmed and n not in got]
            if missing:
                between = [event for event in self.events[at:then] if isinstance(event, ps.Gap)]
                assert between, f"{where}: {missing} are missing in silence"

    def check_numbers(self, sources: list[Source]) -> None:
        """Where the connection was not lost, an overflow counts exactly what is missing."""
        stats = self.sub.stats
        overflows = [e for e in self.events if isinstance(e, ps.Gap) and e.reason is ps.GapReason.OVERFLOW]
        assert sum(gap.missed or 0 for gap in overflows) == stats.dropped, self.name
        assert all(gap.missed for gap in overflows), self.name
        stretch: list[Event] = []
        for event in [*self.events, None]:
            if event is not None and not (
                isinstance(event, ps.Gap) and event.reason is ps.GapReason.RECONNECTED
            ):
                stretch.append(event)
                continue
            told = sum(e.missed or 0 for e in stretch if isinstance(e, ps.Gap))
            missing = 0
            for source in sources:
                start_ = source.name.encode() + b":"
                got = [
                    int(e.data.split(b":")[1])
                    for e in stretch
                    if isinstance(e, ps.Message) and e.data.startswith(start_)
                ]
                certain = [n for n in got if n in source.confirmed]
                if certain:
                    inner = range(certain[0], certain[-1])
                    missing += len({n for n in inner if n in source.confirmed} - set(got))
            assert missing <= told, f"{self.name}: {missing} missing, {told} told"
            stretch = []


class Chaos:
    """The faults, one after the other, each lifted before the next."""

    def __init__(self, rnd: random.Random, server: Server, proxy: Proxy, readers: list[Reader]) -> None:
        self.rnd = rnd
        self.server = server
        self.proxy = proxy
        self.readers = readers
        self.faults: list[Callable[[], Awaitable[None]]] = [
            *(self.cut, self.client_kill, self.cut_inside, self.stall, self.delay, self.throttle),
            *(self.dribble, self.refuse, self.crash, self.stop, self.pause_consumers),
        ]

    async def run(self, count: int) -> None:
        for _ in range(count):
            await self.rnd.choice(self.faults)()
            await asyncio.sleep(self.rnd.choice([0, 0, 0.02, 0.1]))

    async def last(self, longest_s: float) -> None:
        """How long a fault lasts."""
        await asyncio.sleep(self.rnd.uniform(0.01, longest_s))

    async def cut(self) -> None:
        self.proxy.cut()

    async def client_kill(self) -> None:
        kind = self.rnd.choice(["pubsub", "normal"])
        with self.admin() as admin:
            admin.client_kill_filter(_type=kind, skipme=True)

    async def cut_inside(self) -> None:
        self.proxy.cut_after(self.rnd.randrange(2000))

    async def stall(self) -> None:
        up, down = self.rnd.choice([(True, False), (False, True), (True, True)])
        self.proxy.stall(up=up, down=down, new=self.rnd.random() < 0.5)
        await self.last(3 * HEARTBEAT_S)
        self.proxy.resume()

    async def delay(self) -> None:
        self.proxy.delay_s = self.rnd.uniform(0, 0.05)
        await self.last(0.3)
        self.proxy.delay_s = 0

    async def throttle(self) -> None:
        self.proxy.bytes_per_s = self.rnd.uniform(1_000, 50_000)
        await self.last(0.5)
        self.proxy.bytes_per_s = None

    async def dribble(self) -> None:
        self.proxy.piece_bytes = self.rnd.randrange(1, 5)
        await self.last(0.2)
        self.proxy.piece_bytes = None

    async def refuse(self) -> None:
        self.proxy.refuse()
        self.proxy.cut()
        await self.last(0.3)
        await self.proxy.accept()

    async def crash(self) -> None:
        await asyncio.to_thread(self.server.kill)
        await self.last(0.3)
        await asyncio.to_thread(self.server.start)

    async def stop(self) -> None:
        os.kill(self.server.pid, signal.SIGSTOP)
        try:
            await self.last(3 * HEARTBEAT_S)
        finally:
            os.kill(self.server.pid, signal.SIGCONT)

    async def pause_consumers(self) -> None:
        paused = self.rnd.sample(self.readers, self.rnd.randrange(1, len(self.readers) + 1))
        for reader in paused:
            reader.may_go_on.clear()
        await self.last(0.4)
        for reader in paused:
            reader.may_go_on.set()

    def admin(self) -> redis.Redis:
        return redis.Redis(port=self.server.port, decode_responses=True, socket_timeout=10)


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_the_books_balance(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever happens to connections and server: no silent loss, no duplicate, no reordering."""
    caplog.set_level(logging.CRITICAL)  # a thousand lost connections are no news here
    server = start("valkey9")
    try:
        await chaos(server)
    except BaseException as error:
        error.add_note(f"replay: AIOPUBSUB_CHAOS_SEED={SEED} AIOPUBSUB_CHAOS_FAULTS={FAULTS}")
        raise
    finally:
        server.stop()


async def chaos(server: Server) -> None:
    def subscriber(client: ps.Client, *topics: Any, **options: Any) -> ps.Subscriber[bytes]:
        return ps.Subscriber(client, *topics, **options)

    news = ps.Pattern("news.*")
    async with (
        asyncio.timeout(60 + 2 * FAULTS),
        Proxy(server.port) as proxy,
        ps.Client(proxy.url, heartbeat=HEARTBEAT_S) as far,
        ps.Client(server.url, heartbeat=HEARTBEAT_S) as near,
        ps.Publisher(far, timeout=1) as far_pub,
        ps.Publisher(near, timeout=1) as near_pub,
        subscriber(far, *CHANNELS) as exact,
        subscriber(far, news) as glob,
        subscriber(far, *CHANNELS, buffer=20) as oldest,
        subscriber(near, news, buffer=20, overflow="drop_newest") as newest,
        subscriber(far, *CHANNELS, buffer=20, overflow="block") as block,
    ):
        sources = [Source("far", far_pub), Source("near", near_pub)]
        readers = [
            Reader("exact", exact),
            Reader("pattern", glob),
            Reader("drop_oldest", oldest),
            Reader("drop_newest", newest),
            Reader("block", block),
        ]
        ends = len(sources) * len(CHANNELS)
        is_over = asyncio.Event()
        reading = [asyncio.create_task(reader.run(ends)) for reader in readers]
        publishing = [asyncio.create_task(source.run(is_over, 300)) for source in sources]
        schedule = Chaos(random.Random(SEED), server, proxy, readers)
        await schedule.run(FAULTS // 4)
        before = rss_bytes()
        await schedule.run(FAULTS - FAULTS // 4)
        is_over.set()
        await asyncio.gather(*publishing)
        ending = asyncio.create_task(say_the_end(sources))
        for reader, task in zip(readers, reading, strict=True):
            heard = asyncio.create_task(reader.has_heard_the_end.wait())
            await asyncio.wait([heard, task], return_when=asyncio.FIRST_COMPLETED)
            heard.cancel()
            if task.done():
                task.result()  # why its iterator has ended
        ending.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await ending

        kept = sum(len(reader.events) for reader in readers) * 500  # the books themselves
        assert rss_bytes() - before < 20 * MB + kept
        assert (far.stats.in_flight, near.stats.in_flight) == (0, 0)
        with schedule.admin() as admin:
            # old connections end in the server a moment later, and no event tells
            while admin.pubsub_numpat() != 1 or {n for _, n in admin.pubsub_numsub(*CHANNELS)} != {2}:
                await asyncio.sleep(0.01)
            assert sorted(admin.pubsub_channels()) == sorted(CHANNELS)
        assert [await reader.sub.drain(10) for reader in readers] == [0] * len(readers)
        await asyncio.gather(*reading)
    for source in sources:
        assert source.begun == len(source.confirmed | source.unconfirmed | source.not_sent)
        assert len(source.confirmed) > source.begun / 10
        for reader in readers:
            reader.check(source)
    for reader in readers:
        assert sum(isinstance(event, ps.Gap) for event in reader.events) == reader.sub.stats.gaps
        reader.check_numbers(sources)


async def say_the_end(sources: list[Source]) -> None:
    """Until every reader has heard it: the buffers of some hold 20 messages only."""
    while True:
        for source in sources:
            await source.end()
        await asyncio.sleep(0.05)
