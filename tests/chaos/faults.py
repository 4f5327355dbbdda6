"""Everything that can be done to connections, servers and consumers, in a random order.

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
from aiopubsub.testing import Proxy, Sentinels, Server
from tests.chaos.books import CHANNELS, Reader


class Schedule:
    """Faults, one after the other, each lifted before the next.

    Args:
        rnd: Which, how long, and to whom.
        client: Of the readers.
        readers: May be paused.
        heartbeat_s: Of the client.

    Attributes:
        counts: How often each was done.
    """

    def __init__(
        self, rnd: random.Random, client: ps.Client, readers: list[Reader], heartbeat_s: float
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._rnd = rnd
        self._client = client
        self._readers = readers
        self._unnoticed_s = 3 * heartbeat_s  # from too short to be noticed to long enough
        self._all: list[Callable[[], Awaitable[None]]] = [
            *(self.client_kill, self.pause_consumers, self.visit)
        ]

    async def run(self, count: int) -> None:
        """Do so many."""
        for _ in range(count):
            fault = self._rnd.choice(self._all)
            self.counts[fault.__name__] += 1
            await fault()
            await asyncio.sleep(self._rnd.choice([0, 0, 0.02, 0.1]))

    def admin(self) -> redis.Redis:
        """A connection to the server, past whatever is in between."""
        raise NotImplementedError

    async def client_kill(self) -> None:
        kind = self._rnd.choice(["pubsub", "normal"])
        with self.admin() as admin:
            admin.client_kill_filter(_type=kind, skipme=True)

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


class Faults(Schedule):
    """What can be done to one server, and to what is between it and the client.

    Args:
        rnd: As of `Schedule`, and so are the last three.
        server: May be stopped and killed.
        proxy: What is between.
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
        super().__init__(rnd, client, readers, heartbeat_s)
        self._server = server
        self._proxy = proxy
        self._all = [
            *(self.cut, self.client_kill, self.cut_inside, self.stall, self.delay, self.throttle),
            *(self.dribble, self.refuse, self.crash, self.stop, self.pause_consumers, self.visit),
        ]

    def admin(self) -> redis.Redis:
        return redis.Redis(port=self._server.port, decode_responses=True, socket_timeout=10)

    async def cut(self) -> None:
        self._proxy.cut()

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


class Failovers(Schedule):
    """What can be done to servers behind Sentinel, and to the sentinels.

    Args:
        rnd: As of `Schedule`, and so are the last three.
        trio: The servers and the sentinels.
    """

    def __init__(
        self,
        rnd: random.Random,
        trio: Sentinels,
        client: ps.Client,
        readers: list[Reader],
        heartbeat_s: float,
    ) -> None:
        super().__init__(rnd, client, readers, heartbeat_s)
        self._trio = trio
        self._all += [
            *(self.fail_over, self.kill_primary, self.isolate, self.stop_primary),
            *(self.kill_replica, self.kill_sentinels, self.stop_sentinels),
        ]

    def admin(self) -> redis.Redis:
        return self._trio.admin(self._trio.primary)

    async def fail_over(self) -> None:
        await self._trio.fail_over()
        await self._trio.settled()

    async def kill_primary(self) -> None:
        old = self._trio.primary
        await self._trio.kill_primary()
        await self._back(old)

    async def isolate(self) -> None:
        """For long enough to be replaced, or not."""
        old = await self._trio.isolate_primary()
        await self._last(3)
        await self._trio.rejoin(old)

    async def stop_primary(self) -> None:
        server = self._trio.primary
        server.pause()
        await self._last(3)
        server.resume()
        await self._trio.settled()

    async def kill_replica(self) -> None:
        replica = self._rnd.choice([each for each in self._trio.servers if each is not self._trio.primary])
        await asyncio.to_thread(replica.kill)
        await self._last(0.5)
        await self._back(replica)

    async def kill_sentinels(self) -> None:
        """One, some or all of them."""
        killed = self._some_sentinels()
        for sentinel in killed:
            await asyncio.to_thread(sentinel.kill)
        await self._last(0.5)
        await self._back(*killed)

    async def stop_sentinels(self) -> None:
        stopped = self._some_sentinels()
        for sentinel in stopped:
            sentinel.pause()
        await self._last(self._unnoticed_s)
        for sentinel in stopped:
            sentinel.resume()
        await self._trio.settled()

    def _some_sentinels(self) -> list[Server]:
        return self._rnd.sample(list[Server](self._trio.sentinels), self._rnd.randrange(1, 4))

    async def _back(self, *servers: Server) -> None:
        for server in servers:
            await asyncio.to_thread(server.start)
        await self._trio.settled()
