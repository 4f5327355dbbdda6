"""What a message costs the servers: the figures that docs/scaling.md plans with, on your machine.

    python docs/examples/unit_costs.py                      # a server, a cluster of 3 and one of 6 primaries of its own
    python docs/examples/unit_costs.py --url redis+cluster://host:port

It publishes to channels that begin with `unit-costs:`, and asks every server before and after how much CPU
it has used (`INFO cpu`), and every node of a cluster how much it has told the others (`CLUSTER INFO`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import redis.asyncio as aioredis

import aiopubsub as ps
from aiopubsub.testing import Cluster, Server, find_redis

CHANNELS = 600  # over all slots
PAYLOAD = b"x" * 128


@dataclass
class Cost:
    """Of one message.

    Attributes:
        cpu_us: Of all servers together, microseconds.
        told: How often a node told another of it.
    """

    cpu_us: float
    told: float


class Servers:
    """All servers of a deployment, asked from outside."""

    def __init__(self, nodes: list[aioredis.Redis], *, are_cluster: bool) -> None:
        self.nodes = nodes
        self.are_cluster = are_cluster

    @classmethod
    @contextlib.asynccontextmanager
    async def at(cls, url: str) -> AsyncIterator[Servers]:
        """Those that belong to this URL."""
        if "+cluster" not in url:
            async with aioredis.Redis.from_url(url) as server:
                yield cls([server], are_cluster=False)
            return
        first = "redis://" + url.split("://")[1].split(",")[0]
        async with aioredis.RedisCluster.from_url(first) as whole, contextlib.AsyncExitStack() as stack:
            places = [(node.host, node.port) for node in whole.get_nodes()]
            nodes = [await stack.enter_async_context(aioredis.Redis(host=h, port=p)) for h, p in places]
            yield cls(nodes, are_cluster=True)

    async def _used(self) -> tuple[float, int]:
        cpu_s, told = 0.0, 0
        for node in self.nodes:
            cpu = await node.info("cpu")
            cpu_s += cpu["used_cpu_user"] + cpu["used_cpu_sys"]
            if self.are_cluster:
                info = await node.execute_command("CLUSTER", "INFO")
                told += sum(
                    int(n) for name, n in info.items() if "messages_publish" in name and "sent" in name
                )
        return cpu_s, told

    async def cost_of(self, work: Callable[[], Awaitable[object]], messages: int) -> Cost:
        """What the servers use while this is done, less what they use in the same time when nothing is."""
        began, before = time.perf_counter(), await self._used()
        await work()
        took, after = time.perf_counter() - began, await self._used()
        await asyncio.sleep(took)
        idle = await self._used()
        cpu_s = (after[0] - before[0]) - (idle[0] - after[0])
        return Cost(1e6 * cpu_s / messages, (after[1] - before[1]) / messages)


async def measure(title: str, url: str, messages: int, connections: int) -> None:
    """Print the rows of one deployment."""
    prefix = f"unit-costs:{secrets.token_hex(4)}:"
    names = [f"{prefix}{number}" for number in range(CHANNELS)]
    async with Servers.at(url) as servers, ps.Client(url) as client, ps.Publisher(client) as pub:

        async def many(topics: list[ps.Topic[bytes]]) -> None:
            await pub.publish_many((topics[n % len(topics)], PAYLOAD) for n in range(messages))

        async def one_by_one(topics: list[ps.Topic[bytes]]) -> None:
            for n in range(messages):
                await pub.publish(topics[n % len(topics)], PAYLOAD)

        async def row(
            what: str,
            work: Callable[[list[ps.Topic[bytes]]], Awaitable[None]],
            topics: list[ps.Topic[bytes]],
        ) -> float:
            await work(topics)  # connections are opened, scripts are loaded
            cost = await servers.cost_of(lambda: work(topics), messages)
            print(f"{title:14} {what:44} {cost.cpu_us:8.2f} {cost.told:8.2f}", flush=True)
            return cost.cpu_us

        plain = [ps.Topic(name) for name in names]
        await row("publish, one at a time", one_by_one, plain)
        nobody = await row("publish, many in flight", many, plain)
        if servers.are_cluster:
            wide = [ps.Topic(name, sharded=False) for name in names]
            await row("publish, many, cluster-wide", many, wide)
        for count in (1, connections):
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(count):
                    other = await stack.enter_async_context(ps.Client(url))
                    await stack.enter_async_context(ps.Subscriber(other, *plain, buffer=1000))
                heard = await row(f"the same, {count} listening", many, plain)
            print(f"{title:14} {'  so each of them costs':44} {(heard - nobody) / count:8.2f}", flush=True)
        kept = [ps.Topic(f"{name}:kept", history=ps.History(size=100, ttl=60)) for name in names[:10]]
        await row("publish with history, one at a time", one_by_one, kept)
        await row("publish with history, many", many, kept)


async def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--url", help="a deployment of yours instead of servers of its own")
    parser.add_argument("--messages", type=int, default=30_000, help="of each row (default: 30000)")
    parser.add_argument("--connections", type=int, default=20, help="that listen (default: 20)")
    options = parser.parse_args()
    print(f"{'':14} {'':44} {'us CPU':>8} {'told':>8}")
    if options.url:
        await measure("", options.url, options.messages, options.connections)
        return
    async with Server(find_redis()) as server:
        await measure("one server", server.url, options.messages, options.connections)
    for primaries, replicas in ((3, 1), (6, 0)):
        async with Cluster(find_redis(), primaries=primaries, replicas=replicas) as cluster:
            title = f"cluster {primaries}+{primaries * replicas}"
            await measure(title, cluster.url, options.messages, options.connections)


if __name__ == "__main__":
    asyncio.run(main())
