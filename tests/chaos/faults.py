"""Everything that can be done to connections, server and consumers, in a random order.

Lives here: the faults, and lifting them. Must not live here: what is to hold meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable

import redis

import aiopubsub as ps
from aiopubsub.testing import Proxy, Server
from tests.chaos.books import CHANNELS, Reader


class Faults:
    """The faults, one after the other, each lifted before the next.

    Args:
        rnd: Which, how long, and to whom.
        server: May be stopped and killed.
        proxy: What is between it and the client.
        client: Of the readers.
        readers: May be paused.
        heartbeat_s: Of the client.

    Attributes:
        counts: How often each was done.
    """

    def __init__(
        self,
        rnd: random.Random,
        server: Server,
        proxy: Proxy,
        client: ps.Client,
        readers: list[Reader],
        heartbeat_s: float,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._rnd = rnd
        self._server = server
        self._proxy = proxy
        self._client = client
        self._readers = readers
        self._unnoticed_s = 3 * heartbeat_s  # from too short to be noticed to long enough
        self._all: list[Callable[[], Awaitable[None]]] = [
            *(self.cut, self.client_kill, self.cut_inside, self.stall, self.delay, self.throttle),
            *(self.dribble, self.refuse, self.crash, self.stop, self.pause_consumers, self.visit),
        ]

    async def run(self, count: int) -> None:
        """Do so many."""
        for _ in range(count):
            fault = self._rnd.choice(self._all)
            self.counts[fault.__name__] += 1
            await fault()
            await asyncio.sleep(self._rnd.choice([0, 0, 0.02, 0.1]))

    def admin(self) -> redis.Redis:
        """A connection past the proxy."""
        return redis.Redis(port=self._server.port, decode_responses=True, socket_timeout=10)

    async def cut(self) -> None:
        self._proxy.cut()

    async def client_kill(self) -> None:
        kind = self._rnd.choice(["pubsub", "normal"])
        with self.admin() as admin:
            admin.client_kill_filter(_type=kind, skipme=True)

    async def cut_inside(self) -> None:
        self._proxy.cut_after(self._rnd.randrange(2000))

    async def stall(self) -> None:
        up, down = self._rnd.choice([(True, False), (False, True), (True, True)])
        self._proxy.stall(up=up, down=down, new=self._rnd.random() < 0.5)
        await self._last(self._unnoticed_s)
        self._proxy.resume()

    async def delay(self) -> None:
        self._proxy.delay_s = self._rnd.uniform(0, 0.05)
        await self._last(0.3)
        self._proxy.delay_s = 0

    async def throttle(self) -> None:
        self._proxy.bytes_per_s = self._rnd.uniform(1_000, 50_000)
        await self._last(0.5)
        self._proxy.bytes_per_s = None

    async def dribble(self) -> None:
        self._proxy.piece_bytes = self._rnd.randrange(1, 5)
        await self._last(0.2)
        self._proxy.piece_bytes = None

    async def refuse(self) -> None:
        self._proxy.refuse()
        self._proxy.cut()
        await self._last(0.3)
        await self._proxy.accept()

    async def crash(self) -> None:
        await asyncio.to_thread(self._server.kill)
        await self._last(0.3)
        await asyncio.to_thread(self._server.start)

    async def stop(self) -> None:
        os.kill(self._server.pid, signal.SIGSTOP)
        try:
            await self._last(self._unnoticed_s)
        finally:
            os.kill(self._server.pid, signal.SIGCONT)

    async def pause_consumers(self) -> None:
        paused = self._rnd.sample(self._readers, self._rnd.randrange(1, len(self._readers) + 1))
        for reader in paused:
            reader.may_go_on.clear()
        await self._last(0.4)
        for reader in paused:
            reader.may_go_on.set()

    async def visit(self) -> None:
        """A subscriber comes, shares a channel, and goes, or is cancelled somewhere on its way."""

        async def use() -> None:
            async with ps.Subscriber(self._client, CHANNELS[0], "visited", ps.Pattern("v*")) as sub:
                await anext(sub)
                await sub.unsubscribe(CHANNELS[0])
                await sub.subscribe("visited too")

        visitor = asyncio.create_task(use())
        await self._last(0.1)
        visitor.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await visitor

    async def _last(self, longest_s: float) -> None:
        """How long a fault lasts."""
        await asyncio.sleep(self._rnd.uniform(0.01, longest_s))
