"""What can be done to a cluster and its clients, in a random order.

Lives here: the faults, and lifting them. Must not live here: what is to hold meanwhile.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable

from aiopubsub.testing import Cluster
from aiopubsub.testing.nodes import Node
from tests.chaos.books import CHANNELS, Reader


class ClusterFaults:
    """The faults, one after the other, each lifted before the next.

    Args:
        rnd: Which, how long, and to whom.
        cluster: Whose slots are moved and whose nodes fail; `partitions=True`.
        readers: May be paused.
        heartbeat_s: Of the clients.

    Attributes:
        counts: How often each was done.
        moves: How often a channel went from one node to another, at most.
    """

    def __init__(
        self, rnd: random.Random, cluster: Cluster, readers: list[Reader], heartbeat_s: float
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.moves = 0
        self._rnd = rnd
        self._cluster = cluster
        self._readers = readers
        self._unnoticed_s = 3 * heartbeat_s  # from too short to be noticed to long enough
        self._all: list[Callable[[], Awaitable[None]]] = [
            *(self.move, self.migrate, self.there_and_back, self.client_kill, self.stop),
            *(self.pause_consumers, self.crash, self.fail_over, self.cut_off),
        ]

    async def run(self, count: int) -> None:
        """Do so many: each once before any is repeated."""
        deck: list[Callable[[], Awaitable[None]]] = []
        for _ in range(count):
            deck = deck or self._rnd.sample(self._all, len(self._all))
            fault = deck.pop()
            self.counts[fault.__name__] += 1
            await fault()
            await asyncio.sleep(self._rnd.choice([0, 0, 0.02, 0.1]))

    async def move(self) -> None:
        """A channel's slot goes elsewhere, step by step."""
        self.moves += 1
        await self._cluster.move_slots(*await self._somewhere_else())

    async def migrate(self) -> None:
        """The same by the server's own migration."""
        self.moves += 1
        await self._cluster.migrate_slots(*await self._somewhere_else())

    async def there_and_back(self) -> None:
        """It goes, and comes back at once."""
        self.moves += 2
        channel, there = await self._somewhere_else()
        here = await self._cluster.node_of(channel)
        await self._cluster.move_slots(channel, there)
        await self._cluster.move_slots(channel, here)

    async def client_kill(self) -> None:
        node = await self._home()
        await node.ask("CLIENT", "KILL", "TYPE", self._rnd.choice(["pubsub", "normal"]), "SKIPME", "yes")

    async def stop(self) -> None:
        """A node does not answer for a while, which is too short for the others to replace it."""
        node = await self._home()
        node.pause()
        try:
            await self._last(self._unnoticed_s)
        finally:
            node.resume()

    async def crash(self) -> None:
        """A primary is killed; it comes back after its replica has taken over."""
        self.moves += 2
        home = await self._home()
        home.kill()
        await self._cluster.wait_for_promotion(of=home)
        await self._last(0.3)
        await self._cluster.heal()

    async def fail_over(self) -> None:
        """A replica takes over, as planned."""
        self.moves += 2
        [replica] = await self._cluster.replicas(of=await self._home())
        await self._cluster.fail_over(replica)

    async def cut_off(self) -> None:
        """A primary does not hear the others any more and is replaced; clients still reach it."""
        self.moves += 2
        home = await self._home()
        await self._cluster.isolate(home)
        await self._cluster.wait_for_promotion(of=home)
        await self._last(self._unnoticed_s)
        await self._cluster.heal()

    async def pause_consumers(self) -> None:
        paused = self._rnd.sample(self._readers, self._rnd.randrange(1, len(self._readers) + 1))
        for reader in paused:
            reader.may_go_on.clear()
        await self._last(0.4)
        for reader in paused:
            reader.may_go_on.set()

    async def _home(self) -> Node:
        """Where one of the channels is."""
        return await self._cluster.node_of(self._rnd.choice(CHANNELS))

    async def _somewhere_else(self) -> tuple[str, Node]:
        """A channel, and a primary that it is not at."""
        channel = self._rnd.choice(CHANNELS)
        here = await self._cluster.node_of(channel)
        return channel, self._rnd.choice(
            [node for node in await self._cluster.primaries() if node is not here]
        )

    async def _last(self, longest_s: float) -> None:
        """How long a fault lasts."""
        await asyncio.sleep(self._rnd.uniform(0.01, longest_s))
